"""Gold scores: pairs in the wrong order cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from taskdistill.losses.term import LossTerm, PhaseSetting, TermConfig
from taskdistill.tasks import Task
from taskdistill.types import RowKind

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs


def cosent(similarities: Tensor, scores: Tensor, temperature: float = 0.05) -> Tensor:
    """CoSENT: every pair of pairs in the wrong order costs (section 5.2, the standard form).

    `similarities`: cosine of each text pair, `(B,)`. `scores`: gold score of each pair, `(B,)`.
    Returns scalar: the log of one plus the sum of exponentials of `(similarity_j - similarity_i) /
    temperature` over all pairs with `score_i > score_j`; 0 if no such pair exists.
    """
    import torch

    scaled = similarities / temperature
    differences = scaled[None, :] - scaled[:, None]
    ordered = scores[:, None] > scores[None, :]
    # The appended zero is the one in ln(1 + sum); logsumexp keeps large differences finite.
    return torch.logsumexp(torch.cat([scaled.new_zeros(1), differences[ordered]]), dim=0)


class CosentConfig(TermConfig):
    """A key of the phase."""

    in_menu: ClassVar[bool] = False
    cosent_temperature: float = Field(default=0.05, gt=0)


def _compute(config: CosentConfig, inputs: LossInputs, width: int) -> Tensor:
    assert inputs.positive_idx is not None and inputs.scores is not None
    first, second = (inputs.unit(each, width) for each in (inputs.query_idx, inputs.positive_idx))
    return cosent((first * second).sum(1), inputs.scores, config.cosent_temperature)


SCORED = (RowKind.SCORED,)
TERMS = (
    LossTerm(
        name="cosent",
        order=0,
        compute=_compute,
        config=CosentConfig,
        tasks=(Task.TEXT_MATCHING,),
        rows={"adapter": SCORED, "static": SCORED},
        needs=frozenset({"scores"}),
        phase_settings={"cosent_temperature": PhaseSetting(rows=SCORED)},
    ),
)
