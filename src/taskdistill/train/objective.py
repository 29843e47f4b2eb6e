"""Objectives: one function per task, from the vectors of a batch to named loss terms.

Paper, sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.losses.registry import CONTRASTS, LOSSES, SPREADS, TEACHER_TERMS, task_terms
from taskdistill.losses.term import normalize, over_prefixes
from taskdistill.losses.terms.contrastive import info_nce
from taskdistill.losses.terms.cosent import cosent
from taskdistill.losses.terms.embedding import embedding_distance, teachers_distance
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.tasks import TASKS, Task
from taskdistill.train.arithmetic import to_device
from taskdistill.train.collate import TrainBatch, false_negatives
from taskdistill.train.loss_terms import refuse_layers, sharpened, teacher_terms
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
        result = (
            {}
            if self.projection is None
            else {f"projection.{name}": p for name, p in self.projection.named_parameters()}
        )
        return (
            result
            if self.log_temperature is None
            else result | {"log_temperature": self.log_temperature}
        )


@dataclass(slots=True)
class Targets:
    """What a batch is compared with, as tensors of the running step."""

    teacher: Tensor | None = None
    """Teacher vectors of `TrainBatch.distilled`, `(n, T)`; of several teachers side by side, not a
    number where one has none."""
    teacher_similarities: np.ndarray | None = None
    """Teacher cosines of queries with positives `(B, B)`, for masking."""
    base: Tensor | None = None
    """Vectors of every text without adapter, `(texts, D)`, for the relational term."""


def weights_for(task: Task, weights: Mapping[str, float]) -> dict[str, float]:
    """Complete a recipe's loss weights with the paper's.

    Raises BadInput if a term is not one of the task's.
    """
    refuse_layers(f"adapters.{task.value}", weights)
    known = task_terms(task)
    for name in weights:
        if name not in known:
            raise BadInput(
                f"adapters.{task.value}.weights names {name!r}, which this task does not "
                f"have{did_you_mean(name, known)}"
            )
    return {
        name: weight for name, weight in ({**TASKS[task].losses, **weights}).items() if weight > 0
    }


def distill(
    vectors: Tensor,
    prepared: TrainBatch,
    targets: Targets,
    heads: Heads,
    dims: Sequence[int],
    reduction: str = "mean",
) -> Tensor:
    """Embedding distillation over every prefix, each through its slice of the projection.

    `reduction`: `mean` over the texts or `sum`.
    """
    assert targets.teacher is not None
    chosen = vectors[to_device(prepared.compared(), vectors.device)]
    target = targets.teacher

    def one(dim: int) -> Tensor:
        prefix = normalize(chosen[:, :dim])
        projected = prefix if heads.projection is None else heads.projection(prefix)
        if heads.widths:
            return teachers_distance(
                projected,
                target,
                heads.widths,
                apart=heads.apart,
                reduction="sum" if reduction == "sum" else "mean",
            )
        requested = target if heads.projection is not None else target[:, :dim]
        return embedding_distance(projected, requested, "sum" if reduction == "sum" else "mean")

    return over_prefixes(one, dims)


def pairs(
    vectors: Tensor,
    prepared: TrainBatch,
    targets: Targets,
    heads: Heads,
    dims: Sequence[int],
    settings: AdapterConfig,
    weights: Mapping[str, float],
) -> tuple[Terms, float]:
    """Terms of a batch of pairs or triplets.

    Retrieval, and text-matching without scores (5.1, 5.2).
    """
    assert prepared.positive_idx is not None
    terms: Terms = {}
    device = vectors.device
    first, second = to_device(prepared.query_idx, device), to_device(prepared.positive_idx, device)
    masked = 0.0
    if weights.keys() & set(CONTRASTS):
        excluded = false_negatives(
            prepared,
            targets.teacher_similarities,
            settings.false_negative_margin,
            others=settings.negatives_of_others,
        )
        masked = float(excluded.mean())
        mask = to_device(excluded, device) if excluded.any() else None
        candidates = (
            second
            if prepared.negative_idx is None
            else torch.cat([second, to_device(prepared.negative_idx, device)])
        )
        positives = torch.arange(len(first), device=device)
        tau = temperature(heads, settings)
        for name in CONTRASTS:
            shape = LOSSES[name].shape
            if name in weights and shape is not None:

                def contrast(dim: int, shape: Callable[[Tensor], Tensor] = shape) -> Tensor:
                    queries, documents = (
                        shape(vectors[first, :dim]),
                        shape(vectors[candidates, :dim]),
                    )
                    if settings.sharpen.enabled:
                        return sharpened(
                            queries, documents, positives, tau, mask, prepared, settings.sharpen
                        )
                    return info_nce(queries, documents, positives, tau, mask)

                terms[name] = over_prefixes(contrast, dims)
    if "distill" in weights:
        terms["distill"] = distill(vectors, prepared, targets, heads, dims)
    for name in SPREADS:
        if name in weights:

            def both_sides(
                dim: int, spread: Callable[[Tensor], Tensor] = LOSSES[name].formula
            ) -> Tensor:
                return spread(normalize(vectors[first, :dim])) + spread(
                    normalize(vectors[second, :dim])
                )

            terms[name] = over_prefixes(both_sides, dims)
    if "relational" in weights:
        terms["relational"] = relational(vectors, targets, dims, settings)
    return terms | compared(vectors, prepared, targets, heads, dims, settings, weights), masked


def compared(
    vectors: Tensor,
    prepared: TrainBatch,
    targets: Targets,
    heads: Heads,
    dims: Sequence[int],
    settings: PhaseConfig,
    weights: Mapping[str, float],
) -> Terms:
    """Terms of the menu that compare with the teacher, beside `distill`."""
    names = [name for name in TEACHER_TERMS if name in weights]
    if not names or not prepared.distilled:
        return {}
    assert targets.teacher is not None
    return teacher_terms(
        vectors,
        prepared,
        targets.teacher,
        heads.projection,
        dims,
        settings,
        names,
        widths=heads.widths,
    )


def relational(
    vectors: Tensor,
    targets: Targets,
    dims: Sequence[int],
    settings: AdapterConfig,
    places: Tensor | None = None,
) -> Tensor:
    """Hold the distances among the texts of a batch to those of the base without adapter (5.4).

    `places`: which texts, and how often; None for each once.
    """
    assert targets.base is not None
    student, base = (
        (vectors, targets.base) if places is None else (vectors[places], targets.base[places])
    )

    def relate(dim: int) -> Tensor:
        return relational_distance(
            normalize(student[:, :dim]), normalize(base[:, :dim]), settings.relational_mean_gradient
        )

    return over_prefixes(relate, dims)


def graded(
    vectors: Tensor,
    prepared: TrainBatch,
    targets: Targets,
    dims: Sequence[int],
    settings: AdapterConfig | StaticConfig,
    weights: Mapping[str, float],
) -> Terms:
    """CoSENT of a batch with gold scores (5.2); such a batch has no distillation term."""
    assert prepared.positive_idx is not None and prepared.scores is not None
    first, second, scores = (
        to_device(each, vectors.device)
        for each in (prepared.query_idx, prepared.positive_idx, prepared.scores)
    )

    def one(dim: int) -> Tensor:
        cosines = (normalize(vectors[first, :dim]) * normalize(vectors[second, :dim])).sum(1)
        return cosent(cosines, scores, settings.cosent_temperature)

    terms = {"cosent": over_prefixes(one, dims)} if "cosent" in weights else {}
    if "relational" in weights and isinstance(settings, AdapterConfig):
        terms["relational"] = relational(vectors, targets, dims, settings)
    return terms


def classification(
    vectors: Tensor,
    prepared: TrainBatch,
    targets: Targets,
    heads: Heads,
    dims: Sequence[int],
    settings: AdapterConfig,
    weights: Mapping[str, float],
) -> tuple[Terms, float]:
    """Bidirectional InfoNCE with label masking, and the relational term (5.4)."""
    assert prepared.positive_idx is not None and prepared.negative_idx is not None
    assert prepared.labels is not None and prepared.negative_labels is not None
    terms: Terms = {}
    device = vectors.device
    anchors, positives = (
        to_device(prepared.query_idx, device),
        to_device(prepared.positive_idx, device),
    )
    documents = torch.cat([positives, to_device(prepared.negative_idx, device)])
    diagonal = torch.arange(len(anchors), device=device)
    same_d = same_a = None
    masked = 0.0
    if settings.mask_same_label:
        labels = torch.from_numpy(prepared.labels)
        all_labels = torch.cat([labels, torch.from_numpy(prepared.negative_labels)])
        same_d, same_a = (labels[:, None] == others[None, :] for others in (all_labels, labels))
        masked = float(
            (same_d.sum() - len(labels)) / same_d.numel()
        )  # counted on the CPU: a card would have to be waited for
        same_d, same_a = same_d.to(device), same_a.to(device)
    if "info_nce" in weights:
        tau = temperature(heads, settings)

        def contrast(dim: int) -> Tensor:
            unit = normalize(vectors[:, :dim])
            forward = info_nce(unit[anchors], unit[documents], diagonal, tau, same_d)
            backward = info_nce(unit[positives], unit[anchors], diagonal, tau, same_a)
            return forward + backward

        terms["info_nce"] = over_prefixes(contrast, dims)
    if "relational" in weights:
        terms["relational"] = relational(
            vectors, targets, dims, settings, torch.cat([anchors, documents])
        )
    return terms, masked


def adapter_objective(
    task: Task, settings: AdapterConfig, dims: Sequence[int]
) -> Callable[[Tensor, TrainBatch, Targets, Heads], tuple[Terms, float]]:
    """Return the objective of a task."""
    requested = weights_for(task, settings.weights)

    def objective(
        vectors: Tensor, prepared: TrainBatch, targets: Targets, heads: Heads
    ) -> tuple[Terms, float]:
        if prepared.batch.kind is RowKind.LABELLED:
            return classification(vectors, prepared, targets, heads, dims, settings, requested)
        if task is Task.CLUSTERING:
            terms = (
                {"distill": distill(vectors, prepared, targets, heads, dims)}
                if "distill" in requested
                else {}
            )
            return (
                terms | compared(vectors, prepared, targets, heads, dims, settings, requested),
                0.0,
            )
        if prepared.scores is not None:
            return graded(vectors, prepared, targets, dims, settings, requested), 0.0
        return pairs(vectors, prepared, targets, heads, dims, settings, requested)

    return objective


def temperature(heads: Heads, settings: AdapterConfig) -> Tensor | float:
    """Return the temperature of InfoNCE.

    Learned as a logarithm and held above a floor, or fixed (section 11.9).
    """
    if heads.log_temperature is None:
        return settings.temperature
    learned = heads.log_temperature.exp()
    # The floor is added as a constant: a clamp would have no gradient below it, and the temperature
    # would stay there for ever.
    return learned + (settings.min_temperature - learned.detach()).clamp_min(0)
