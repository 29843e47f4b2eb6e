"""Ids of models that the files of a folder alone do not give: those of earlier versions, and of
models in memory.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from taskdistill.model.backbone import weights_hash
from taskdistill.model.student import TransformerModel

if TYPE_CHECKING:
    from taskdistill.model.model import Model, ModelSettings


def former_space_ids(settings: ModelSettings, space_id: str, version: int) -> list[str]:
    """Say by which ids earlier versions knew a model's space.

    Since manifests say the present id too, the earlier ones hold only where nothing of the space
    was changed since the folder was written. `settings`: settings of the model as they are in its
    manifest.
    """
    if version >= 2:
        return settings.former_space_ids if settings.space_id == space_id else []
    return [settings.space_id] if settings.space_id else []


def base_space_id(model: Model) -> str:
    """Hash the base of a model in memory, as space ids were made before they were made of files and
    settings.

    `model`: the model, in float32. Returns 32 hexadecimal digits.
    """
    digest = hashlib.sha256(model.tokenizer.to_json().encode())
    digest.update(
        f"{_pooling(model)} {model.settings.rope_theta}"
        f" {sorted((str(name), text) for name, text in model.settings.prompts.items())}".encode()
    )
    for name, tensor in sorted(model.module.named_parameters()):
        if "lora_" not in name:
            digest.update(name.replace(".base_layer.", ".").encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def memory_files(model: Model) -> dict[str, str]:
    """Hash what stands for the deciding files of a base that is never written, so that its scores
    can be kept under its hash.

    Returns what stands for `Model.files`.
    """
    tokenizer = hashlib.sha256(model.tokenizer.to_json().encode()).hexdigest()
    return {
        "weights": weights_hash(model.module),
        "tokenizer.json": tokenizer,
        "pooling": _pooling(model),
    }


def _pooling(model: Model) -> str:
    return model.module.pooling.value if isinstance(model.module, TransformerModel) else "static"
