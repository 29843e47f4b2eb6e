"""Relations among the texts of a batch, matched to the teacher's.

Student and teacher may have different sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from taskdistill.config import Positive
from taskdistill.losses.term import EVERY_ROW, UNSCORED, C, LossTerm, TermConfig
from taskdistill.losses.vectors import normalize, step_rng
from taskdistill.tasks import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs


def score_distill(student: Tensor, teacher: Tensor, temperature: float = 0.02) -> Tensor:
    """Match softmaxed similarities among the texts of one side.

    Section 7.1; sum this over both sides. `student`: unit rows, `(B, D)`. `teacher`: unit rows of
    the same texts, `(B, T)`. Returns scalar: the sum over candidates of squared probability
    differences, averaged over the B rows.
    """
    import torch

    got = torch.softmax(student @ student.T / temperature, dim=1)
    requested = torch.softmax(teacher @ teacher.T / temperature, dim=1).detach()
    return (got - requested).square().sum(1).mean()


def score_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.05, same: Tensor | None = None
) -> Tensor:
    """KL divergence between the distributions over the other texts of a batch, seen from each text.

    Ours, after section 7.1.

    `losses.score_distill` keeps a text's cosine with itself in its softmax; at a low temperature
    that one takes all the probability and hardly any gradient is left. Here a text is no candidate
    of its own, and the divergence does not fade where one candidate wins. `same`: `(N, N)` of bool,
    true where two texts are one and the same to the teacher, the diagonal included; None: the
    diagonal alone. Returns scalar: the sum over candidates of `p (log p - log q)`, p the teacher's,
    averaged over the N texts; 0 if no text has a candidate.
    """
    import torch
    import torch.nn.functional as F

    s, t = normalize(student), normalize(teacher).detach()
    excluded = torch.eye(len(s), dtype=torch.bool, device=s.device) if same is None else same
    rows = ~excluded.all(1)
    if not bool(rows.any()):
        return 0.0 * student.sum()
    lowest = torch.finfo(s.dtype).min
    got, requested = ((x @ x.T / temperature).masked_fill(excluded, lowest)[rows] for x in (s, t))
    return F.kl_div(
        torch.log_softmax(got, 1),
        torch.log_softmax(requested, 1),
        log_target=True,
        reduction="batchmean",
    )


def similarity_matrix(student: Tensor, teacher: Tensor) -> Tensor:
    """Match the cosines among the texts (Jasper, arXiv 2412.19048).

    Returns scalar, the mean over all N x N entries of the squared difference.
    """
    s, t = normalize(student), normalize(teacher).detach()
    return (s @ s.T - t @ t.T).square().mean()


def relative_similarity(
    student: Tensor,
    teacher: Tensor,
    *,
    margin: float = 0.015,
    couples: int = 4096,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep the order of similarities.

    Of two pairs of texts, the teacher's closer one stays closer (Jasper), on sampled couples.

    All couples of pairs would be a matrix of (N (N - 1) / 2) squared numbers: 68 GB at N = 512. So
    couples are drawn. `student`: `(N, D)`, N at least 3. `margin`: by how much the student's
    cosines must differ. `generator`: source of the draw; None for torch's own. Returns scalar, the
    mean over couples of `relu(margin - (closer - farther))` in the student's cosines. Couples that
    the teacher holds equal cost nothing and count.
    """
    import torch
    import torch.nn.functional as F

    s, t = normalize(student), normalize(teacher).detach()
    rows, columns = torch.triu_indices(len(s), len(s), offset=1, device=s.device)
    sampled = torch.randint(len(rows), (2, couples), generator=generator).to(rows.device)
    one, two = sampled[0], sampled[1]

    def cosines(vectors: Tensor, pairs: Tensor) -> Tensor:
        return (vectors[rows[pairs]] * vectors[columns[pairs]]).sum(1)

    requested = torch.sign(cosines(t, one) - cosines(t, two))
    gap = requested * (cosines(s, one) - cosines(s, two))
    return (F.relu(margin - gap) * requested.abs()).mean()


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational knowledge distillation by distances (arXiv 1904.05068).

    Euclidean, divided by their mean, under Huber's loss. `student`: `(N, D)`, N at least 2.
    """
    import torch.nn.functional as F

    return F.smooth_l1_loss(
        _scaled_distances(normalize(student)), _scaled_distances(normalize(teacher)).detach()
    )


def rkd_angle(
    student: Tensor, teacher: Tensor, *, corners: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Relational knowledge distillation by angles (arXiv 1904.05068).

    The cosine at each text between two others, under Huber's loss. `student`: `(N, D)`, N at least
    3. `corners`: texts taken as corners, drawn without replacement; all of them would take N cubed
    numbers. `generator`: source of the draw; None for torch's own. Returns scalar, the mean over
    corners and pairs of different other texts.
    """
    import torch
    import torch.nn.functional as F

    chosen = torch.randperm(len(student), generator=generator)[:corners].to(student.device)
    keep = _other_pairs(len(student), chosen)
    got = _angles(normalize(student), chosen)[keep]
    return F.smooth_l1_loss(got, _angles(normalize(teacher), chosen)[keep].detach())


def _scaled_distances(unit: Tensor) -> Tensor:
    import torch

    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    result: Tensor = (unit[rows] - unit[columns]).norm(dim=1)
    return result / result.mean().clamp_min(torch.finfo(unit.dtype).tiny)


def _angles(unit: Tensor, corners: Tensor) -> Tensor:
    """Return `(corners, N, N)` cosines at each corner between the directions to two texts."""
    away = normalize(unit[None] - unit[corners][:, None])
    return away @ away.transpose(1, 2)


def _other_pairs(count: int, corners: Tensor) -> Tensor:
    """Return where corner and both ends are three different texts, each pair of ends once.

    `(corners, N, N)` of bool.
    """
    import torch

    places = torch.arange(count, device=corners.device)
    other = places[None] != corners[:, None]
    return other[:, :, None] & other[:, None, :] & (places[:, None] < places[None, :])


class SoftmaxConfig(TermConfig):
    """Keys of `menu`."""

    score_temperature: float = Field(default=0.02, gt=0, description="Of score_softmax")


def _score_softmax(config: SoftmaxConfig, inputs: LossInputs, width: int) -> Tensor:
    return score_distill(*inputs.unit_compared(width), config.score_temperature)


class KLConfig(TermConfig):
    """Keys of `menu`."""

    kl_temperature: float = Field(default=0.05, gt=0, description="Of score_kl")


def _score_kl(config: KLConfig, inputs: LossInputs, width: int) -> Tensor:
    return score_kl(
        *inputs.unit_compared(width), temperature=config.kl_temperature, same=inputs.same_read
    )


def _similarity(config: TermConfig, inputs: LossInputs, width: int) -> Tensor:
    return similarity_matrix(*inputs.unit_compared(width))


class RelativeConfig(TermConfig):
    """Keys of `menu`."""

    relative_margin: float = Field(
        default=0.015, ge=0, description="Of relative: by how much cosines must differ"
    )
    couples: Positive = Field(
        default=4096, description="Of relative: couples of pairs drawn a step"
    )


def _relative(config: RelativeConfig, inputs: LossInputs, width: int) -> Tensor:
    return relative_similarity(
        *inputs.unit_compared(width),
        margin=config.relative_margin,
        couples=config.couples,
        generator=step_rng(inputs.step),
    )


def _rkd_distance(config: TermConfig, inputs: LossInputs, width: int) -> Tensor:
    return rkd_distance(*inputs.unit_compared(width))


class AngleConfig(TermConfig):
    """Keys of `menu`."""

    corners: Positive = Field(
        default=32, description="Of rkd_angle: texts taken as corners, drawn a step"
    )


def _rkd_angle(config: AngleConfig, inputs: LossInputs, width: int) -> Tensor:
    return rkd_angle(
        *inputs.unit_compared(width), corners=config.corners, generator=step_rng(inputs.step)
    )


def _among_texts(
    name: str, order: int, compute: Callable[[C, LossInputs, int], Tensor], config: type[C]
) -> LossTerm[C]:
    return LossTerm(
        name=name,
        order=order,
        compute=compute,
        config=config,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING),
        rows={"adapter": UNSCORED, "base": EVERY_ROW},
        needs=frozenset({"teacher"}),
        by_teacher=True,
    )


TERMS = (
    _among_texts("score_softmax", 12, _score_softmax, SoftmaxConfig),
    _among_texts("score_kl", 13, _score_kl, KLConfig),
    _among_texts("similarity", 14, _similarity, TermConfig),
    _among_texts("relative", 15, _relative, RelativeConfig),
    _among_texts("rkd_distance", 16, _rkd_distance, TermConfig),
    _among_texts("rkd_angle", 17, _rkd_angle, AngleConfig),
)
