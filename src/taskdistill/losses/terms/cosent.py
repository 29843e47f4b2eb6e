"""Gold scores: pairs in the wrong order cost."""

from __future__ import annotations

import torch
from torch import Tensor

from taskdistill.losses.term import LossTerm
from taskdistill.tasks import Task
from taskdistill.types import RowKind


def cosent(similarities: Tensor, scores: Tensor, temperature: float = 0.05) -> Tensor:
    """CoSENT: every pair of pairs in the wrong order costs (section 5.2, the standard form).

    `similarities`: cosine of each text pair, `(B,)`. `scores`: gold score of each pair, `(B,)`.
    Returns scalar: the log of one plus the sum of exponentials of `(similarity_j - similarity_i) /
    temperature` over all pairs with `score_i > score_j`; 0 if no such pair exists.
    """
    scaled = similarities / temperature
    differences = scaled[None, :] - scaled[:, None]
    ordered = scores[:, None] > scores[None, :]
    # The appended zero is the one in ln(1 + sum); logsumexp keeps large differences finite.
    return torch.logsumexp(torch.cat([scaled.new_zeros(1), differences[ordered]]), dim=0)


TERMS = (
    LossTerm(
        name="cosent",
        order=0,
        formula=cosent,
        tasks=(Task.TEXT_MATCHING,),
        rows=(RowKind.SCORED,),
    ),
)
