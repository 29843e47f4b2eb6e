"""Further distillation losses, each of a student's and a teacher's tensors, and what sharpens InfoNCE.

Every loss of `MENU` has one signature: student vectors `(N, D)`, teacher vectors `(N, T)` of the same texts in the same order, and named
settings. Those of `IN_TEACHER_SPACE` need D = T, the others compare relations among the texts and take any sizes. No gradient flows into the
teacher's side. None of them knows a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from taskdistill.losses.formulas import normalize, score_distill


def l2_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of unit vectors, as LEAF (arXiv 2509.12539) distils.

    Args:
        student: `(N, D)`, any length.
        teacher: `(N, D)`, any length.

    Returns:
        Scalar, the mean over the N texts of the length of the difference.
    """
    lengths: Tensor = (normalize(student) - normalize(teacher).detach()).norm(dim=1)
    return lengths.mean()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of vectors as they are, lengths included."""
    return (student - teacher.detach()).square().mean()


def similarity_matrix(student: Tensor, teacher: Tensor) -> Tensor:
    """Match the cosines among the texts (Jasper, arXiv 2412.19048).

    Returns:
        Scalar, the mean over all N x N entries of the squared difference.
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
    """Keep the order of similarities: of two pairs of texts, the teacher's closer one stays closer (Jasper), on sampled couples.

    All couples of pairs would be a matrix of (N (N - 1) / 2) squared numbers: 68 GB at N = 512. So couples are drawn.

    Args:
        student: `(N, D)`, N at least 3.
        margin: By how much the student's cosines must differ.
        generator: Source of the draw; None for torch's own.

    Returns:
        Scalar, the mean over couples of `relu(margin - (closer - farther))` in the student's cosines. Couples that the teacher holds equal
        cost nothing and count.
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
    """Relational knowledge distillation by distances (arXiv 1904.05068): Euclidean, divided by their mean, under Huber's loss.

    Args:
        student: `(N, D)`, N at least 2.
    """
    return F.smooth_l1_loss(
        _scaled_distances(normalize(student)), _scaled_distances(normalize(teacher)).detach()
    )


def rkd_angle(
    student: Tensor, teacher: Tensor, *, corners: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Relational knowledge distillation by angles (arXiv 1904.05068): the cosine at each text between two others, under Huber's loss.

    Args:
        student: `(N, D)`, N at least 3.
        corners: Texts taken as corners, drawn without replacement; all of them would take N cubed numbers.
        generator: Source of the draw; None for torch's own.

    Returns:
        Scalar, the mean over corners and pairs of different other texts.
    """
    chosen = torch.randperm(len(student), generator=generator)[:corners].to(student.device)
    keep = _other_pairs(len(student), chosen)
    got = _angles(normalize(student), chosen)[keep]
    return F.smooth_l1_loss(got, _angles(normalize(teacher), chosen)[keep].detach())


def list_kl(
    student_queries: Tensor,
    student_documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    *,
    temperature: float = 0.05,
    excluded: Tensor | None = None,
) -> Tensor:
    """KL divergence from the student's to the teacher's distribution over each query's candidate documents (KaLM, arXiv 2506.20923).

    Args:
        student_queries: Unit rows, `(B, D)`.
        student_documents: Unit rows, `(M, D)`.
        teacher_queries: Unit rows, `(B, T)`.
        teacher_documents: Unit rows, `(M, T)`.
        excluded: `(B, M)` of bool, true where a document is no candidate.

    Returns:
        Scalar: the sum over candidates of `p (log p - log q)`, p the teacher's, averaged over the B queries.
    """
    got = student_queries @ student_documents.T / temperature
    requested = (teacher_queries @ teacher_documents.T / temperature).detach()
    if excluded is not None:
        got, requested = (
            scores.masked_fill(excluded, torch.finfo(scores.dtype).min)
            for scores in (got, requested)
        )
    return F.kl_div(
        torch.log_softmax(got, 1),
        torch.log_softmax(requested, 1),
        log_target=True,
        reduction="batchmean",
    )


def score_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.05, same: Tensor | None = None
) -> Tensor:
    """KL divergence between the distributions over the other texts of a batch, seen from each text (ours, after section 7.1).

    `losses.score_distill` keeps a text's cosine with itself in its softmax; at a low temperature that one takes all the probability
    and hardly any gradient is left. Here a text is no candidate of its own, and the divergence does not fade where one candidate wins.

    Args:
        same: `(N, N)` of bool, true where two texts are one and the same to the teacher, the diagonal included; None: the diagonal alone.

    Returns:
        Scalar: the sum over candidates of `p (log p - log q)`, p the teacher's, averaged over the N texts; 0 if no text has a candidate.
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


def hidden_distance(student: Tensor, teacher: Tensor, layers: list[int] | None = None) -> Tensor:
    """Match the hidden states of chosen layers (TinyBERT, arXiv 1909.10351), each scaled to unit length.

    It needs a teacher at work beside the student; stored vectors hold no layers.

    Args:
        student: `(S, N, D)`: states of the student's layers.
        teacher: `(L, N, D)`: states of the teacher's layers.
        layers: The teacher's layer for each of the student's; None spreads them evenly, the last with the last.

    Returns:
        Scalar, the mean squared distance over layers and tokens.
    """
    chosen = (
        layers
        if layers is not None
        else [((i + 1) * len(teacher)) // len(student) - 1 for i in range(len(student))]
    )
    return (normalize(student) - normalize(teacher[chosen]).detach()).square().sum(-1).mean()


def sharpened_info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None = None,
    *,
    focal: float = 0.0,
    hardness: float = 0.0,
    hard: Tensor | None = None,
    mixed: Tensor | None = None,
) -> Tensor:
    """InfoNCE that looks harder at what is hard; with every setting at zero it is `losses.info_nce`.

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(M, D)`.
        positives: Row of each query's positive, `(B,)`.
        excluded: `(B, M)` of bool, true where a candidate is no negative.
        focal: Exponent g of the weight `(1 - p)^g` of a query, p the probability of its positive (KaLM); the weights carry gradients.
        hardness: Factor a of the weight `exp(a similarity)` of a hard negative in the sum, without gradient (EmbeddingGemma).
        hard: `(B, M)` of bool, true where a document is a hard negative of the query's own; needed with `hardness`.
        mixed: Further negatives of each query's own, unit rows, `(B, S, D)`, from `mixed_negatives`.
    """
    similarities = queries @ documents.T
    logits = similarities / temperature
    if hardness and hard is not None:
        logits = logits + hardness * similarities.detach() * hard
    if excluded is not None:
        logits = logits.masked_fill(excluded.scatter(1, positives[:, None], False), -torch.inf)
    if mixed is not None:
        mixed_logits = torch.einsum("bd,bsd->bs", queries, mixed)
        weighted = mixed_logits / temperature + (
            hardness * mixed_logits.detach() if hardness else 0.0
        )
        present = mixed.detach().abs().sum(-1) > 0
        logits = torch.cat([logits, weighted.masked_fill(~present, -torch.inf)], 1)
    log_p = torch.log_softmax(logits, 1).gather(1, positives[:, None])[:, 0]
    return (-((1 - log_p.exp()).clamp_min(0) ** focal) * log_p).mean() if focal else -log_p.mean()


def mixed_negatives(
    documents: Tensor,
    owners: Tensor,
    count: int,
    *,
    mixes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make negatives between negatives: of each query, two of its hard negatives mixed by a draw from Beta(2, 2) (KaLM).

    Args:
        documents: Hard negatives, unit rows, `(H, D)`.
        owners: Query of each, `(H,)`.
        mixes: Negatives made for each query.
        generator: Source of the draws; None for torch's own.

    Returns:
        Unit rows `(B, mixes, D)`; zero where a query has fewer than two hard negatives. Gradients flow into both sides of a mix.
    """
    out = documents.new_zeros(count, mixes, documents.shape[1])
    rows, places = list[Tensor](), list[tuple[int, int]]()
    for query in range(count):
        own_rows = torch.nonzero(owners == query)[:, 0]
        if len(own_rows) < 2:
            continue
        for mix in range(mixes):
            first, second = own_rows[
                torch.randperm(len(own_rows), generator=generator)[:2].to(own_rows.device)
            ]
            share = _beta(generator)
            rows.append(share * documents[first] + (1 - share) * documents[second])
            places.append((query, mix))
    if not rows:
        return out
    at = torch.tensor(places, device=out.device)
    return out.index_put((at[:, 0], at[:, 1]), normalize(torch.stack(rows)))


def _beta(generator: torch.Generator | None) -> float:
    """Draw from Beta(2, 2), which is the middle one of three uniform numbers."""
    return float(torch.rand(3, generator=generator).median())


def _scaled_distances(unit: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    result: Tensor = (unit[rows] - unit[columns]).norm(dim=1)
    return result / result.mean().clamp_min(torch.finfo(unit.dtype).tiny)


def _angles(unit: Tensor, corners: Tensor) -> Tensor:
    """Return `(corners, N, N)` cosines at each corner between the directions to two texts."""
    away = normalize(unit[None] - unit[corners][:, None])
    return away @ away.transpose(1, 2)


def _other_pairs(count: int, corners: Tensor) -> Tensor:
    """Return where corner and both ends are three different texts, each pair of ends once: `(corners, N, N)` of bool."""
    places = torch.arange(count, device=corners.device)
    other = places[None] != corners[:, None]
    return other[:, :, None] & other[:, None, :] & (places[:, None] < places[None, :])


MENU: dict[str, Callable[..., Tensor]] = {
    "l2": l2_distance,
    "mse": squared_error,
    "score_softmax": score_distill,
    "score_kl": score_kl,
    "similarity": similarity_matrix,
    "relative": relative_similarity,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
}
"""Name of a loss term to the loss, of the student's and the teacher's vectors of the same texts."""

IN_TEACHER_SPACE = ("l2", "mse")
"""Terms that are taken after the projection into the teacher's space."""
