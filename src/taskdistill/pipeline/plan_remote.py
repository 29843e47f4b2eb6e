"""The plan of a run whose data or models are on the Hub: from row counts and lengths, and from architectures without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.data.sources import HUB, load_source
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.backbone import EMBEDDED, longest_text
from taskdistill.model.layers import keep_layers
from taskdistill.model.layout import longest_input
from taskdistill.model.rope import set_rope_theta
from taskdistill.model.sketch import ModelSketch, sketch
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.check import check_fit
from taskdistill.pipeline.costs import (
    CARD_REACHED,
    CARDS,
    STATE_BYTES,
    ModelSize,
    adapter_parameters,
    card_budget,
    card_memory,
    size_of,
)
from taskdistill.pipeline.setup import matryoshka_dims
from taskdistill.progress import Progress
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.tasks import TASKS, Task
from taskdistill.train.budget import Budget
from taskdistill.train.phases import distils, phase_task, static_phase
from taskdistill.types import Pooling, RowKind

FIELDS: Mapping[RowKind, tuple[str, ...]] = {
    RowKind.PAIRS: ("query", "positive"),
    RowKind.SCORED: ("text1", "text2"),
    RowKind.LABELLED: ("text",),
    RowKind.TEXTS: ("text",),
}
"""Kind of rows to the texts of one."""

SAMPLE = 2000
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class DeclaredSize:
    """What a plan knows of a source."""

    rows: int
    tokens: Mapping[str, float]
    """Field to its usual tokens."""
    said: str
    """Where this is from."""


def is_far(recipe: Recipe) -> bool:
    """Say whether a recipe takes data or models from the Hub, so that its plan cannot read everything."""
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
        recipe.data.sources[name].path.startswith(HUB) for name in _used(recipe)
    )


def plan_stated(recipe: Recipe, root: Path, progress: Progress, card: str) -> dict[str, Any]:
    """Say what a run will cost without its weights, and without reading what is on the Hub.

    Args:
        card: The GPU to count hours of, one of `CARDS`.

    Returns:
        Plain data: phases, teacher, totals and the formula, each number with its unit in its name.

    Raises:
        BadInput: If a setting does not fit, or a number is neither to be read nor stated; all that is missing is named at once.
    """
    if card not in CARDS:
        raise BadInput(f"unknown GPU {card!r}{did_you_mean(card, CARDS)}")
    module, tokenizer = _student(recipe, progress)
    teacher = sketch_teacher(recipe.teacher, progress) if recipe.teacher.kind == "local" else None
    check_fit(
        recipe, root, module, recipe.teacher.embedding_dim if teacher is None else teacher.width
    )
    sources = _sources(recipe, root, tokenizer, progress)
    student, rate = size_of(module.backbone), CARDS[card].rate(recipe.precision) * CARD_REACHED
    budgets = {
        name: card_budget(settings, module, CARDS[card], recipe.precision)
        for name, settings in recipe.phases().items()
    }
    phases = {
        name: _phase(name, settings, recipe, sources, student, rate, budgets[name])
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
            settings, module, budgets[name], phases[name]["largest_batch_tokens"], recipe.precision
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
            name: {"rows": each.rows, "tokens": dict(each.tokens), "from": each.said}
            for name, each in sources.items()
        },
        "phases": {
            name: phase
            | {
                "gpu_memory_gigabytes": round(memory[name] / 1e9, 1),
                "budget": _plain(budgets[name]),
            }
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
            "gpu_hours": None
            if teacher_hours is None
            else round(teacher_hours + training_hours, 1),
            "training_gpu_hours": round(training_hours, 1),
            "gpu_memory_gigabytes": round(max(memory.values()) / 1e9, 1),
            "memory_megabytes": round(
                (_host_memory(sources) + STATE_BYTES * student.parameters) / 1e6
            ),
            "disk_megabytes": round((store + 6 * 4 * student.parameters) / 1e6),
        },
        "formula": (
            "forward of a text of n tokens = 2 x matrix weights x n + 4 x attention width x n^2 (half of it if causal); a step of stage 1 = 3 "
            "forwards, of an adapter 2.2 (its backbone's weights take no gradient), and one forward more where the batch is too large to keep "
            f"(gradient caching) and for classification's reference; hours = work / ({CARD_REACHED} x the card's rate in the recipe's precision); "
            "tokens of a pass and of a batch whose graphs are kept = what fits into the card's memory beside weights and moments; teacher: one "
            "forward for each distinct text and instruction; distinct texts of a source = the lesser of its rows and of the rows drawn"
        ),
    }


def _used(recipe: Recipe) -> list[str]:
    return list(
        dict.fromkeys(
            name
            for phase in recipe.phases().values()
            for name, weight in phase.sources.items()
            if weight > 0
        )
    )


def _student(recipe: Recipe, progress: Progress) -> tuple[TransformerModel, TextTokenizer | None]:
    settings = recipe.student
    init = recipe.teacher.model if settings.init == "teacher" else settings.init
    if settings.init == "config":
        raise BadInput(
            "plan needs the data and models of a recipe with student.init `config` at hand; copy them into folders"
        )
    result = sketch(init, trust_remote_code=settings.trust_remote_code)
    backbone = result.backbone
    progress.note(f"student {init}: {_origin(result)}")
    if settings.layers is not None:
        keep_layers(backbone, settings.layers)
    positions = longest_text(backbone, settings.max_length)
    if settings.max_length > positions:
        raise BadInput(
            f"student.max_length is {settings.max_length}, the backbone has positions for {positions}; set it to that or less"
        )
    if settings.rope_theta is not None:
        set_rope_theta(backbone, settings.rope_theta)
    if settings.pooling is None and result.folder is None:
        raise BadInput(
            "student.pooling is missing and the initial model is not at hand to name one; give last, mean or cls"
        )
    module = TransformerModel(backbone, settings.pooling or Pooling.MEAN)
    matryoshka_dims(settings.matryoshka_dims, module.embedding_dim)
    return module, result.tokenizer()


def sketch_teacher(settings: TeacherConfig, progress: Progress | None = None) -> ModelSize:
    """Find the size of a local teacher without its weights.

    Args:
        progress: Told where the size is from.

    Raises:
        BadInput: If the teacher reads fewer tokens, or has vectors of another size, than the recipe says.
    """
    result = sketch(settings.model, settings.revision, trust_remote_code=settings.trust_remote_code)
    if progress is not None:
        progress.note(f"teacher {settings.model}: {_origin(result)}")
    size, positions = size_of(result.backbone), longest_text(result.backbone, settings.max_length)
    positions = positions if result.folder is None else longest_input(result.folder, positions)
    if settings.max_length > positions:
        raise BadInput(
            f"teacher.max_length is {settings.max_length}, but {settings.model!r} reads at most {positions} tokens; set it to that or less"
        )
    if settings.embedding_dim not in (None, size.width):
        raise BadInput(
            f"teacher.embedding_dim is {settings.embedding_dim}, but {settings.model!r} has {size.width}; correct the recipe"
        )
    return size


def _origin(result: ModelSketch) -> str:
    return (
        "the known architecture, for its files are not at hand"
        if result.folder is None
        else "from its files, weights not read"
    )


def _sources(
    recipe: Recipe, root: Path, tokenizer: TextTokenizer | None, progress: Progress
) -> dict[str, DeclaredSize]:
    result, missing = {}, []
    for name in _used(recipe):
        source = recipe.data.sources[name]
        if not source.path.startswith(HUB):
            result[name] = _measured(recipe, root, name, source, tokenizer)
        elif source.rows is None:
            missing.append(name)
        else:
            rows = min(source.rows, source.limit or source.rows)
            tokens = source.tokens or {}
            if unknown := [
                field for field in tokens if field not in (*FIELDS[source.kind], "negatives")
            ]:
                raise BadInput(
                    f"data.sources.{name}.tokens names {unknown}, no field of {source.kind} rows{did_you_mean(unknown[0], FIELDS[source.kind])}"
                )
            declared = {
                field: float(tokens.get(field, 1 << 30))
                for field in (*FIELDS[source.kind], "negatives")
            }
            if "negatives" not in tokens:
                declared["negatives"] = declared[FIELDS[source.kind][-1]]
            result[name] = DeclaredSize(
                rows,
                declared,
                "stated in the recipe"
                if source.tokens
                else "rows stated in the recipe; every text counted as longest",
            )
    if missing:
        raise BadInput(
            f"plan does not read data of the Hub, and the recipe does not state how many rows these have: {', '.join(missing)}; "
            f"add rows (and tokens) to data.sources.{missing[0]} and the others, or copy the data into files"
        )
    for name, each in result.items():
        progress.note(f"{name}: {each.rows:,} rows, {each.said}")
    return result


def _measured(
    recipe: Recipe, root: Path, name: str, source: SourceConfig, tokenizer: TextTokenizer | None
) -> DeclaredSize:
    dataset = load_source(root, name, source, max_bad=recipe.data.max_bad, seed=recipe.seed)
    some = dataset.rows[:: max(1, len(dataset.rows) // SAMPLE)]
    texts: dict[str, list[str]] = {
        field: [getattr(row, field) for row in some] for field in FIELDS[source.kind]
    }
    texts["negatives"] = [text for row in some for text in getattr(row, "negatives", ())] or texts[
        FIELDS[source.kind][-1]
    ]
    return DeclaredSize(
        len(dataset.rows),
        {field: _mean_tokens(each, tokenizer) for field, each in texts.items()},
        "read",
    )


def _mean_tokens(texts: list[str], tokenizer: TextTokenizer | None) -> float:
    if tokenizer is None:
        return sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN / len(texts)
    ids = tokenizer.ids(texts, prompt="", max_length=1 << 20).ids
    return sum(map(len, ids)) / len(ids)


def _drawn(
    name: str, settings: PhaseConfig, sources: Mapping[str, DeclaredSize]
) -> dict[str, tuple[float, int, int]]:
    """Source to the rows that a phase draws from it, its batch size and its length."""
    weights = {source: weight for source, weight in settings.sources.items() if weight > 0}
    result = {}
    for source, weight in weights.items():
        size, length = settings.long_sources.get(source, (settings.batch_size, settings.max_length))
        if size > sources[source].rows:
            raise BadInput(
                f"{name}: a batch of {size} is larger than data set {source!r} with {sources[source].rows} rows; give a smaller batch_size, or "
                f"its own in long_sources"
            )
        result[source] = (settings.steps * weight / sum(weights.values()) * size, size, length)
    return result


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
    sources: Mapping[str, DeclaredSize],
    student: ModelSize,
    rate: float,
    budget: Budget | None,
) -> dict[str, Any]:
    settings = static_phase(config) if isinstance(config, StaticConfig) else config
    task, work, tokens, largest, shown = phase_task(name), 0.0, 0.0, 0.0, []
    for source, (sampled, size, length) in _drawn(name, settings, sources).items():
        source_config = recipe.data.sources[source]
        if task is not None and source_config.kind not in TASKS[task].row_kinds:
            raise BadInput(
                f"{name}: source {source!r} has {source_config.kind} rows, this task learns from {', '.join(TASKS[task].row_kinds)}"
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
    sources: Mapping[str, DeclaredSize],
) -> dict[tuple[str, str, str], float]:
    """Distinct texts that a phase compares with the teacher: source, field and view to their number."""
    settings = static_phase(config) if isinstance(config, StaticConfig) else config
    task, result = phase_task(name), {}
    if not distils(name, settings):
        return {}
    for source, (sampled, _, _) in _drawn(name, settings, sources).items():
        kind = recipe.data.sources[source].kind
        if kind is RowKind.LABELLED or (task is Task.TEXT_MATCHING and kind is RowKind.SCORED):
            continue
        for field in FIELDS[kind]:
            asks = field == "query" and task in (None, Task.RETRIEVAL)
            view = "topic" if task is Task.CLUSTERING else "query" if asks else "document"
            result[source, field, view if recipe.teacher.instructions is not None else "raw"] = min(
                sampled, float(sources[source].rows)
            )
    return result


def _teacher_length(recipe: Recipe, tokens: float, view: str) -> float:
    instructions = recipe.teacher.instructions
    instruction = None if instructions is None or view == "raw" else getattr(instructions, view)
    extra = (
        0.0
        if instructions is None or instruction is None
        else len((instructions.template + instruction).encode()) / BYTES_PER_TOKEN
    )
    return min(tokens + extra, float(recipe.teacher.max_length))


def _plain(budget: Budget | None) -> dict[str, int] | None:
    return None if budget is None else budget.to_json()


def _adapters(recipe: Recipe, module: TransformerModel) -> dict[str, int]:
    return {
        task.value: adapter_parameters(module.backbone, adapter.rank)
        for task, adapter in recipe.adapters.items()
    }


def _host_memory(sources: Mapping[str, DeclaredSize]) -> float:
    """Bytes of the rows held in memory: their text, and what Python adds to each."""
    checkpoints = (
        (each.rows, sum(min(t, 32_768) for field, t in each.tokens.items() if field != "negatives"))
        for each in sources.values()
    )
    return sum(rows * (BYTES_PER_TOKEN * tokens + 400) for rows, tokens in checkpoints)


def stated_tables(
    found: Mapping[str, Any], phases: list[list[str]], sources: list[list[str]]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Lay a plan in GPU hours out as tables."""
    teacher, total, gpu = found["teacher"], found["total"], found["gpu"]
    hours = (
        "hours unknown here"
        if teacher["gpu_hours"] is None
        else f"{teacher['gpu_hours']:,} GPU hours"
    )
    costs = [
        ["teacher", f"{teacher['texts']:,} distinct texts, {teacher['tokens']:,} tokens, {hours}"],
        ["teacher store", f"{teacher['disk_megabytes'] / 1000:,.1f} GB"],
        ["training", f"{total['steps']:,} steps, {total['training_gpu_hours']:,} GPU hours"],
        [
            "in all",
            "unknown" if total["gpu_hours"] is None else f"{total['gpu_hours']:,} GPU hours",
        ],
        [
            "GPU",
            f"{gpu['card']}: {gpu['tflops']:,.0f} TF/s in {gpu['precision']} by its data sheet, {100 * gpu['share_reached']:.0f} % of it assumed",
        ],
        [
            "GPU memory",
            f"about {total['gpu_memory_gigabytes']:,} GB at most, of {gpu['memory_gigabytes']} GB",
        ],
        ["memory", f"about {total['memory_megabytes'] / 1000:,.0f} GB"],
        ["disk", f"about {total['disk_megabytes'] / 1000:,.0f} GB"],
        ["formula", found["formula"]],
    ]
    for row, phase in zip(phases, found["phases"].values(), strict=True):
        row.append(f"{phase['gpu_memory_gigabytes']:,}")
    return [
        (
            "Phases",
            [
                "phase",
                "steps",
                "batch",
                "tokens",
                "GPU hours",
                "tokens a pass",
                "tokens kept",
                "GPU memory, GB",
            ],
            phases,
        ),
        ("Batches by source", ["phase", "source", "rows", "batches", "epochs"], sources),
        ("Costs", ["what", "how much"], costs),
    ]
