"""A finished phase on disk: what it trained, read again only with the settings and data that made
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from taskdistill.errors import BadInput
from taskdistill.io.atomic import restore
from taskdistill.io.folders import open_folder, require_same, write_folder
from taskdistill.train.context import Phase

KIND = "phase"


def save_phase(folder: Path, phase: Phase, meta: Mapping[str, Any]) -> None:
    """Write what a finished phase trained. `meta`: what must match when it is read again."""
    with write_folder(folder, KIND, meta={**meta, "phase": phase.name}, replace=True) as beside:
        tensors = {
            name: p.detach().cpu().contiguous()
            for name, p in (phase.trained | phase.moving_heads()).items()
        }
        save_file(tensors, beside / "weights.safetensors")


def load_phase(folder: Path, phase: Phase, meta: Mapping[str, Any]) -> bool:
    """Put a finished phase's weights back, if it was finished.

    `folder`: where it would be. `phase`: the phase; its parameters are overwritten. Raises BadInput
    if the folder is damaged or was made with other settings or data.
    """
    if not restore(folder):
        return False
    manifest = open_folder(folder, KIND, "delete this folder to train the phase again")
    require_same(folder, manifest, {**meta, "phase": phase.name})
    tensors, requested = (
        load_file(folder / "weights.safetensors"),
        phase.trained | phase.moving_heads(),
    )
    if different := sorted(tensors.keys() ^ requested.keys()):
        raise BadInput(
            f"{folder} holds other weights than {phase.name} trains: {different[:3]}; delete this"
            " folder to train the phase again"
        )
    with torch.no_grad():
        for name, parameter in requested.items():
            if tensors[name].shape != parameter.shape:
                raise BadInput(
                    f"{folder}: {name} has shape {tuple(tensors[name].shape)}, {phase.name} needs"
                    f" {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
    return True
