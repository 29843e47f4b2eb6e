"""Relations among the texts of a batch, matched to the teacher's.

Student and teacher may have different sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from taskdistill.losses.term import ALL_ROWS, LossTerm, normalize
from taskdistill.tasks import Task


def score_distill(student: Tensor, teacher: Tensor, temperature: float = 0.02) -> Tensor:
    """Match softmaxed similarities among the texts of one side.

    Section 7.1; sum this over both sides. `student`: unit rows, `(B, D)`. `teacher`: unit rows of
    the same texts, `(B, T)`. Returns scalar: the sum over candidates of squared probability
    differences, averaged over the B rows.
    """
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
    chosen = torch.randperm(len(student), generator=generator)[:corners].to(student.device)
    keep = _other_pairs(len(student), chosen)
    got = _angles(normalize(student), chosen)[keep]
    return F.smooth_l1_loss(got, _angles(normalize(teacher), chosen)[keep].detach())


def _scaled_distances(unit: Tensor) -> Tensor:
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
    places = torch.arange(count, device=corners.device)
    other = places[None] != corners[:, None]
    return other[:, :, None] & other[:, None, :] & (places[:, None] < places[None, :])


def _among_texts(
    name: str,
    order: int,
    formula: Callable[..., Tensor],
    options: dict[str, str] | None = None,
    *,
    draws: bool = False,
) -> LossTerm:
    return LossTerm(
        name=name,
        order=order,
        formula=formula,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING),
        of_base=True,
        rows=ALL_ROWS,
        needs=frozenset({"teacher"}),
        options=options or {},
        draws=draws,
    )


TERMS = (
    _among_texts("score_softmax", 12, score_distill, {"temperature": "score_temperature"}),
    _among_texts("score_kl", 13, score_kl, {"temperature": "kl_temperature"}),
    _among_texts("similarity", 14, similarity_matrix),
    _among_texts(
        "relative",
        15,
        relative_similarity,
        {"margin": "relative_margin", "couples": "couples"},
        draws=True,
    ),
    _among_texts("rkd_distance", 16, rkd_distance),
    _among_texts("rkd_angle", 17, rkd_angle, {"corners": "corners"}, draws=True),
)
