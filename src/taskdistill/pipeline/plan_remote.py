"""The plan of a run whose data or models are on the Hub.

From row counts and lengths, and from architectures without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskdistill.data.sources import HUB
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.backbone import EMBEDDED
from taskdistill.model.flops import STATE_BYTES, ModelSize, adapter_size, size_of
from taskdistill.model.sketch import sketch
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.check import check_sets, check_student, sketch_origin, sketch_teacher
from taskdistill.pipeline.costs import CARD_REACHED, CARDS, card_budget, card_memory
from taskdistill.pipeline.setup import as_phase, matryoshka_dims, shape_backbone
from taskdistill.pipeline.source_sizes import (
    BYTES_PER_TOKEN,
    FIELDS,
    SourceSize,
    source_sizes,
    used_sources,
)
from taskdistill.progress import Progress
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.tasks import TASKS, Task
from taskdistill.train.budget import Budget
from taskdistill.train.phases import distils, phase_task
from taskdistill.types import Pooling, RowKind


def is_remote(recipe: Recipe) -> bool:
    """Say whether data or models are on the Hub, so that a plan cannot read everything."""
    models = [
        recipe.student.init,
        *([recipe.teacher.model] if recipe.teacher.kind == "local" else []),
    ]
    hub = [
        model
        for model in models
        if model not in ("teacher", "config", EMBEDDED)
        and not Path(model).is_dir()
        and model.count("/") == 1
    ]
    return bool(hub) or any(
        recipe.data.sources[name].path.startswith(HUB) for name in used_sources(recipe)
    )


def plan_remote(recipe: Recipe, root: Path, progress: Progress, card: str) -> dict[str, Any]:
    """Say what a run will cost without its weights, and without reading what is on the Hub.

    `card`: the GPU to count hours of, one of `CARDS`. Returns plain data: phases, teacher, totals
    and the formula, each number with its unit in its name.
    """
    if card not in CARDS:
        raise BadInput(f"unknown GPU {card!r}{did_you_mean(card, CARDS)}")
    module, tokenizer = _student(recipe, progress)
    teacher = sketch_teacher(recipe.teacher, progress) if recipe.teacher.kind == "local" else None
    teacher_dim = recipe.teacher.embedding_dim if teacher is None else teacher.width
    check_student(recipe, module, [teacher_dim])
    check_sets(recipe, root)
    sources = source_sizes(recipe, root, tokenizer, progress)
    student, rate = size_of(module.backbone), CARDS[card].rate(recipe.precision) * CARD_REACHED
    budgets = {
        name: card_budget(settings, module, CARDS[card], recipe.precision)
        for name, settings in recipe.phases().items()
    }
    phases = {
        name: _phase(
            name, settings, recipe, sources, student=student, rate=rate, budget=budgets[name]
        )
        for name, settings in recipe.phases().items()
    }
    needed: dict[tuple[str, str, str], float] = {}
    for name, settings in recipe.phases().items():
        for key, count in _needed(name, settings, recipe, sources).items():
            needed[key] = max(needed.get(key, 0.0), count)
    lengths = {
        key: _teacher_length(recipe, sources[key[0]].tokens[key[1]], key[2]) for key in needed
    }
    texts, tokens = sum(needed.values()), sum(count * lengths[key] for key, count in needed.items())
    work = (
        None
        if teacher is None
        else sum(count * teacher.forward(lengths[key]) for key, count in needed.items())
    )
    width = recipe.teacher.embedding_dim or (teacher.width if teacher is not None else 1024)
    teacher_hours = (
        None
        if work is None
        else work / (CARDS[card].rate(recipe.teacher.dtype) * CARD_REACHED) / 3600
    )
    training_hours = sum(phase["gpu_hours"] for phase in phases.values())
    store = texts * (2 * width + 16)
    memory = {
        name: card_memory(
            settings,
            module,
            recipe.precision,
            budget=budgets[name],
            batch_tokens=phases[name]["largest_batch_tokens"],
        )
        for name, settings in recipe.phases().items()
    }
    return {
        "recipe": recipe.name,
        "gpu": {
            "card": card,
            "tflops": CARDS[card].rate(recipe.precision) / 1e12,
            "precision": recipe.precision if recipe.precision != "auto" else "bfloat16",
            "share_reached": CARD_REACHED,
            "memory_gigabytes": CARDS[card].gigabytes,
        },
        "sources": {
            name: {"rows": each.rows, "tokens": dict(each.tokens), "from": each.origin}
            for name, each in sources.items()
        },
        "phases": {
            name: (
                phase
                | {
                    "gpu_memory_gigabytes": round(memory[name] / 1e9, 1),
                    "budget": None if (budget := budgets[name]) is None else budget.to_json(),
                }
            )
            for name, phase in phases.items()
        },
        "teacher": {
            "texts": round(texts),
            "tokens": round(tokens),
            "gpu_hours": None if teacher_hours is None else round(teacher_hours, 1),
            "disk_megabytes": round(store / 1e6, 1),
        },
        "student": {
            "parameters": student.parameters,
            "adapter_parameters": _adapters(recipe, module),
        },
        "total": {
            "steps": sum(phase["steps"] for phase in phases.values()),
            "gpu_hours": (
                None if teacher_hours is None else round(teacher_hours + training_hours, 1)
            ),
            "training_gpu_hours": round(training_hours, 1),
            "gpu_memory_gigabytes": round(max(memory.values()) / 1e9, 1),
            "memory_megabytes": round(
                (_host_memory(sources) + STATE_BYTES * student.parameters) / 1e6
            ),
            "disk_megabytes": round((store + 6 * 4 * student.parameters) / 1e6),
        },
        "formula": (
            "forward of a text of n tokens = 2 x matrix weights x n + 4 x attention width x n^2 "
            "(half of it if causal); a step of stage 1 = 3 "
            "forwards, of an adapter 2.2 (its backbone's weights take no gradient), and one "
            "forward more where the batch is too large to keep "
            "(gradient caching) and for classification's reference; hours = work / "
            f"({CARD_REACHED} x the card's rate in the recipe's precision); "
            "tokens of a pass and of a batch whose graphs are kept = what fits into the card's "
            "memory beside weights and moments; teacher: one "
            "forward for each distinct text and instruction; distinct texts of a source = the "
            "lesser of its rows and of the rows drawn"
        ),
    }


def _student(recipe: Recipe, progress: Progress) -> tuple[TransformerModel, TextTokenizer | None]:
    settings = recipe.student
    init = recipe.teacher.model if settings.init == "teacher" else settings.init
    if settings.init == "config":
        raise BadInput(
            "plan needs the data and models of a recipe with student.init `config` at hand; "
            "copy them into folders"
        )
    model = sketch(init, trust_remote_code=settings.trust_remote_code)
    backbone = model.backbone
    progress.note(f"student {init}: {sketch_origin(model)}")
    shape_backbone(backbone, settings)
    if settings.pooling is None and model.folder is None:
        raise BadInput(
            "student.pooling is missing and the initial model is not at hand to name one; give "
            "last, mean or cls"
        )
    module = TransformerModel(backbone, settings.pooling or Pooling.MEAN)
    matryoshka_dims(settings.matryoshka_dims, module.embedding_dim)
    return module, model.tokenizer()


def _rows_of_sources(
    name: str, settings: PhaseConfig, sources: Mapping[str, SourceSize]
) -> dict[str, tuple[float, int, int]]:
    """Source to the rows that a phase draws from it, its batch size and its length."""
    weights = {source: weight for source, weight in settings.sources.items() if weight > 0}
    sampled = {}
    for source, weight in weights.items():
        size, length = settings.long_sources.get(source, (settings.batch_size, settings.max_length))
        if size > sources[source].rows:
            raise BadInput(
                f"{name}: a batch of {size} is larger than data set {source!r} with "
                f"{sources[source].rows} rows; give a smaller batch_size, or "
                "its own in long_sources"
            )
        sampled[source] = (settings.steps * weight / sum(weights.values()) * size, size, length)
    return sampled


def _fields(name: str, settings: PhaseConfig, source: SourceConfig) -> dict[str, int]:
    """Texts that one row brings into a batch: field to how many."""
    task = phase_task(name)
    if (
        source.kind is RowKind.LABELLED
        and task is Task.CLASSIFICATION
        and isinstance(settings, AdapterConfig)
    ):
        return {"text": 2 + settings.negatives}
    fields = dict.fromkeys(FIELDS[source.kind], 1)
    hard = "negatives" in source.columns or not source.path.startswith(HUB)
    if (
        source.kind is RowKind.PAIRS
        and hard
        and isinstance(settings, AdapterConfig)
        and task in (Task.RETRIEVAL, Task.TEXT_MATCHING)
    ):
        fields["negatives"] = min(1, settings.negatives)
    return fields


def _phase(
    name: str,
    config: PhaseConfig | StaticConfig,
    recipe: Recipe,
    sources: Mapping[str, SourceSize],
    *,
    student: ModelSize,
    rate: float,
    budget: Budget | None,
) -> dict[str, Any]:
    settings = as_phase(config)
    task, work, tokens, largest, shown = phase_task(name), 0.0, 0.0, 0.0, []
    for source, (sampled, size, length) in _rows_of_sources(name, settings, sources).items():
        source_config = recipe.data.sources[source]
        if task is not None and source_config.kind not in TASKS[task].row_kinds:
            raise BadInput(
                f"{name}: source {source!r} has {source_config.kind} rows, this task learns from "
                f"{', '.join(TASKS[task].row_kinds)}"
            )
        texts = [
            (min(sources[source].tokens[field], length), n)
            for field, n in _fields(name, settings, source_config).items()
        ]
        row_tokens, row_work = (
            sum(t * n for t, n in texts),
            sum(student.forward(t) * n for t, n in texts),
        )
        batch = size * row_tokens
        forwards = (
            (2.2 if isinstance(settings, AdapterConfig) else 3.0)
            + (budget is not None and batch > budget.keep_tokens)
            + (task is Task.CLASSIFICATION)
        )
        work += sampled * row_work * forwards
        tokens += sampled * row_tokens
        largest = max(largest, batch)
        shown.append(
            {
                "name": source,
                "rows": sources[source].rows,
                "batches": round(sampled / size),
                "epochs": sampled / sources[source].rows,
            }
        )
    static = isinstance(config, StaticConfig)
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "tokens": round(tokens),
        "largest_batch_tokens": round(largest),
        "gpu_hours": 0.0 if static else round(work / rate / 3600, 2),
        "sources": shown,
    }


def _needed(
    name: str,
    config: PhaseConfig | StaticConfig,
    recipe: Recipe,
    sources: Mapping[str, SourceSize],
) -> dict[tuple[str, str, str], float]:
    """Distinct texts that a phase compares with the teacher.

    Source, field and view to their number.
    """
    settings = as_phase(config)
    task, texts = phase_task(name), dict[tuple[str, str, str], float]()
    if not distils(name, settings):
        return {}
    for source, (sampled, _, _) in _rows_of_sources(name, settings, sources).items():
        kind = recipe.data.sources[source].kind
        if kind is RowKind.LABELLED or (task is Task.TEXT_MATCHING and kind is RowKind.SCORED):
            continue
        for field in FIELDS[kind]:
            asks = field == "query" and task in (None, Task.RETRIEVAL)
            view = "topic" if task is Task.CLUSTERING else "query" if asks else "document"
            texts[source, field, view if recipe.teacher.instructions is not None else "raw"] = min(
                sampled, float(sources[source].rows)
            )
    return texts


def _teacher_length(recipe: Recipe, tokens: float, view: str) -> float:
    instructions = recipe.teacher.instructions
    instruction = None if instructions is None or view == "raw" else getattr(instructions, view)
    extra = (
        0.0
        if instructions is None or instruction is None
        else len((instructions.template + instruction).encode()) / BYTES_PER_TOKEN
    )
    return min(tokens + extra, float(recipe.teacher.max_length))


def _adapters(recipe: Recipe, module: TransformerModel) -> dict[str, int]:
    return {
        task.value: adapter_size(module.backbone, adapter.rank)
        for task, adapter in recipe.adapters.items()
    }


def _host_memory(sources: Mapping[str, SourceSize]) -> float:
    """Bytes of the rows held in memory: their text, and what Python adds to each."""
    checkpoints = (
        (each.rows, sum(min(t, 32_768) for field, t in each.tokens.items() if field != "negatives"))
        for each in sources.values()
    )
    return sum(rows * (BYTES_PER_TOKEN * tokens + 400) for rows, tokens in checkpoints)
