"""From a recipe's phase to what the loop runs.

Batches, objective, trained weights; and the finished phase on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from taskdistill.data.batches import Batch, BatchPlan
from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput
from taskdistill.losses.registry import LOSSES, needing, task_terms
from taskdistill.model.lora import adapter_parameters, attach, lora_config
from taskdistill.model.projection import Projection
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, Stage1Config, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.tasks import TASKS, Task
from taskdistill.teacher.protocol import View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.collate import TrainBatch, collate
from taskdistill.train.context import Phase
from taskdistill.train.loss_terms import (
    check_adapter,
    check_stage1,
    stage1_weights,
    weights_for,
)
from taskdistill.train.objective import Heads, Objective
from taskdistill.train.optim import HeadSchedule
from taskdistill.types import RowKind, TeacherSide


def static_phase(settings: StaticConfig) -> PhaseConfig:
    """Write the static student's settings as a phase."""
    return PhaseConfig(
        sources=settings.sources,
        steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=0.0,
        max_length=512,
        matryoshka=settings.matryoshka,
        checkpoint_every=settings.steps,
    )


def phase_task(name: str) -> Task | None:
    """Return the task of a phase by its name."""
    return Task(name.removeprefix("adapters.")) if name.startswith("adapters.") else None


def distils(name: str, settings: PhaseConfig) -> bool:
    """Say whether a phase compares with the teacher."""
    task = phase_task(name)
    if task is None or not isinstance(settings, AdapterConfig):
        return True
    requested = weights_for(task, settings.weights)
    return bool(needing("teacher", requested)) or settings.false_negative_margin is not None


def make_plan(
    recipe: Recipe, name: str, settings: PhaseConfig, datasets: Mapping[str, Dataset]
) -> BatchPlan:
    """Decide which rows every step of a recipe's phase sees.

    Raises BadInput if a source's rows are of a kind that the task cannot use, or the recipe gives
    no weight to any of their terms.
    """
    for dataset in (datasets[source] for source, weight in settings.sources.items() if weight > 0):
        if dataset.teacher_reads is TeacherSide.NEITHER and not _learns_scores(recipe, name):
            raise BadInput(
                f"{name}: the teacher reads neither text of source {dataset.name!r}, and {name} "
                "learns from its vectors alone; "
                "leave the source out, or give the scores a weight (static.weights.cosent)"
            )
    return plan_phase(recipe.seed, name, settings, datasets)


def plan_phase(
    seed: int, name: str, settings: PhaseConfig, datasets: Mapping[str, Dataset]
) -> BatchPlan:
    """Decide which rows every step of a phase sees.

    `seed`: of the order of rows. Raises BadInput if a source's rows are of a kind that the task
    cannot use, or no term of theirs has a weight.
    """
    task = phase_task(name)
    used = [datasets[source] for source, weight in settings.sources.items() if weight > 0]
    for dataset in used:
        if task is not None and dataset.kind not in TASKS[task].row_kinds:
            allowed = ", ".join(TASKS[task].row_kinds)
            raise BadInput(
                f"{name}: source {dataset.name!r} has {dataset.kind} rows, this task learns from "
                f"{allowed}"
            )
    sizes = {source: size for source, (size, _) in settings.long_sources.items()}
    negatives = (
        settings.negatives
        if task is Task.CLASSIFICATION and isinstance(settings, AdapterConfig)
        else None
    )
    if task is Task.CLASSIFICATION and not negatives:
        raise BadInput(
            f"{name}.negatives is 0; a classification item needs at least one negative, the paper "
            "takes 7"
        )
    if task is not None and isinstance(settings, AdapterConfig):
        requested = weights_for(task, settings.weights)
        for dataset in used:
            terms = task_terms(task, dataset.kind)
            _check_contrast(name, settings, dataset, requested)
            if not requested.keys() & set(terms):
                raise BadInput(
                    f"{name}: no loss term with a weight above 0 for the {dataset.kind} rows of "
                    f"source {dataset.name!r}; "
                    f"give a weight to one of {', '.join(terms)}, or leave the source out"
                )
        check_adapter(name, settings, used, requested)
    elif isinstance(settings, Stage1Config):
        check_stage1(name, settings, used)
    weights = {dataset.name: settings.sources[dataset.name] for dataset in used}
    return BatchPlan(
        used,
        weights,
        settings.batch_size,
        seed=seed,
        label=name,
        batch_sizes=sizes,
        negatives=negatives,
    )


def _learns_scores(recipe: Recipe, name: str) -> bool:
    if name == "static":
        weights = {} if recipe.static is None else recipe.static.weights
        return any(weights[name] > 0 for name in needing("scores", weights))
    return phase_task(name) is Task.TEXT_MATCHING


def _check_contrast(
    name: str, settings: AdapterConfig, dataset: Dataset, requested: Mapping[str, float]
) -> None:
    """Refuse batches of one pair, which has no other row to be compared with."""
    size = settings.long_sources.get(dataset.name, (settings.batch_size, 0))[0]
    if size > 1 or dataset.kind is not RowKind.PAIRS:
        return
    # Hard negatives give a contrast of one pair; nothing gives a spread of one vector.
    has_hard = settings.negatives and any(row.negatives for row in dataset.rows)
    idle = set(needing("several_rows", requested))
    if has_hard:
        idle -= set(needing("candidates", requested))
    if result := sorted(idle):
        raise BadInput(
            f"{name}: a batch of 1 row of {dataset.name!r} has no other row to contrast with "
            f"({', '.join(result)}); set batch_size to 2 or more"
        )


def collator(name: str, settings: PhaseConfig) -> Any:
    """Return how a phase lays out a batch."""
    task, distil = phase_task(name), distils(name, settings)
    hard = (
        settings.negatives
        if isinstance(settings, AdapterConfig | Stage1Config) and task is not Task.CLASSIFICATION
        else 0
    )

    def prepared(batch: Batch) -> TrainBatch:
        return collate(
            batch, task=task, distil=distil, negatives=hard, distil_negatives=task is None
        )

    return prepared


def teacher_needs(
    name: str, settings: PhaseConfig, plan: BatchPlan, sources: Collection[str] | None = None
) -> dict[View, list[str]]:
    """List the texts that a phase will compare with the teacher: exactly those that its steps draw.

    `sources`: count only the batches of these sources; None counts all. Returns view to distinct
    texts, in the order of first use.
    """
    if not distils(name, settings):
        return {}
    collate_batch, result = collator(name, settings), dict[View, dict[str, None]]()
    for step in range(settings.steps):
        batch = plan.at(step)
        for view, text in (
            collate_batch(batch).teacher_texts()
            if sources is None or batch.dataset in sources
            else ()
        ):
            result.setdefault(view, {})[text] = None
    return {view: list(texts) for view, texts in result.items()}


def learned_texts(
    name: str, settings: PhaseConfig, plan: BatchPlan
) -> tuple[list[tuple[str, str]], list[str]]:
    """List the texts that a phase learns from the teacher, and those that it learns otherwise.

    Returns distinct (text, text that the teacher reads for it), in the order of first use; and the
    distinct other texts.
    """
    collate_batch, read, others = (
        collator(name, settings),
        dict[tuple[str, str], None](),
        dict[str, None](),
    )
    for step in range(settings.steps):
        prepared = collate_batch(plan.at(step))
        compared = {place for place, _ in prepared.distilled}
        for (place, _), (_, teacher_text) in zip(
            prepared.distilled, prepared.teacher_texts(), strict=True
        ):
            read[prepared.texts[place][1], teacher_text] = None
        others.update(
            dict.fromkeys(
                text for place, (_, text) in enumerate(prepared.texts) if place not in compared
            )
        )
    return list(read), list(others)


def build_stage1(
    name: str,
    settings: Stage1Config,
    model: TransformerModel,
    plan: BatchPlan,
    stores: Mapping[View, TeacherStore],
    projection: Projection | None,
    dims: Sequence[int],
) -> Phase:
    """Describe stage 1 or the long phase."""
    chosen, requested = (
        dims if settings.matryoshka else [model.embedding_dim],
        stage1_weights(name, settings.weights),
    )

    table = model.backbone.get_input_embeddings().weight
    stays = {True: settings.freeze_embeddings, False: settings.freeze_layers}
    trained = {n: p for n, p in model.backbone.named_parameters() if not stays[p is table]}
    heads = Heads(projection=projection)
    schedule = HeadSchedule(
        lr=settings.projection_lr,
        warmup=settings.projection_warmup,
        weight_decay=settings.projection_weight_decay,
    )
    return Phase(
        name=name,
        settings=settings,
        plan=plan,
        prepare=collator(name, settings),
        objective=Objective(settings, requested, chosen),
        weights=requested,
        trained=trained,
        heads=heads,
        head_schedule=schedule,
        stores=stores,
    )


def build_static(
    settings: StaticConfig,
    model: StaticModel,
    plan: BatchPlan,
    store: TeacherStore,
    dims: Sequence[int],
) -> Phase:
    """Describe the training of the static student, which has the teacher's size."""
    phase = static_phase(settings)
    chosen = dims if settings.matryoshka else [model.embedding_dim]

    weights = {term: weight for term, weight in settings.weights.items() if weight > 0}
    stores: dict[View, TeacherStore] = {"query": store, "document": store}
    return Phase(
        name="static",
        settings=phase,
        plan=plan,
        prepare=collator("static", phase),
        objective=Objective(settings, weights, chosen),
        weights=weights,
        trained={"table": model.table},
        stores=stores,
    )


def build_adapter(
    task: Task,
    settings: AdapterConfig,
    model: TransformerModel,
    plan: BatchPlan,
    stores: Mapping[View, TeacherStore],
    projection: Projection | None,
    dims: Sequence[int],
    adapter: str | None = None,
) -> tuple[Phase, LoraConfig]:
    """Attach a fresh adapter and describe its training.

    `adapter`: name of the adapter; None for that of the task.
    """
    named = adapter or task.value
    config = lora_config(
        model.backbone,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.target_modules,
    )
    attach(model.backbone, named, config)
    model.tasks.append(named)
    weights = weights_for(task, settings.weights)
    heads = Heads(projection=projection)
    learned = (
        settings.learn_temperature
        if settings.learn_temperature is not None
        else TASKS[task].learns_temperature
    )
    if learned and any(LOSSES[term].learns_temperature for term in weights):
        heads.log_temperature = nn.Parameter(torch.tensor(settings.temperature).log())
        heads.min_temperature = settings.min_temperature
    chosen = dims if settings.matryoshka else [model.embedding_dim]
    name = f"adapters.{task.value}"
    phase = Phase(
        name=name,
        settings=settings,
        plan=plan,
        prepare=collator(name, settings),
        objective=Objective(settings, weights, chosen),
        weights=weights,
        trained=dict(adapter_parameters(model.backbone, named)),
        heads=heads,
        task=named,
        stores=stores,
        needs_base=bool(needing("base", weights)),
        needs_similarities=settings.false_negative_margin is not None,
        snapshot_at=(
            None
            if settings.average is None
            else max(1, round(settings.average.earlier * settings.steps))
        ),
        train_projection=settings.train_projection,
    )
    return phase, config
