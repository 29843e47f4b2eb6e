"""The objective of a phase: every term that the recipe names, of one batch, over every prefix.

Paper, sections 4 and 5. What a term is stands in `losses/terms`; no term is known here by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.losses.inputs import LossInputs
from taskdistill.losses.registry import phase_terms
from taskdistill.losses.term import AnyTerm, PhaseKind, TermConfig
from taskdistill.losses.vectors import over_prefixes
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.train.arithmetic import to_device
from taskdistill.train.collate import TrainBatch, false_negatives
from taskdistill.types import RowKind

Terms = dict[str, Tensor]


@dataclass(slots=True, kw_only=True)
class Heads:
    """What is trained beside the model.

    The projection, and the logarithm of a learned temperature.
    """

    projection: Projection | None = None
    log_temperature: nn.Parameter | None = None
    widths: tuple[int, ...] = ()
    """Size of each teacher's vectors, where there are several."""
    apart: bool = False
    """Whether each of several teachers has a cosine of its own."""
    min_temperature: float = 0.0
    """A learned temperature is held at or above this."""

    @property
    def temperature(self) -> float | None:
        """The learned temperature as the loss uses it; None if none is learned."""
        if self.log_temperature is None:
            return None
        return max(float(self.log_temperature.detach().exp()), self.min_temperature)

    def hold_temperature(self) -> None:
        """Put a learned temperature back on its floor."""
        if self.log_temperature is not None and self.min_temperature > 0:
            with torch.no_grad():
                self.log_temperature.clamp_(min=math.log(self.min_temperature))

    def named(self) -> dict[str, nn.Parameter]:
        """Return the parameters under the names of checkpoints."""
        named = {} if self.projection is None else dict(self.projection.named_parameters())
        parameters = {f"projection.{name}": parameter for name, parameter in named.items()}
        if self.log_temperature is not None:
            parameters["log_temperature"] = self.log_temperature
        return parameters


@dataclass(slots=True)
class Targets:
    """What a batch is compared with, as tensors of the running step."""

    teacher: Tensor | None = None
    """Teacher vectors of `TrainBatch.distilled`, `(n, T)`; of several teachers side by side, not a
    number where one has none."""
    teacher_similarities: np.ndarray | None = None
    """Teacher cosines of queries with positives `(B, B)`, for masking."""
    base: Tensor | None = None
    """Vectors of every text without adapter, `(texts, D)`."""


def phase_kind(settings: PhaseConfig | StaticConfig) -> PhaseKind:
    """Say what a phase trains."""
    if isinstance(settings, StaticConfig):
        return "static"
    return "adapter" if isinstance(settings, AdapterConfig) else "base"


def term_config(term: AnyTerm, settings: PhaseConfig | StaticConfig) -> TermConfig:
    """Read a term's settings from a phase: its keys there, else those of its `menu`."""
    holders = [settings] if isinstance(settings, StaticConfig) else [settings.menu, settings]
    config: TermConfig = term.config.model_construct(
        **{
            key: getattr(holder, key)
            for holder in holders
            for key in term.config.model_fields
            if key in type(holder).model_fields
        }
    )
    return config


class Objective:
    """From the vectors of a batch to named terms, each over every prefix size, and to the masked
    share of a contrast.
    """

    def __init__(
        self,
        settings: PhaseConfig | StaticConfig,
        weights: Mapping[str, float],
        dims: Sequence[int],
    ) -> None:
        """Take the terms that `weights` names; how they are weighed is the loop's."""
        self.settings, self.phase, self.dims = settings, phase_kind(settings), dims
        self.terms = phase_terms(self.phase, weights)
        self.configs = {term.name: term_config(term, settings) for term in self.terms}
        self.contrasts = any("candidates" in term.needs for term in self.terms)

    def __call__(
        self, vectors: Tensor, prepared: TrainBatch, targets: Targets, heads: Heads
    ) -> tuple[Terms, float]:
        """Take every term of the batch's rows. `vectors`: pooled, `(texts, D)`."""
        inputs, masked = self._inputs(vectors, prepared, targets, heads)
        return {
            term.name: self._value(term, inputs)
            for term in self.terms
            if term.takes(self.phase, inputs.kind)
            and ("teacher" not in term.needs or prepared.distilled)
        }, masked

    def _value(self, term: AnyTerm, inputs: LossInputs) -> Tensor:
        """Take one term over every prefix, of each teacher by itself where it is taken so."""
        config = self.configs[term.name]
        compute = term.compute
        assert compute is not None
        # The static student has the teacher's size, and takes its vectors as they are stored.
        apart = term.by_teacher and self.phase != "static"
        copies = inputs.by_teacher() if apart else [replace(inputs)]
        values = [over_prefixes(partial(compute, config, each), self.dims) for each in copies]
        return torch.stack(values).mean() if values else 0.0 * inputs.vectors.sum()

    def _inputs(
        self, vectors: Tensor, prepared: TrainBatch, targets: Targets, heads: Heads
    ) -> tuple[LossInputs, float]:
        device = vectors.device

        def there(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else to_device(values, device)

        excluded, masked = None, 0.0
        temperature: Tensor | float = 1.0
        if isinstance(self.settings, AdapterConfig):
            excluded, masked = self._excluded(prepared, targets)
            if self.contrasts:
                temperature = contrast_temperature(heads, self.settings)
        return LossInputs(
            vectors=vectors,
            kind=prepared.batch.kind,
            step=prepared.batch.step,
            query_idx=to_device(prepared.query_idx, device),
            positive_idx=there(prepared.positive_idx),
            negative_idx=there(prepared.negative_idx),
            negative_owner=there(prepared.negative_owner),
            scores=there(prepared.scores),
            excluded=None if excluded is None else excluded.to(device, non_blocking=True),
            temperature=temperature,
            compared_idx=to_device(prepared.compared(), device),
            read_idx=torch.tensor(prepared.teacher_text_idx, dtype=torch.int64, device=device),
            teacher=targets.teacher,
            teacher_widths=heads.widths,
            teachers_apart=heads.apart,
            base=targets.base,
            project=heads.projection,
        ), masked

    def _excluded(self, prepared: TrainBatch, targets: Targets) -> tuple[Tensor | None, float]:
        """Return which candidates are no negatives, `(B, B + M)`, and their share."""
        settings = self.settings
        assert isinstance(settings, AdapterConfig)
        if prepared.labels is not None and prepared.negative_labels is not None:
            if not settings.mask_same_label:
                return None, 0.0
            labels = torch.from_numpy(prepared.labels)
            every = torch.cat([labels, torch.from_numpy(prepared.negative_labels)])
            same = labels[:, None] == every[None, :]
            # Counted on the CPU: a card would have to be waited for.
            return same, float((same.sum() - len(labels)) / same.numel())
        if not self.contrasts or prepared.batch.kind is not RowKind.PAIRS:
            return None, 0.0
        excluded = false_negatives(
            prepared,
            targets.teacher_similarities,
            settings.false_negative_margin,
            others=settings.negatives_of_others,
        )
        return torch.from_numpy(excluded) if excluded.any() else None, float(excluded.mean())


def contrast_temperature(heads: Heads, settings: AdapterConfig) -> Tensor | float:
    """Return the temperature of InfoNCE.

    Learned as a logarithm and held above a floor, or fixed (section 11.9).
    """
    if heads.log_temperature is None:
        return settings.temperature
    learned = heads.log_temperature.exp()
    # The floor is added as a constant: a clamp would have no gradient below it, and the temperature
    # would stay there for ever.
    return learned + (settings.min_temperature - learned.detach()).clamp_min(0)
