"""What tells models and embedding spaces apart: one rule, over the files and the settings that
decide vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from taskdistill.io.atomic import sha256_file
from taskdistill.io.sealed import hash_json
from taskdistill.model.settings import ModelSettings

DECIDING = (
    ".safetensors",
    ".safetensors.index.json",
    "tokenizer.json",
    "config.json",
    "modules.json",
)
"""Endings of the files that decide vectors. Prompts and lengths are in other files too, and count
as settings.
"""

BESIDE_THE_BASE = ("adapters/", "projection.safetensors")
"""Beginnings of the files that decide no vector of the base."""

EVERY = (
    *("prompts", "max_length", "matryoshka_dims", "rope_theta", "task_required"),
    *("int8_ranges", "binary_offsets", "adapter_tasks"),
)
"""Settings that decide what a call gives."""

OF_THE_BASE = ("prompts", "max_length", "rope_theta")
"""Settings that decide the base's vectors, beside its own int8 ranges and binary offsets."""


def model_hash(files: Mapping[str, str], settings: ModelSettings) -> str:
    """Hash all that decides any vector of a model: weights, adapters, tokenizer, prompts, lengths,
    calibration.

    `files`: relative path to the SHA-256 of each file that decides vectors. Returns 64 hexadecimal
    digits; nothing for a model without files.
    """
    return (
        hash_json(
            {"files": dict(files), "settings": {name: getattr(settings, name) for name in EVERY}}
        )
        if files
        else ""
    )


def space_id(files: Mapping[str, str], settings: ModelSettings) -> str:
    """Hash all that decides the base's vectors, so that it stays the same where an adapter is
    added.

    Returns 32 hexadecimal digits; nothing for a model without files.
    """
    if not files:
        return ""
    base_files = {
        name: digest for name, digest in files.items() if not name.startswith(BESIDE_THE_BASE)
    }
    facts = {name: getattr(settings, name) for name in OF_THE_BASE} | {
        "int8_ranges": settings.int8_ranges.get("base", {}),
        "binary_offsets": settings.binary_offsets.get("base", {}),
    }
    return hash_json({"files": base_files, "settings": facts})[:32]


def fingerprint_files(
    folder: Path, files: Mapping[str, Mapping[str, object]] | None = None
) -> dict[str, str]:
    """Hash the files of a folder that decide vectors; others, such as exports, may be large.

    `files`: the table of files of its manifest, which was compared with them; None to read them.
    Returns relative path to SHA-256, sorted by path.
    """
    if files is not None:
        return {
            name: str(entry["sha256"])
            for name, entry in sorted(files.items())
            if name.endswith(DECIDING)
        }
    chosen = sorted(p for p in folder.rglob("*") if p.name.endswith(DECIDING) and p.is_file())
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in chosen}


def fingerprint(files: Mapping[str, str]) -> str:
    """Hash the files alone, as model hashes were made before settings belonged to them.

    Indexes of that time know a model by it, and a teacher store still does: prompts of a teacher's
    folder decide nothing there. Returns 64 hexadecimal digits; nothing for a model without files.
    """
    chosen = {
        name: digest
        for name, digest in files.items()
        if not name.endswith(".safetensors.index.json")
    }
    return hash_json(chosen) if files else ""


def weights_hash(module: nn.Module) -> str:
    """Hash the base weights of a module, adapters aside, to prove that they did not move.

    Returns 64 hexadecimal digits over names and bytes.
    """
    digest = hashlib.sha256()
    for part in weight_bytes(module):
        digest.update(part)
    return digest.hexdigest()


def weight_bytes(module: nn.Module) -> Iterator[bytes]:
    """Give names and bytes of a module's base weights, the same whether adapters are attached or
    not.
    """
    for name, tensor in sorted(module.named_parameters()):
        if "lora_" not in name:
            yield name.replace(".base_layer.", ".").encode()
            # As bytes, for numpy has no bfloat16.
            yield tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
