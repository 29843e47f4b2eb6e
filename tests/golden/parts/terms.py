"""Value and gradient of every loss term at fixed tensors, as hexadecimal numbers and sums."""

from __future__ import annotations

from typing import Any

import torch
from golden import entry
from golden.compare import TRAINED
from golden.summaries import hexadecimal, summarize
from golden.workshop import Workshop

TOLERANCE = TRAINED
ROWS, NEGATIVES, WIDTH, TEACHER = 6, 5, 12, 10


def tensors() -> dict[str, torch.Tensor]:
    """Random tensors, drawn on the CPU in float32."""
    source = torch.Generator().manual_seed(2026)

    def unit(*shape: int) -> torch.Tensor:
        return entry.normalize(torch.randn(*shape, generator=source))

    return {
        "queries": unit(ROWS, WIDTH),
        "documents": unit(ROWS + NEGATIVES, WIDTH),
        "teacher queries": unit(ROWS, TEACHER),
        "teacher documents": unit(ROWS + NEGATIVES, TEACHER),
        "same space": unit(ROWS, WIDTH),
        "raw": torch.randn(ROWS, WIDTH, generator=source),
        "layers": torch.randn(2, ROWS, WIDTH, generator=source),
        "teacher layers": torch.randn(6, ROWS, WIDTH, generator=source),
        "scores": torch.tensor([1.0, 0.5, 0.0, 0.5, 0.9, 0.1]),
        "excluded": torch.rand(ROWS, ROWS + NEGATIVES, generator=source) < 0.2,
    }


def cases() -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Name of the case to the term, its arguments (names of tensors, or values) and its
    settings.
    """
    positives = torch.arange(ROWS)
    same = torch.eye(ROWS, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    contrast = ("queries", "documents", positives, 0.05)
    hard = torch.zeros(ROWS, ROWS + NEGATIVES, dtype=torch.bool)
    hard[0, ROWS], hard[1, ROWS + 1] = True, True
    pair = ("queries", "teacher queries")
    found: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
        "distill": ("distill", ("raw", "same space"), {}),
        "distill, sum": ("distill", ("raw", "same space", "sum"), {}),
        "cosent": ("cosent", ("similarities", "scores", 0.05), {}),
        "info_nce, masked": ("info_nce", (*contrast, "excluded"), {}),
        "info_nce by row chunks": ("info_nce by row chunks", (*contrast, "excluded", 4), {}),
        "teacher_nce": ("teacher_nce", ("queries", "same space", positives, 0.05, same), {}),
        "relational": ("relational", ("queries", "teacher queries"), {}),
        "relational, mean without gradient": (
            "relational",
            ("queries", "teacher queries", False),
            {},
        ),
        "list_kl": (
            "list_kl",
            ("queries", "documents", "teacher queries", "teacher documents"),
            {"temperature": 0.1},
        ),
        "list_kl, masked": (
            "list_kl",
            ("queries", "documents", "teacher queries", "teacher documents"),
            {"excluded": "excluded"},
        ),
        "l2": ("l2", ("raw", "same space"), {}),
        "mse": ("mse", ("raw", "same space"), {}),
        "hidden": ("hidden", ("layers", "teacher layers"), {}),
        "score_kl, one text twice": ("score_kl", pair, {"same": same}),
        "relative": ("relative", pair, {"couples": 64, "seed": 1}),
        "rkd_angle": ("rkd_angle", pair, {"corners": 4, "seed": 2}),
    }
    for name in ("info_nce", "binary_info_nce", "int8_info_nce"):
        found[name] = (name, contrast, {})
    for name in ("gor", "gor_hinged", "centre"):
        found[name] = (name, ("queries",), {})
    for name in ("score_softmax", "score_kl", "similarity", "rkd_distance"):
        found[name] = (name, pair, {})
    for apart in (False, True):
        found[f"distill of several teachers, apart {apart}"] = (
            "distill of several teachers",
            ("raw", "several", [7, 5]),
            {"apart": apart},
        )
    for name, settings in {
        "focal": {"focal": 2.0},
        "hard": {"hardness": 3.0, "hard": hard},
        "plain": {},
        "mixed": {"mixed": "mixed"},
    }.items():
        found[f"info_nce sharpened, {name}"] = ("info_nce sharpened", contrast, settings)
    return found


def record(workshop: Workshop) -> dict[str, Any]:
    """Every case, and each of a prefix mean."""
    return {name: _value(*case) for name, case in cases().items()} | {
        "distill over prefixes": _prefixes()
    }


def _value(term: str, given: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Any]:
    here = tensors()
    leaves = {
        name: tensor.clone().requires_grad_()
        for name, tensor in here.items()
        if tensor.is_floating_point()
    }
    known: dict[str, Any] = {**here, **leaves}
    if "similarities" in given:
        known["similarities"] = (leaves["queries"] * leaves["same space"]).sum(1)
    if "several" in given:
        several = here["same space"].clone()
        several[2, :7] = torch.nan
        known["several"] = several
    settings = dict(settings)
    if settings.get("mixed") == "mixed":
        owners = torch.tensor([0, 0, 0, 3, 3])
        known["mixed"] = entry.mixed_negatives(
            leaves["documents"][ROWS:],
            owners,
            ROWS,
            mixes=2,
            generator=torch.Generator().manual_seed(4),
        )
    if "seed" in settings:
        settings["generator"] = torch.Generator().manual_seed(settings.pop("seed"))
    settings = {
        key: known.get(value, value) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    value = entry.LOSSES[term](
        *(known.get(each, each) if isinstance(each, str) else each for each in given), **settings
    )
    value.backward()
    gradients = {
        name: summarize(leaf.grad.numpy()) for name, leaf in leaves.items() if leaf.grad is not None
    }
    return {"value": hexadecimal(float(value.detach())), "gradients": gradients}


def _prefixes() -> dict[str, Any]:
    here = tensors()
    student = here["raw"].clone().requires_grad_()

    def prefix(dim: int) -> torch.Tensor:
        return entry.LOSSES["distill"](student[:, :dim], here["same space"][:, :dim])

    value = entry.over_prefixes(prefix, (4, 8, WIDTH))
    value.backward()
    assert student.grad is not None
    return {
        "value": hexadecimal(float(value.detach())),
        "gradients": {"raw": summarize(student.grad.numpy())},
    }
