"""Rankings of the candidates of a batch, matched to the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from taskdistill.losses.term import PAIR_ROWS, LossTerm, normalize, over_prefixes
from taskdistill.losses.terms.contrastive import info_nce
from taskdistill.tasks import Task


def list_kl(
    student_queries: Tensor,
    student_documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    *,
    temperature: float = 0.05,
    excluded: Tensor | None = None,
) -> Tensor:
    """KL divergence over each query's candidate documents (KaLM, arXiv 2506.20923).

    `student_queries`: unit rows, `(B, D)`. `student_documents`: unit rows, `(M, D)`.
    `teacher_queries`: unit rows, `(B, T)`. `teacher_documents`: unit rows, `(M, T)`. `excluded`:
    `(B, M)` of bool, true where a document is no candidate. Returns scalar: the sum over candidates
    of `p (log p - log q)`, p the teacher's, averaged over the B queries.
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


def teacher_info_nce(
    chosen: Tensor,
    read: Tensor,
    target: Tensor,
    project: Callable[[Tensor], Tensor] | None,
    dims: Sequence[int],
    temperature: float,
) -> Tensor:
    """InfoNCE of each text against the teacher's vectors of the batch, over every prefix (ours).

    A cosine alone lets all vectors drift towards the mean of the teacher's; here a text has to be
    nearer to its own teacher vector than to those of the other texts. Texts for which the teacher
    read the same one are no negatives of each other. `chosen`: pooled vectors of the compared
    texts, `(n, D)`. `read`: number of the text that the teacher read for each, `(n,)`. `target`:
    the teacher's vectors, `(n, T)`.
    """
    positives = torch.arange(len(read), device=chosen.device)
    same = read[:, None] == read[None, :]

    def one(dim: int) -> Tensor:
        student = normalize(chosen[:, :dim])
        student, teacher = (
            (student, target[:, :dim]) if project is None else (normalize(project(student)), target)
        )
        return info_nce(student, normalize(teacher), positives, temperature, same)

    return over_prefixes(one, dims)


TERMS = (
    LossTerm(
        name="list_kl",
        order=18,
        formula=list_kl,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING),
        of_base=True,
        rows=PAIR_ROWS,
        needs=frozenset({"teacher"}),
        options={"temperature": "list_temperature"},
    ),
    LossTerm(
        name="teacher_nce",
        order=19,
        formula=teacher_info_nce,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING),
        of_base=True,
        rows=PAIR_ROWS,
        needs=frozenset({"teacher", "projection"}),
        options={"temperature": "nce_temperature"},
    ),
)
