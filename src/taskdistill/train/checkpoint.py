"""Checkpoints: everything that moves in a phase, written whole or not at all, hashed, and kept to
the last few.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.io.atomic import remove_stale_within, restore
from taskdistill.io.folders import (
    open_folder,
    remove_folder,
    require_field,
    require_same,
    write_folder,
)
from taskdistill.train.fsdp import copy_full_, full_tensor, shard_like
from taskdistill.types import MANIFEST

KIND = "checkpoint"
SNAPSHOT = "snapshot"
WEIGHTS = "weights.safetensors"


def save_checkpoint(
    root: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    meta: Mapping[str, Any],
    *,
    keep: int = 2,
    write: bool = True,
) -> None:
    """Write the state after `step` updates and drop older ones.

    The random state needs no saving: data order and dropout follow from seed and step. `meta`:
    further fields, such as the recipe's hash and the thread count. `write`: False only gathers what
    is divided, for the process that writes.
    """
    weights, moments = whole_state(parameters), _moments(parameters, optimiser)
    if not write:
        return
    with write_folder(
        root / step_name(step), KIND, meta={**meta, "step": step}, replace=True
    ) as folder:
        save_file(weights, folder / WEIGHTS)
        save_file(moments, folder / "optimiser.safetensors")
    for old in list_checkpoints(root)[:-keep]:
        remove_folder(old)


def list_checkpoints(root: Path) -> list[Path]:
    """List a phase's checkpoints, oldest first, and remove what an interrupted write left."""
    remove_stale_within(root)
    named = sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d{7}", p.name))
    # What a dropped checkpoint's owner had put beside its files stays, and is no checkpoint.
    return [p for p in named if any((p / name).exists() for name in (MANIFEST, WEIGHTS))]


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    meta: Mapping[str, Any],
) -> int:
    """Put a saved state back.

    `meta`: what must be the same as when it was saved. Raises BadInput if the checkpoint is
    damaged, or of other settings, data or shapes.
    """
    manifest = open_checkpoint(folder, "delete this folder to continue from the one before")
    require_same(folder, manifest, meta, "use the same or a new --out")
    weights = load_file(folder / WEIGHTS)
    moments = load_file(folder / "optimiser.safetensors")
    if weights.keys() != parameters.keys():
        raise BadInput(
            f"checkpoint {folder} holds other weights than this phase trains:"
            f" {sorted(weights.keys() ^ parameters.keys())[:3]}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise BadInput(
                    f"checkpoint {folder}: {name} has shape {tuple(weights[name].shape)}, needs"
                    f" {tuple(parameter.shape)}"
                )
            copy_full_(parameter, weights[name])
    _put_moments(parameters, optimiser, moments)
    return require_field(folder, manifest, "step", int)


def open_checkpoint(folder: Path, advice: str) -> dict[str, Any]:
    """Check a checkpoint's files, and that its folder has the name of its step.

    `advice`: what to do where it is damaged. Raises BadInput if it is damaged or was renamed.
    """
    manifest = open_folder(folder, KIND, advice)
    if folder.name != (name := step_name(require_field(folder, manifest, "step", int))):
        raise BadInput(
            f"checkpoint {folder} says that it is {name}: one of them was changed; {advice}"
        )
    return manifest


def step_name(step: int) -> str:
    """Name the folder of a checkpoint. Returns such as `step-0000020`."""
    return f"step-{step:07d}"


def save_snapshot(
    checkpoints: Path, step: int, trained: Mapping[str, nn.Parameter], meta: Mapping[str, Any]
) -> None:
    """Keep the weights of one step, to be averaged with the last ones.

    `meta`: what must be the same when they are read again.
    """
    with write_folder(
        snapshot_folder(checkpoints), SNAPSHOT, meta={**meta, "step": step}, replace=True
    ) as folder:
        save_file(whole_state(trained), folder / WEIGHTS)


def load_snapshot(checkpoints: Path, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read what `save_snapshot` kept.

    `meta`: what must be the same. Raises BadInput if it is missing, damaged or of another run.
    """
    folder, advice = snapshot_folder(checkpoints), f"delete {checkpoints} to train the phase again"
    earlier = checkpoints.with_name(f"{checkpoints.name}.earlier.safetensors")
    if not restore(folder) and earlier.is_file():
        return dict(load_file(earlier))  # written before snapshots were folders
    require_same(folder, open_folder(folder, SNAPSHOT, advice), meta, advice)
    return dict(load_file(folder / WEIGHTS))


def last_weights(checkpoints: Path, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights of a phase's last checkpoint.

    `meta`: what must be the same. Raises BadInput if there is none, or it is damaged or of another
    run.
    """
    result, advice = list_checkpoints(checkpoints), f"delete {checkpoints} to train the phase again"
    if not result:
        raise BadInput(f"{checkpoints} holds no checkpoint; {advice}")
    require_same(result[-1], open_checkpoint(result[-1], advice), meta, advice)
    return dict(load_file(result[-1] / WEIGHTS))


def snapshot_folder(checkpoints: Path) -> Path:
    """Say where the weights of an earlier step are kept."""
    return checkpoints.with_name(f"{checkpoints.name}.earlier")


def whole_state(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return weights as whole tensors of the CPU.

    `parameters`: name to parameter; where they are divided every process must take part.
    """
    return {name: full_tensor(p.detach()).cpu().contiguous() for name, p in parameters.items()}


def _put_moments(
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    moments: Mapping[str, Tensor],
) -> None:
    """Give an optimiser its state back through its own rule, which knows where each value has to
    be: step counters go with their kernel.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    state: dict[int, dict[str, Tensor]] = {}
    for place, parameter in enumerate(
        p for group in optimiser.param_groups for p in group["params"]
    ):
        prefix = f"{names[id(parameter)]}/"
        result = {
            key.removeprefix(prefix): value
            for key, value in moments.items()
            if key.startswith(prefix)
        }
        if result:
            state[place] = {
                key: value.clone() if value.ndim == 0 else shard_like(parameter, value).clone()
                for key, value in result.items()
            }
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )


def _moments(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": full_tensor(value.detach()).cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
