"""Back ends: what runs the model, from token ids to pooled vectors, behind the one interface that
training uses too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from taskdistill.device import AUTO, CPU, resolve_device, resolve_dtype
from taskdistill.encode.graph_models import GraphModel
from taskdistill.encode.int8 import Int8Model
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.model import Model
from taskdistill.model.student import TokenModel
from taskdistill.types import Backend

FASTEST: dict[str, Backend] = {}
"""Family of backbone to the back end in float32 that was fastest on a CPU, where that is not torch;
benchmarks/encode_backends.py measured it and docs/performance.md shows the figures. int8 is
never chosen, since it changes the vectors.
"""


def open_backend(
    name: str, model: Model, *, threads: int, calibration: Sequence[str] | None = None
) -> TokenModel:
    """Make a model ready to run in a back end.

    `calibration`: texts for int8; None for fixed ones. Raises BadInput if the name is unknown, a
    package is missing, the model cannot run there, or calibration texts have no effect.
    """
    if name not in tuple(Backend):
        raise BadInput(f"unknown back end {name!r}{did_you_mean(name, Backend)}")
    chosen = Backend(name)
    if chosen is not Backend.INT8 and calibration is not None:
        raise BadInput(
            f"calibration texts have no effect on the back end {name}; leave them out or use int8"
        )
    if chosen is Backend.AUTO:
        chosen = automatic(model)
    if chosen is Backend.INT8:
        return Int8Model(model, calibration)
    if chosen in (Backend.ONNXRUNTIME, Backend.OPENVINO):
        return GraphModel(model, chosen.value, threads)
    return model.module


def runs_on_cpu(name: str) -> bool:
    """Say whether a back end runs nowhere else.

    Returns True for every one but torch, and `auto`, which may choose torch.
    """
    return name not in (Backend.TORCH, Backend.AUTO)


def choose_place(device: str, dtype: str, backend: str) -> tuple[torch.device, torch.dtype]:
    """Choose where a model is read to, and in which arithmetic.

    `device`: see `resolve_device`; a back end that runs on CPUs only takes one by itself. Raises
    BadInput if one is not here, or the number type has no effect on the back end.
    """
    if runs_on_cpu(backend) and dtype not in (AUTO, "float32"):
        raise BadInput(
            f"dtype {dtype} has no effect on the back end {backend}, which has an arithmetic of its"
            " own; leave one of them out"
        )
    place = CPU if device == AUTO and runs_on_cpu(backend) else resolve_device(device)
    return place, resolve_dtype(dtype, place)


def automatic(model: Model) -> Backend:
    """Choose a back end by the table of measurements.

    Returns the fastest back end that gives the model's own vectors.
    """
    backbone = getattr(model.module, "backbone", None)
    if backbone is None or model.module.device.type != "cpu":
        return Backend.TORCH
    return FASTEST.get(backbone.config.model_type, Backend.TORCH)
