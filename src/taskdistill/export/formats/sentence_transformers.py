"""A plain sentence-transformers folder of one task: adapter merged, readable by every stock tool."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.export.export import ExportJob
from taskdistill.export.parity import EXACT, compare
from taskdistill.io.folders import versions
from taskdistill.io.sealed import dump_json
from taskdistill.model.configuration import quiet_transformers
from taskdistill.model.folder import Model, fill_folder, read_model
from taskdistill.model.golden import embed_with
from taskdistill.model.onnx_graph import silent
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import Role

GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
"""The class that takes `tokenizer.json` as it is; a family's own class may rebuild it."""

REWRITTEN_FAMILIES = frozenset({"qwen3", "eurobert"})


def check(_: Model) -> None:
    """Refuse nothing: every model has such a folder."""


def write(export: ExportJob) -> None:
    """Write the folder and compare it, through our reader and through sentence-transformers where that is installed.

    Args:
        export: Model, folder and reference.
    """
    fill_folder(export.folder, export.model)
    finish_config(export.folder, export.model)
    reference, name = export.reference[export.task], "model.safetensors"
    ours = embed_with(read_model(export.folder))(export.texts, None)
    export.results.append(
        compare(
            name, f"taskdistill {versions()['taskdistill']}", export.task, reference, ours, EXACT
        )
    )
    if importlib.util.find_spec("sentence_transformers") is None:
        export.notes.append(
            "sentence-transformers is not installed here, so the folder was only read by taskdistill"
        )
        return
    theirs = _stock_vectors(export.folder, export.model, export.texts)
    package = f"sentence-transformers {metadata.version('sentence-transformers')}"
    export.results.append(compare(name, package, export.task, reference, theirs, EXACT))


def _stock_vectors(folder: Path, model: Model, texts: Sequence[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    prompt = model.settings.prompts.get(Role.DOCUMENT.value, "")
    with quiet_transformers(), silent():
        stock = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        vectors: np.ndarray = stock.encode(
            list(texts),
            prompt=prompt,
            batch_size=4,
            show_progress_bar=False,
            normalize_embeddings=True,
        )
    return vectors


def finish_config(folder: Path, model: Model) -> None:
    """Add to config.json what readers older than transformers 5 and other engines look for, and settle the tokenizer's class.

    Args:
        folder: Folder with config.json and the tokenizer files.
        model: The model written there.
    """
    if not isinstance(model.module, TransformerModel):
        return
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    theta = (raw.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        raw["rope_theta"] = theta
    (folder / "config.json").write_text(dump_json(raw), "utf-8")
    if raw["model_type"] in REWRITTEN_FAMILIES:
        write_tokenizer_config(folder, model)


def write_tokenizer_config(folder: Path, model: Model) -> None:
    """Write a tokenizer_config.json with which stock tools use tokenizer.json untouched.

    Args:
        folder: Folder to write into.
        model: The model; its source folder's settings are kept where they name no code.
    """
    source = model.source / "tokenizer_config.json"
    said: dict[str, Any] = json.loads(source.read_text("utf-8")) if source.is_file() else {}
    kept = {
        key: value
        for key, value in said.items()
        if key not in {"auto_map", "tokenizer_class", "backend", "is_local"}
    }
    special = [
        token["content"]
        for token in json.loads(model.tokenizer.to_json())["added_tokens"]
        if token["special"]
    ]
    if "pad_token" not in kept and special:
        kept["pad_token"] = next((token for token in special if "pad" in token.lower()), special[0])
    fields = {
        "tokenizer_class": GENERIC_TOKENIZER,
        "model_max_length": model.settings.max_length,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(dump_json(kept | fields), "utf-8")
