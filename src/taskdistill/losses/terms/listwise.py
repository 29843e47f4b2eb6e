"""Rankings of the candidates of a batch, matched to the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from taskdistill.losses.term import EVERY_ROW, PAIR_ROWS, LossTerm, TermConfig
from taskdistill.losses.terms.contrastive import info_nce
from taskdistill.losses.vectors import normalize
from taskdistill.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs

PAIR_TASKS = (Task.RETRIEVAL, Task.TEXT_MATCHING)


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
    import torch
    import torch.nn.functional as F

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


class ListConfig(TermConfig):
    """Keys of `menu`."""

    list_temperature: float = Field(default=0.05, gt=0, description="Of list_kl")


def _compute_list(config: ListConfig, inputs: LossInputs, width: int) -> Tensor:
    """Compare each query's distribution over the documents of the batch with one teacher's."""
    import torch

    assert inputs.compared_idx is not None and inputs.teacher is not None
    places = inputs.compared_idx
    order = torch.arange(len(places), device=places.device)
    if inputs.known is not None:
        order, places = order[inputs.known], places[inputs.known]
    # Queries come first, then the positives, then hard negatives where they are compared.
    is_query = order < len(inputs.query_idx)
    queries, listed = is_query.nonzero()[:, 0], (~is_query).nonzero()[:, 0]
    if len(queries) < 1 or len(listed) < 2:
        return 0.0 * inputs.vectors.sum()
    student = normalize(inputs.vectors[:, :width])
    return list_kl(
        student[places[queries]],
        student[places[listed]],
        inputs.teacher[queries],
        inputs.teacher[listed],
        temperature=config.list_temperature,
    )


class TeacherContrastConfig(TermConfig):
    """Keys of `menu`, or of the static phase."""

    nce_temperature: float = Field(default=0.05, gt=0, description="Of teacher_nce")


def compute_teacher_nce(config: TeacherContrastConfig, inputs: LossInputs, width: int) -> Tensor:
    """InfoNCE of each text against the teacher's vectors of the batch (ours).

    A cosine alone lets all vectors drift towards the mean of the teacher's; here a text has to be
    nearer to its own teacher vector than to those of the other texts. Texts for which the teacher
    read the same one are no negatives of each other.
    """
    import torch

    student, teacher = inputs.in_one_space(width)
    if inputs.project is not None:
        student = normalize(student)
    return info_nce(
        student,
        normalize(teacher),
        torch.arange(len(student), device=student.device),
        config.nce_temperature,
        excluded=inputs.same_read,
    )


TERMS = (
    LossTerm(
        name="list_kl",
        order=18,
        compute=_compute_list,
        config=ListConfig,
        tasks=PAIR_TASKS,
        rows={"adapter": PAIR_ROWS, "base": PAIR_ROWS},
        needs=frozenset({"teacher"}),
        by_teacher=True,
    ),
    LossTerm(
        name="teacher_nce",
        order=19,
        compute=compute_teacher_nce,
        config=TeacherContrastConfig,
        tasks=PAIR_TASKS,
        rows={"adapter": PAIR_ROWS, "base": EVERY_ROW, "static": EVERY_ROW},
        needs=frozenset({"teacher", "projection", "several_texts"}),
        by_teacher=True,
    ),
)
