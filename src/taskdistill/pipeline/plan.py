"""What a run will cost, from its data and settings alone: texts, tokens, steps, time, memory and disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskdistill.data.batches import BatchPlan, describe
from taskdistill.device import device_name
from taskdistill.encode.batches import cores
from taskdistill.errors import WorkFailed
from taskdistill.model.activations import kept_bytes
from taskdistill.model.flops import matrix_parameters
from taskdistill.model.layers import layers_of
from taskdistill.model.model import Model
from taskdistill.model.prune_vocabulary import replace_embeddings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import make_plans
from taskdistill.pipeline.costs import adapter_parameters
from taskdistill.pipeline.pairing import choose_start
from taskdistill.pipeline.plan_remote import is_far, plan_stated, stated_tables
from taskdistill.pipeline.preflight import check_data, check_models
from taskdistill.pipeline.profile import matrix_rate
from taskdistill.pipeline.setup import data_root, load_inputs
from taskdistill.pipeline.train import check_recipe
from taskdistill.progress import Progress
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, Stage1Config, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.student import StudentVocabConfig
from taskdistill.train.arithmetic import choose_arithmetic, training_device
from taskdistill.train.budget import choose_budget
from taskdistill.train.phases import preparer, static_phase, teacher_needs
from taskdistill.train.vocab import learn_beside, whole_words

SAMPLE = 64
"""Batches of each phase whose texts are tokenised to estimate its tokens."""

TRAINING_FACTOR = 3
"""Floating-point work of a training step relative to its forward pass."""

FROZEN_FACTOR = 2
"""The same where gradients go through the layers and none is formed of their weights."""

REACHED = 0.5
"""Share of the measured matrix-multiply rate that training and encoding reach; see docs/performance.md."""


def plan_run(
    recipe: Recipe,
    recipe_folder: Path,
    progress: Progress,
    data_folder: Path | None = None,
    *,
    card: str = "h100",
) -> dict[str, Any]:
    """Read the data and say what the run will cost; where data or models are on the Hub, count with what is stated of them.

    Args:
        recipe_folder: Where relative paths of the recipe start.
        data_folder: Where the embedded default is, or a place where it may be built; None builds it in a temporary folder.
        card: Where data or models are on the Hub, the GPU whose hours are counted.

    Returns:
        Plain data: phases, teacher, memory and disk, each number with its unit in its name.
    """
    import tempfile

    recipe, pairing = choose_start(recipe)
    for line in pairing.lines() if pairing is not None else ():
        progress.note(line)
    with tempfile.TemporaryDirectory() as temporary:
        check_recipe(recipe, Path(temporary) / "new")
        device = training_device(recipe.device)
        arithmetic = choose_arithmetic(recipe.precision, device)
        student = None if is_far(recipe) else check_models(recipe)
        root = data_root(recipe, recipe_folder, data_folder or Path(temporary) / "data", progress)
        if student is None:
            return plan_stated(recipe, root, progress, card)
        assert isinstance(student.module, TransformerModel)
        check_data(recipe, root)
        inputs = load_inputs(recipe, root, progress)
        if recipe.student.vocabulary is not None:
            requested, width = (
                recipe.student.vocabulary,
                student.module.backbone.get_input_embeddings().weight.shape[1],
            )
            rows = requested.size + (
                len(whole_words(student.tokenizer)) if requested.keep_words else 0
            )
            replace_embeddings(student.module, torch.empty(rows, width, device="meta"), {})
        plans = make_plans(recipe, inputs)
        rate = matrix_rate(device=device, dtype=arithmetic.compute or torch.float32)
        phases: dict[str, dict[str, Any]] = {}
        needed: dict[str, dict[str, None]] = {}
        cutter = student.tokenizer
        for name, settings in recipe.phases().items():
            phase = static_phase(settings) if isinstance(settings, StaticConfig) else settings
            plan = plans[name]
            for place, (teacher_name, teacher_config) in enumerate(recipe.all_teachers().items()):
                sources = {source for source in inputs.datasets if place in recipe.readers(source)}
                for view, texts in teacher_needs(name, phase, plan, sources).items():
                    key = f"{teacher_name} {view if teacher_config.instructions is not None else 'raw'}"
                    needed.setdefault(key, {}).update(dict.fromkeys(texts))
            collate_batch = preparer(name, phase)
            steps = np.unique(np.linspace(0, phase.steps - 1, min(SAMPLE, phase.steps)).astype(int))
            batches = [
                [text for _, text in collate_batch(plan.at(step)).texts] for step in steps.tolist()
            ]
            if recipe.student.vocabulary is not None and not phases:
                cutter = _own_tokenizer(recipe.student.vocabulary, student.tokenizer, batches)
            phases[name] = _phase_cost(name, phase, plan, batches, cutter, student, rate)
            if name != "static":
                budget = choose_budget(
                    student.module,
                    _trained(phase, student),
                    device=device,
                    compute=arithmetic.compute,
                    micro_batch_tokens=phase.micro_batch_tokens,
                )
                phases[name]["budget"] = budget.to_json()
        count = sum(len(result) for result in needed.values())
        tokens = _teacher_tokens(recipe, student.tokenizer, needed)
    width = recipe.teacher.embedding_dim or _teacher_width(recipe, student)
    teacher_flops = _forward_flops(recipe, student)
    return {
        "recipe": recipe.name,
        "machine": {
            "cores": cores(),
            "matrix_gflops": round(rate / 1e9, 1),
            "device": str(device),
            "device_name": device_name(device),
            "precision": str(arithmetic),
        },
        "phases": phases,
        "teacher": {
            "texts": count,
            "tokens": tokens,
            "minutes": None
            if teacher_flops is None
            else round(tokens * teacher_flops / (rate * REACHED) / 60, 1),
            "disk_megabytes": round(count * (2 * width + 16) / 1e6, 1),
        },
        "total": {
            "steps": sum(phase["steps"] for phase in phases.values()),
            "training_minutes": round(sum(phase["minutes"] for phase in phases.values()), 1),
            "memory_megabytes": _memory(student, phases, arithmetic.compute),
            "disk_megabytes": round(
                count * (2 * width + 16) / 1e6 + 6 * _parameters(student) * 4 / 1e6, 1
            ),
        },
        "formula": (
            "forward = 2 x matrix parameters x tokens; a training step = 3 forwards, 2 under frozen layers; minutes = floating-point work / "
            f"({REACHED} x the matrix rate measured now); teacher tokens = tokens of every distinct text and instruction, once"
        ),
    }


def plan_tables(found: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Lay a plan out as tables."""
    phases = [
        [
            name,
            f"{phase['steps']:,}",
            str(phase["batch_size"]),
            f"{phase['tokens']:,}",
            _time(phase),
            *_budgets(phase),
        ]
        for name, phase in found["phases"].items()
    ]
    sources = [
        [
            name,
            source["name"],
            f"{source['rows']:,}",
            f"{source['batches']:,}",
            f"{source['epochs']:.2f}",
        ]
        for name, phase in found["phases"].items()
        for source in phase["sources"]
    ]
    if "gpu" in found:
        return stated_tables(found, phases, sources)
    teacher, total = found["teacher"], found["total"]
    minutes = "unknown here" if teacher["minutes"] is None else f"{teacher['minutes']} minutes"
    costs = [
        [
            "teacher",
            f"{teacher['texts']:,} distinct texts, {teacher['tokens']:,} tokens, {minutes}, {teacher['disk_megabytes']} MB of vectors",
        ],
        ["training", f"{total['steps']:,} steps, {total['training_minutes']} minutes"],
        ["memory", f"about {total['memory_megabytes']:,} MB"],
        [
            "device",
            f"{found['machine']['device']} ({found['machine']['device_name']}), passes in {found['machine']['precision']}",
        ],
        ["disk", f"about {total['disk_megabytes']:,} MB"],
        [
            "machine",
            f"{found['machine']['cores']} cores, {found['machine']['matrix_gflops']} GF/s of matrix multiplication",
        ],
        ["formula", found["formula"]],
    ]
    return [
        ("Phases", ["phase", "steps", "batch", "tokens", "minutes", *BUDGETS], phases),
        ("Batches by source", ["phase", "source", "rows", "batches", "epochs"], sources),
        ("Costs", ["what", "how much"], costs),
    ]


BUDGETS = ["tokens a pass", "tokens kept"]


def _budgets(phase: Mapping[str, Any]) -> list[str]:
    budget = phase.get("budget") or {}
    return [
        f"{budget[name]:,}" if name in budget else "-"
        for name in ("micro_batch_tokens", "keep_tokens")
    ]


def _time(phase: Mapping[str, Any]) -> str:
    return f"{phase['minutes']:.1f}" if "minutes" in phase else f"{phase['gpu_hours']:,.1f}"


def _own_tokenizer(
    requested: StudentVocabConfig, initial: TextTokenizer, batches: Sequence[Sequence[str]]
) -> TextTokenizer:
    """Learn a vocabulary from the sampled batches alone; it cuts a little finer than the one that a run learns from all texts."""
    try:
        texts = list(dict.fromkeys(text for batch in batches for text in batch))
        return learn_beside(texts, requested.size, initial, keep_words=requested.keep_words)
    except WorkFailed:
        return initial


def _phase_cost(
    name: str,
    phase: PhaseConfig,
    plan: BatchPlan,
    batches: Sequence[Sequence[str]],
    cutter: TextTokenizer,
    student: Model,
    rate: float,
) -> dict[str, Any]:
    counts = [
        sum(len(row) for row in cutter.ids(list(texts), prompt="", max_length=phase.max_length).ids)
        for texts in batches
    ]
    tokens = int(np.mean(counts) * phase.steps)
    factor = (
        FROZEN_FACTOR
        if isinstance(phase, Stage1Config) and phase.freeze_layers
        else TRAINING_FACTOR
    )
    flops = 0.0 if name == "static" else factor * 2 * _matrix_parameters(student) * tokens
    if isinstance(phase, AdapterConfig):
        flops *= 2 / 3 + 0.2
    return {
        "steps": phase.steps,
        "batch_size": phase.batch_size,
        "tokens": tokens,
        "largest_batch_tokens": max(counts),
        "minutes": round(flops / (rate * REACHED) / 60, 1),
        "sources": [
            {
                "name": each["name"],
                "rows": each["rows"],
                "batches": each["batches"],
                "epochs": each["epochs"],
            }
            for each in describe(plan, phase.steps)
        ],
    }


def _teacher_tokens(
    recipe: Recipe, tokenizer: TextTokenizer, needed: Mapping[str, Mapping[str, None]]
) -> int:
    total = 0.0
    for texts in needed.values():
        chosen: Sequence[str] = list(texts)[:: max(1, len(texts) // 2000)]
        ids = tokenizer.ids(chosen, prompt="", max_length=recipe.teacher.max_length).ids
        total += len(texts) * float(np.mean([len(row) for row in ids]))
    return int(total)


def _teacher_width(recipe: Recipe, student: Model) -> int:
    if recipe.student.init == "teacher":
        return student.module.embedding_dim
    return 1024


def _forward_flops(recipe: Recipe, student: Model) -> float | None:
    """Floating-point work of the teacher per token, where it is the model that the student came from."""
    if recipe.student.init != "teacher" or not isinstance(student.module, TransformerModel):
        return None
    from transformers import AutoConfig

    from taskdistill.model.backbone import resolve

    all_layers = AutoConfig.from_pretrained(resolve(recipe.teacher.model)).num_hidden_layers
    return (
        2.0
        * _matrix_parameters(student)
        * int(all_layers)
        / len(layers_of(student.module.backbone))
    )


def _matrix_parameters(student: Model) -> int:
    assert isinstance(student.module, TransformerModel)
    return matrix_parameters(student.module)


def _parameters(student: Model) -> int:
    return sum(p.numel() for p in student.module.parameters())


def _trained(phase: PhaseConfig, student: Model) -> int:
    assert isinstance(student.module, TransformerModel)
    return (
        adapter_parameters(student.module.backbone, phase.rank)
        if isinstance(phase, AdapterConfig)
        else _parameters(student)
    )


def _memory(student: Model, phases: Mapping[str, Any], compute: torch.dtype | None) -> int:
    """Weights, gradients and two moments, the graphs of the largest batch that is kept, and the libraries."""
    assert isinstance(student.module, TransformerModel)
    tokens = [
        min(phase["largest_batch_tokens"], phase["budget"]["keep_tokens"])
        for phase in phases.values()
        if "budget" in phase
    ]
    return int(
        (
            700e6
            + 16 * _parameters(student)
            + max(tokens, default=0) * kept_bytes(student.module.backbone, compute)
        )
        / 1e6
    )
