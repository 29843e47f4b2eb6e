"""A step of each kind with everything that it needs: model, batch, objective, targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from helpers import tiny
from torch import Tensor, nn

from taskdistill.data.batches import Batch, ClassificationItem
from taskdistill.data.rows import Pair, ScoredPair, Text
from taskdistill.losses.streaming import streaming_info_nce
from taskdistill.losses.terms.contrastive import info_nce, sign_straight_through
from taskdistill.losses.terms.cosent import cosent
from taskdistill.losses.terms.regularizers import gor
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.losses.terms.similarity import score_distill
from taskdistill.losses.vectors import normalize, over_prefixes
from taskdistill.model.lora import adapter_parameters
from taskdistill.model.projection import Projection
from taskdistill.model.student import TransformerModel
from taskdistill.recipe.phases import AdapterConfig, Stage1Config
from taskdistill.tasks import Task
from taskdistill.train import gradients as step
from taskdistill.train.batch_loss import Share
from taskdistill.train.collate import TrainBatch, collate, false_negatives
from taskdistill.train.context import Phase
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.loss_terms import weights_for
from taskdistill.train.objective import Heads, Objective, Targets
from taskdistill.train.workers import workers
from taskdistill.types import RowKind

DIMS = (8, 16, 32)

TEACHER = 24

STAGE1 = Stage1Config(sources={"made": 1}, steps=1, batch_size=6, lr=1e-3)

EVERY_TERM = {
    Task.RETRIEVAL: {"info_nce", "distill", "gor"},
    Task.TEXT_MATCHING: {"cosent"},
    Task.CLUSTERING: {"distill"},
    Task.CLASSIFICATION: {"info_nce", "relational"},
}


@dataclass
class Case:
    """A model, a batch and what a step needs of them."""

    model: TransformerModel
    ids: list[np.ndarray]
    objective: Callable[[Tensor, TrainBatch, Targets, Heads], tuple[dict[str, Tensor], float]]
    weights: dict[str, float]
    prepared: TrainBatch
    targets: Targets
    heads: Heads
    trained: dict[str, nn.Parameter] = field(default_factory=dict)

    def loss(self, vectors: Tensor) -> tuple[dict[str, Tensor], float]:
        return self.objective(vectors, self.prepared, self.targets, self.heads)

    def gradients(
        self, *, keep_tokens: int, micro: int = 24, threads: int = 1
    ) -> tuple[dict[str, Tensor], tuple[dict, float, float]]:
        self.clear()
        with workers(threads) as made:
            told = step.gradients(
                self.model,
                self.ids,
                StepLoss(terms=self.loss, weights=self.weights),
                list(self.trained.values()),
                Passes(seed=11, micro_batch_tokens=micro, keep_tokens=keep_tokens),
                threads=made,
            )
        return self.collect(), told

    def clear(self) -> None:
        for parameter in [*self.model.parameters(), *self.heads.named().values()]:
            parameter.grad = None

    def collect(self) -> dict[str, Tensor]:
        return {
            name: p.grad.clone()
            for name, p in (self.trained | self.heads.named()).items()
            if p.grad is not None
        }


def batch(task: Task | None, rng: np.random.Generator) -> Batch:
    """A batch of each kind in which texts occur twice, as they do in real ones."""

    def text() -> str:
        return tiny.sentence(str(rng.choice(list(tiny.TOPICS))), rng, int(rng.integers(3, 9)))

    same = text()
    if task is Task.TEXT_MATCHING:
        kind, rows = (
            RowKind.SCORED,
            [ScoredPair(text(), same if n == 2 else text(), n % 3 / 2) for n in range(6)],
        )
    elif task is Task.CLASSIFICATION:
        kind = RowKind.LABELLED
        rows = [
            ClassificationItem(
                anchor=text(),
                positive=text(),
                negatives=(same, text(), text()),
                label="ab"[n % 2],
                negative_labels=("c", "a" if n % 2 else "b", "c"),
            )
            for n in range(4)
        ]
    elif task is Task.CLUSTERING:
        kind, rows = RowKind.TEXTS, [Text(text()) for _ in range(7)]
    else:
        kind, rows = RowKind.PAIRS, [Pair(text(), text(), (same, text())) for _ in range(6)]
    return Batch(
        step=0, index=0, dataset="made", kind=kind, rows=tuple(rows), row_ids=np.arange(len(rows))
    )


def case(
    family: str, task: Task | None, dtype: torch.dtype = torch.float64, dropout: float = 0.1
) -> Case:
    """A task's step with every loss term, or stage 1 on the whole backbone for no task."""
    rng = np.random.default_rng(1)
    model = tiny.student(family)
    settings = AdapterConfig(
        sources={"made": 1},
        steps=1,
        batch_size=6,
        lr=1e-3,
        dropout=dropout,
        negatives=2,
        false_negative_margin=0.0,
    )
    prepared = collate(batch(task, rng), task=task, distil=True, negatives=2)
    tokenizer = tiny.TextTokenizer(tiny.tokenizer())
    ids = tokenizer.ids(
        [text for _, text in prepared.texts], prompt="document: ", max_length=32
    ).ids
    torch.manual_seed(2)
    targets = Targets(
        torch.randn(len(prepared.distilled), TEACHER, dtype=dtype),
        base=torch.randn(len(ids), 32, dtype=dtype),
    )
    if task is Task.RETRIEVAL:
        targets.teacher_similarities = rng.random((6, 6))
    heads = Heads(
        projection=Projection(32, TEACHER).to(dtype),
        log_temperature=nn.Parameter(torch.tensor(0.1, dtype=dtype).log()),
    )
    if task is None:
        objective, weights = Objective(STAGE1, {"distill": 1.0}, DIMS), {}
        model.to(dtype)
        trained = dict(model.backbone.named_parameters())
    else:
        objective, weights = Objective(settings, weights_for(task, {}), DIMS), weights_for(task, {})
        tiny.add_adapter(model, task.value, dropout=dropout)
        model.to(dtype)
        trained = adapter_parameters(model.backbone, task.value)
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    model.train()
    model.select(None if task is None else task.value)
    return Case(model, ids, objective, weights, prepared, targets, heads, trained)


def every_loss(
    vectors: Tensor, prepared: TrainBatch, targets: Targets, heads: Heads
) -> tuple[dict[str, Tensor], float]:
    """Every loss there is, of one batch of pairs, over every prefix."""
    first, second = torch.from_numpy(prepared.query_idx), torch.from_numpy(prepared.positive_idx)
    documents = torch.cat([second, torch.from_numpy(prepared.negative_idx)])
    masked = torch.from_numpy(false_negatives(prepared, targets.teacher_similarities, 0.0))
    scores, tau = torch.linspace(0, 1, len(first), dtype=vectors.dtype), heads.log_temperature.exp()
    own = torch.arange(len(first))

    def unit(dim: int) -> Tensor:
        return normalize(vectors[:, :dim])

    def contrast(dim: int, code: Callable[[Tensor], Tensor] = normalize) -> Tensor:
        made = code(vectors[:, :dim])
        return info_nce(made[first], made[documents], own, tau, excluded=masked)

    def streamed(dim: int) -> Tensor:
        return streaming_info_nce(
            unit(dim)[first], unit(dim)[documents], own, tau, excluded=masked, chunk=4
        )

    terms = {
        "info_nce": contrast,
        "streaming": streamed,
        "binary": lambda dim: contrast(dim, sign_straight_through),
        "cosent": lambda dim: cosent((unit(dim)[first] * unit(dim)[second]).sum(1), scores),
        "gor": lambda dim: gor(unit(dim)[first]) + gor(unit(dim)[second]),
        "relational": lambda dim: relational_distance(unit(dim), normalize(targets.base)),
        "scores": lambda dim: score_distill(unit(dim), normalize(targets.base), 0.1),
    }
    found = {name: over_prefixes(term, DIMS) for name, term in terms.items()}
    distilled, _ = Objective(STAGE1, {"distill": 1.0}, DIMS)(vectors, prepared, targets, heads)
    return found | distilled, 0.0


def everything(family: str, dtype: torch.dtype = torch.float64) -> Case:
    """An adapter's step with every loss at once, dropout on."""
    made = case(family, Task.RETRIEVAL, dtype)
    made.objective, made.weights = every_loss, {"relational": 3.0, "gor": 0.5}
    return made


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest gradient."""
    assert found.keys() == wanted.keys() and found
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


def stage_1_share(case: Case) -> Share | None:
    """How the loss of stage 1 is taken of a part of a batch."""
    phase = Phase(
        name="stage1",
        settings=STAGE1,
        plan=None,
        prepare=None,
        objective=case.objective,
        weights={"distill": 1.0},
        trained=case.trained,
        heads=case.heads,
    )
    return phase.partial_loss(case.prepared, case.targets)
