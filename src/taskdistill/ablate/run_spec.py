"""One training of an experiment: which arm, from which seed, how far, and its place on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from taskdistill.ablate.arms import arm_of
from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.phases import (
    Hyperparameters,
    phase_lengths,
)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training.

    Attributes:
        kind: `run`, `trial`, or `first` for the distillation that D->DC, D->C and D->D share.
        steps: Of the whole arm; a `first` cell trains its first phase of them.
        trial: Whether a `first` cell is that of the trials.
    """

    kind: Literal["run", "trial", "first"]
    arm: str
    seed: int
    steps: int
    point: Hyperparameters
    first: Hyperparameters | None = None
    number: int = 0
    trial: bool = False

    @property
    def key(self) -> str:
        """Its folder below the experiment's."""
        slug = arm_of(self.arm).slug
        if self.kind == "first":
            return f"first/{'trials' if self.trial else f'seed-{self.seed}'}"
        return (
            f"trials/{slug}/{self.number}"
            if self.kind == "trial"
            else f"runs/{slug}/seed-{self.seed}"
        )

    def needs(self) -> TrainingRun | None:
        """Return the cell whose end it starts from. Returns the shared first phase, or None."""
        if self.kind == "first" or self.first is None:
            return None
        return TrainingRun(
            kind="first",
            arm="D->D",
            seed=self.seed,
            steps=self.steps,
            point=self.first,
            first=self.first,
            trial=self.kind == "trial",
        )

    def trained_steps(self, context: ExperimentContext) -> int:
        """Return the steps that it trains itself. `context`: for the share of a second phase."""
        lengths = phase_lengths(arm_of(self.arm), self.steps, context.experiment)
        return (
            lengths[0]
            if self.kind == "first"
            else sum(lengths) - (lengths[0] if self.first is not None else 0)
        )

    def settings(self) -> dict[str, Any]:
        """Return what decides its weights as plain data; seeds tell the cells of trials apart from
        others.
        """
        return {name: value for name, value in asdict(self).items() if name != "trial"}

    def meta(self, context: ExperimentContext) -> dict[str, str]:
        """Say what must be the same where it is continued."""
        return {
            "experiment": context.experiment.digest(),
            "cell": (
                hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()
            ),
            "data": context.data_hash,
        }
