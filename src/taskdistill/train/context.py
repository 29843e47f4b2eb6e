"""What a phase is made of, and what all phases of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.data.batches import Batch, BatchPlan
from taskdistill.errors import WorkFailed
from taskdistill.losses.registry import LOSSES
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.recipe.phases import PhaseConfig
from taskdistill.teacher.protocol import View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.arithmetic import Arithmetic
from taskdistill.train.batch_loss import Share
from taskdistill.train.collate import TrainBatch
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.log import Log
from taskdistill.train.loss_terms import weight_at
from taskdistill.train.objective import Heads, Targets, Terms, term_config
from taskdistill.train.optim import (
    HeadSchedule,
)
from taskdistill.train.validation import (
    Validation,
)
from taskdistill.train.workers import WorkerPool

LossOfBatch = Callable[[Tensor, TrainBatch, Targets, Heads], tuple[Terms, float]]
"""An `Objective`, or what stands around one."""

OnStep = Callable[[dict[str, Any]], None]


class Interrupted(WorkFailed):
    """The user asked to stop; everything so far is saved."""


@dataclass(kw_only=True)
class Phase:
    """Everything that one phase needs, beside the model and the disk."""

    name: str
    settings: PhaseConfig
    plan: BatchPlan
    prepare: Callable[[Batch], TrainBatch]
    objective: LossOfBatch
    weights: Mapping[str, float]
    trained: dict[str, nn.Parameter]
    heads: Heads = field(default_factory=Heads)
    head_schedule: HeadSchedule = field(default_factory=HeadSchedule)
    task: str | None = None
    stores: Mapping[View, TeacherStore] = field(default_factory=dict)
    further: Sequence[Mapping[View, TeacherStore]] = ()
    """Stores of further teachers, in the order of the recipe."""
    readers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Data set to the places of the teachers that read it, where there are several."""
    frozen_rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Trained matrix to `(rows,)` of bool: the rows that stay as they are."""
    needs_base: bool = False
    needs_similarities: bool = False
    snapshot_at: int | None = None
    train_projection: bool = True
    starts_at: int = 0
    """Step of the plan at which the phase begins, where it goes on with another phase's batches."""
    publish: Callable[[], None] = lambda: None
    """Carries the weights into the model that others read, where this one's are divided among
    processes.
    """

    def moving_heads(self) -> dict[str, nn.Parameter]:
        """Return the heads that this phase trains.

        Returns name to parameter; without the projection where it is kept as it was.
        """
        return {
            n: p
            for n, p in self.heads.named().items()
            if self.train_projection or not n.startswith("projection.")
        }

    def weights_at(self, step: int) -> dict[str, float]:
        """Return the weights of the terms at one step. `step`: step of the phase, from 0."""
        return weight_at(self.weights, self.settings, step)

    def partial_loss(
        self, prepared: TrainBatch, targets: Targets, weights: Mapping[str, float] | None = None
    ) -> Share | None:
        """Return how the loss is taken of a part of a batch, where it is a sum over its texts.

        `weights`: term to weight at this step; None for those of the recipe. Returns from the
        vectors of some texts and their places to their part of the weighted loss; None if a term
        is no such sum.
        """
        weights = self.weights if weights is None else weights
        reductions = dict[str, str]()
        for name in weights:
            term = LOSSES.get(name)
            if term is None or term.additive is None:
                return None
            reductions[name] = term.additive(term_config(term, self.settings))
        count = len(prepared.distilled)

        def part(vectors: Tensor, rows: np.ndarray) -> Tensor:
            place = {int(row): i for i, row in enumerate(rows)}
            chosen = [i for i, (row, _) in enumerate(prepared.distilled) if row in place]
            if not chosen:
                return 0.0 * vectors.sum()
            some = replace(
                prepared,
                distilled=[
                    (place[row], view) for row, view in (prepared.distilled[i] for i in chosen)
                ],
                teacher_text_idx=[prepared.teacher_text_idx[i] for i in chosen],
            )
            assert targets.teacher is not None
            terms, _ = self.objective(vectors, some, Targets(targets.teacher[chosen]), self.heads)
            shares = [
                term
                * (
                    weights[name]
                    if reductions[name] == "sum"
                    else weights[name] * len(chosen) / count
                )
                for name, term in terms.items()
            ]
            return torch.stack(shares).sum()

        return part


@dataclass(kw_only=True)
class TrainContext:
    """What all phases of a run share."""

    tokenizer: TextTokenizer
    prompts: Mapping[str, str]
    seed: int
    threads: WorkerPool
    log: Log
    meta: dict[str, Any]
    on_step: OnStep
    should_stop: Callable[[], bool]
    thread_count: int
    note: Callable[[str], None]
    processes: ProcessGroup = SINGLE
    during: Validation | None = None
    profile: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    """Number types of the passes."""
