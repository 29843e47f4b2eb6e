"""What an adapter from few rows is made of, and how it is trained where nothing is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput
from taskdistill.model.rope import rope_theta
from taskdistill.model.student import TransformerModel
from taskdistill.recipe.load import explain
from taskdistill.recipe.phases import AdapterConfig
from taskdistill.tasks import Task
from taskdistill.train.phases import distils
from taskdistill.types import RowKind

KINDS: dict[Task, tuple[RowKind, ...]] = {
    Task.RETRIEVAL: (RowKind.PAIRS,),
    Task.TEXT_MATCHING: (RowKind.SCORED, RowKind.PAIRS),
    Task.CLUSTERING: (RowKind.LABELLED,),
    Task.CLASSIFICATION: (RowKind.LABELLED,),
}
"""Rows that an adapter of a task can be trained on without a teacher; the first kind is the usual
one.
"""

TEXTS_PER_STEP = 160
EPOCHS = 10
STEPS = (60, 400)
"""Fewest and most steps that are chosen by themselves."""

DEFAULTS: dict[RowKind, dict[str, Any]] = {
    RowKind.LABELLED: {
        "weights": {"relational": 1.0},
        "negatives": 1,
        "temperature": 0.1,
        "lr": 3e-3,
    },
    RowKind.SCORED: {"weights": {"info_nce": 0.0, "distill": 0.0, "relational": 5.0}, "lr": 2e-4},
    RowKind.PAIRS: {
        "weights": {"distill": 0.0, "relational": 5.0},
        "negatives": 1,
        "learn_temperature": False,
        "temperature": 0.05,
        "lr": 2e-4,
    },
}
"""What differs from a recipe's adapter: no teacher is asked, the distances of the base hold the
adapter instead.
"""

STRENGTH: dict[RowKind, float] = {RowKind.LABELLED: 0.7, RowKind.SCORED: 1.0, RowKind.PAIRS: 1.0}
"""Share of the trained change that stays. A few labelled rows are learned by heart; part of the way
back to the base generalises better, as interpolated weights do in WiSE-FT (arXiv 2109.01903).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptRequest:
    """Which adapter is trained on which rows."""

    data: Path
    task: Task
    name: str | None = None
    kind: RowKind | None = None
    replace: bool = False
    dev: Path | None = None
    columns: Mapping[str, str] | None = None
    settings: Mapping[str, Any] | None = None
    """Fields of a recipe's adapter that override what is chosen."""
    seed: int = 17
    strength: float | None = None

    @property
    def adapter(self) -> str:
        """Name of the adapter."""
        return self.name or self.task.value

    @property
    def row_kind(self) -> RowKind:
        """Kind of the rows, refused where the task cannot learn from it."""
        if self.kind is None:
            return KINDS[self.task][0]
        if self.kind not in KINDS[self.task]:
            raise BadInput(
                f"a {self.task} adapter is trained on {' or '.join(KINDS[self.task])} rows, "
                f"not on {self.kind}"
            )
        return self.kind

    @property
    def scale(self) -> float:
        """Share of the trained change that stays, above 0 and at most 1."""
        usual = STRENGTH[self.row_kind]
        if self.strength is None:
            return usual
        if not 0 < self.strength <= 1:
            raise BadInput(
                f"strength is {self.strength}; give the share of the trained change to keep, "
                "above 0 and at most 1"
            )
        return self.strength

    @property
    def objective(self) -> Task:
        """Labeled rows are learned from as in classification, whatever task the adapter serves."""
        return Task.CLASSIFICATION if self.row_kind is RowKind.LABELLED else self.task


def choose_settings(
    request: AdaptRequest, data: Dataset, module: TransformerModel
) -> AdapterConfig:
    """Choose how an adapter is trained on few rows."""
    kind, overrides = request.row_kind, request.settings or {}
    usual = dict(DEFAULTS[kind])
    if request.task is Task.TEXT_MATCHING and kind is RowKind.PAIRS:
        usual["weights"] = {"cosent": 0.0, **usual["weights"]}
    negatives = int(overrides.get("negatives", usual.get("negatives", 0)))
    texts = 2 + negatives if kind is not RowKind.SCORED else 2
    size = int(overrides.get("batch_size", max(2, min(len(data.rows), TEXTS_PER_STEP // texts))))
    steps = max(STEPS[0], min(STEPS[1], round(EPOCHS * len(data.rows) / size)))
    fields = {
        "sources": {data.name: 1.0},
        "steps": steps,
        "batch_size": size,
        "checkpoint_every": 50,
        **usual,
        **overrides,
    }
    fields["weights"] = {**usual["weights"], **overrides.get("weights", {})}
    try:
        settings = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        raise BadInput(
            "settings of the adapter: " + "; ".join(explain(error, AdapterConfig)[:5])
        ) from None
    if distils(f"adapters.{request.objective.value}", settings):
        raise BadInput(
            "weights.distill and false_negative_margin need a teacher, which `adapt` does not ask; "
            "train a recipe for that"
        )
    if settings.average is not None:
        raise BadInput("average has no effect here; train a recipe for that")
    if settings.rope_theta is not None and rope_theta(module.backbone) is None:
        raise BadInput("rope_theta has no effect: this backbone has no rotary positions; remove it")
    return settings
