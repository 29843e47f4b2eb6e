"""Distances between student and teacher vectors of the same texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskdistill.losses.term import EVERY_ROW, UNSCORED, LossTerm, PhaseSetting, TermConfig
from taskdistill.losses.vectors import normalize
from taskdistill.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs

TASKS = (Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING)


def embedding_distance(
    projected: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cosine distance to the teacher's vectors, `1 - cos` (section 4.2).

    `projected`: Student vectors in the teacher's space, `(N, T)`, any length. `targets`: teacher
    vectors, `(N, T)`, any length. `reduction`: `mean` over the N texts, or the `sum` that the paper
    prints.
    """
    distances = 1 - (normalize(projected) * normalize(targets)).sum(-1)
    return distances.mean() if reduction == "mean" else distances.sum()


def teachers_distance(
    projected: Tensor,
    targets: Tensor,
    widths: Sequence[int],
    *,
    apart: bool,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cosine distance to several teachers, of which some may lack some texts (ours).

    `projected`: Student vectors in the teachers' spaces side by side, `(N, T1 + T2 + ...)`.
    `apart`: whether each teacher has a cosine of its own, of which the mean is taken; otherwise the
    unit vectors side by side are one target. `reduction`: `mean` over the N texts, or `sum`.
    Returns scalar. Only the parts that a text has count; a text that has none gives 0.
    """
    import torch

    student_parts, teacher_parts = (
        torch.split(projected, list(widths), dim=1),
        torch.split(targets, list(widths), dim=1),
    )
    known = torch.stack([~part.isnan().any(1) for part in teacher_parts], dim=1)
    unit = [normalize(part.nan_to_num()) for part in teacher_parts]
    if apart:
        cosines = torch.stack(
            [
                (normalize(student) * one).sum(1)
                for student, one in zip(student_parts, unit, strict=True)
            ],
            dim=1,
        )
        cosine = (cosines * known).sum(1) / known.sum(1).clamp_min(1)
    else:
        mask = known.repeat_interleave(torch.tensor(list(widths), device=known.device), dim=1)
        cosine = (normalize(projected * mask) * normalize(torch.cat(unit, dim=1) * mask)).sum(1)
    distances = (1 - cosine) * known.any(1)
    return distances.mean() if reduction == "mean" else distances.sum()


def l2_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of unit vectors, as LEAF (arXiv 2509.12539) distils.

    `student`: `(N, D)`, any length. `teacher`: `(N, D)`, any length. Returns scalar, the mean over
    the N texts of the length of the difference.
    """
    lengths: Tensor = (normalize(student) - normalize(teacher).detach()).norm(dim=1)
    return lengths.mean()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of vectors as they are, lengths included."""
    return (student - teacher.detach()).square().mean()


def hidden_distance(student: Tensor, teacher: Tensor, layers: list[int] | None = None) -> Tensor:
    """Match unit hidden states of chosen layers (TinyBERT, arXiv 1909.10351).

    It needs a teacher at work beside the student; stored vectors hold no layers. `student`: `(S, N,
    D)`: states of the student's layers. `teacher`: `(L, N, D)`: states of the teacher's layers.
    `layers`: the teacher's layer for each of the student's; None spreads them evenly, the last with
    the last. Returns scalar, the mean squared distance over layers and tokens.
    """
    chosen = (
        layers
        if layers is not None
        else [((i + 1) * len(teacher)) // len(student) - 1 for i in range(len(student))]
    )
    return (normalize(student) - normalize(teacher[chosen]).detach()).square().sum(-1).mean()


class DistillConfig(TermConfig):
    """A key of a phase that trains the base."""

    in_menu: ClassVar[bool] = False
    reduction: Literal["mean", "sum"] = Field(
        default="mean",
        description="Over the batch's texts; the paper prints a sum (sections 4.2, 11.5)",
    )


def compute_distill(config: DistillConfig, inputs: LossInputs, width: int) -> Tensor:
    """Embedding distillation of a prefix through its slice of the projection (section 5.5)."""
    student, teacher = inputs.in_one_space(width)
    if inputs.teacher_widths:
        return teachers_distance(
            student,
            teacher,
            inputs.teacher_widths,
            apart=inputs.teachers_apart,
            reduction=config.reduction,
        )
    return embedding_distance(student, teacher, config.reduction)


def _regression(
    name: str, order: int, formula: Callable[[Tensor, Tensor], Tensor]
) -> LossTerm[TermConfig]:
    def compute(config: TermConfig, inputs: LossInputs, width: int) -> Tensor:
        student, teacher = inputs.in_one_space(width)
        return formula(student, normalize(teacher) if inputs.project is None else teacher)

    return LossTerm(
        name=name,
        order=order,
        compute=compute,
        config=TermConfig,
        tasks=TASKS,
        rows={"adapter": UNSCORED, "base": EVERY_ROW},
        needs=frozenset({"teacher", "projection"}),
        by_teacher=True,
    )


TERMS = (
    LossTerm(
        name="distill",
        order=2,
        compute=compute_distill,
        config=DistillConfig,
        tasks=TASKS,
        rows={"adapter": UNSCORED, "base": EVERY_ROW, "static": EVERY_ROW},
        needs=frozenset({"teacher", "projection"}),
        additive=lambda config: config.reduction,
        phase_settings={"train_projection": PhaseSetting(rows=UNSCORED)},
    ),
    _regression("l2", 10, l2_distance),
    _regression("mse", 11, squared_error),
    LossTerm(
        name="hidden",
        config=TermConfig,
        refusal=(
            "compares layers of student and teacher; the teacher store holds final vectors only. "
            "Take rkd_distance or similarity, or `losses.terms.embedding.hidden_distance` in a "
            "loop of your own"
        ),
    ),
)
