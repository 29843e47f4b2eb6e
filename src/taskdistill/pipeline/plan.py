"""What a run will cost, from its data and settings alone.

Texts, tokens, steps, time, memory and disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskdistill.data.batches import BatchPlan, describe
from taskdistill.device import device_name
from taskdistill.encode.batches import cores
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.flops import (
    STATE_BYTES,
    count_parameters,
    held_bytes,
    matrix_parameters,
)
from taskdistill.model.layers import layers_of
from taskdistill.model.prune_vocabulary import replace_embeddings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.check import check_models, check_recipe, check_sets
from taskdistill.pipeline.costs import trained_weights
from taskdistill.pipeline.pairing import choose_start
from taskdistill.pipeline.plan_remote import is_remote, plan_remote
from taskdistill.pipeline.profile import matrix_rate
from taskdistill.pipeline.setup import as_phase, data_root, load_inputs, make_plans
from taskdistill.progress import Progress
from taskdistill.recipe.phases import (
    AdapterConfig,
    PhaseConfig,
    Stage1Config,
)
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.student import StudentVocabConfig
from taskdistill.train.arithmetic import choose_arithmetic, training_device
from taskdistill.train.budget import choose_budget
from taskdistill.train.phases import collator, teacher_needs
from taskdistill.train.vocab import learn_beside, whole_words

SAMPLE = 64
"""Batches of each phase whose texts are tokenised to estimate its tokens."""

TRAINING_FACTOR = 3
"""Floating-point work of a training step relative to its forward pass."""

FROZEN_FACTOR = 2
"""The same where gradients go through the layers and none is formed of their weights."""

LIBRARY_BYTES = 700e6
"""What Python, torch and the other libraries take of memory."""

REACHED = 0.5
"""Share of the measured matrix-multiply rate that training and encoding reach; see
docs/performance.md.
"""


def plan_run(
    recipe: Recipe,
    recipe_folder: Path,
    progress: Progress,
    data_folder: Path | None = None,
    *,
    card: str | None = None,
) -> dict[str, Any]:
    """Read the data and say what the run will cost.

    Where data or models are on the Hub, count with what is stated of them.

    `recipe_folder`: where relative paths of the recipe start. `data_folder`: where the embedded
    default is, or a place where it may be built; None builds it in a temporary folder. `card`:
    where data or models are on the Hub, the GPU whose hours are counted, an H100 if none is named.
    Returns plain data:
    phases, teacher, memory and disk, each number with its unit in its name.
    """
    import tempfile

    if card is not None and not is_remote(recipe):
        raise BadInput(
            f"the card {card!r} has no effect: data and models are here, so the hours of this"
            " machine are counted; leave it out, or name them on the Hub"
        )
    recipe, pairing = choose_start(recipe)
    for line in pairing.lines() if pairing is not None else ():
        progress.note(line)
    with tempfile.TemporaryDirectory() as temporary:
        check_recipe(recipe, Path(temporary) / "new")
        device = training_device(recipe.device)
        arithmetic = choose_arithmetic(recipe.precision, device)
        student = None if is_remote(recipe) else check_models(recipe)
        root = data_root(recipe, recipe_folder, data_folder or Path(temporary) / "data", progress)
        if student is None:
            return plan_remote(recipe, root, progress, card or "h100")
        module = student.module
        assert isinstance(module, TransformerModel)
        check_sets(recipe, root)
        inputs = load_inputs(recipe, root, progress)
        if recipe.student.vocabulary is not None:
            _replace_vocabulary(module, student.tokenizer, recipe.student.vocabulary)
        plans = make_plans(recipe, inputs)
        rate = matrix_rate(device=device, dtype=arithmetic.compute or torch.float32)
        phases: dict[str, dict[str, Any]] = {}
        needed: dict[str, dict[str, None]] = {}
        cutter = student.tokenizer
        for name, settings in recipe.phases().items():
            phase = as_phase(settings)
            plan = plans[name]
            for place, (teacher_name, teacher_config) in enumerate(recipe.all_teachers().items()):
                sources = {source for source in inputs.datasets if place in recipe.readers(source)}
                for view, texts in teacher_needs(name, phase, plan, sources).items():
                    key = (
                        f"{teacher_name} "
                        f"{view if teacher_config.instructions is not None else 'raw'}"
                    )
                    needed.setdefault(key, {}).update(dict.fromkeys(texts))
            collate_batch = collator(name, phase)
            steps = np.unique(np.linspace(0, phase.steps - 1, min(SAMPLE, phase.steps)).astype(int))
            batches = [
                [text for _, text in collate_batch(plan.at(step)).texts] for step in steps.tolist()
            ]
            if recipe.student.vocabulary is not None and not phases:
                cutter = _learned_tokenizer(recipe.student.vocabulary, student.tokenizer, batches)
            counts = [_count_tokens(texts, cutter, phase.max_length) for texts in batches]
            matrix = 0 if name == "static" else matrix_parameters(module)
            phases[name] = _phase_cost(phase, plan, counts, matrix=matrix, rate=rate)
            if name != "static":
                budget = choose_budget(
                    module,
                    trained_weights(phase, module),
                    device=device,
                    compute=arithmetic.compute,
                    micro_batch_tokens=phase.micro_batch_tokens,
                )
                phases[name]["budget"] = budget.to_json()
        count = sum(len(texts) for texts in needed.values())
        tokens = _teacher_tokens(recipe, student.tokenizer, needed)
    from_teacher = recipe.student.init == "teacher"
    width = recipe.teacher.embedding_dim or (module.embedding_dim if from_teacher else 1024)
    teacher_flops = _teacher_flops(recipe, module) if from_teacher else None
    store_bytes = count * (2 * width + 16)
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
            "minutes": (
                None
                if teacher_flops is None
                else round(tokens * teacher_flops / (rate * REACHED) / 60, 1)
            ),
            "disk_megabytes": round(store_bytes / 1e6, 1),
        },
        "total": {
            "steps": sum(phase["steps"] for phase in phases.values()),
            "training_minutes": round(sum(phase["minutes"] for phase in phases.values()), 1),
            "memory_megabytes": _memory(module, phases, arithmetic.compute),
            "disk_megabytes": round(store_bytes / 1e6 + 6 * count_parameters(module) * 4 / 1e6, 1),
        },
        "formula": (
            "forward = 2 x matrix parameters x tokens; a training step = 3 forwards, 2 under "
            "frozen layers; minutes = floating-point work / "
            f"({REACHED} x the matrix rate measured now); teacher tokens = tokens of every "
            "distinct text and instruction, once"
        ),
    }


def _replace_vocabulary(
    module: TransformerModel, tokenizer: TextTokenizer, settings: StudentVocabConfig
) -> None:
    """Give a student without weights the token table of the vocabulary that the run will learn."""
    width = module.backbone.get_input_embeddings().weight.shape[1]
    words = len(whole_words(tokenizer)) if settings.keep_words else 0
    table = torch.empty(settings.size + words, width, device="meta")
    replace_embeddings(module, table, {})


def _learned_tokenizer(
    requested: StudentVocabConfig, initial: TextTokenizer, batches: Sequence[Sequence[str]]
) -> TextTokenizer:
    """Learn a vocabulary from the sampled batches alone.

    It cuts a little finer than the one that a run learns from all texts.
    """
    try:
        texts = list(dict.fromkeys(text for batch in batches for text in batch))
        return learn_beside(texts, requested.size, initial, keep_words=requested.keep_words)
    except WorkFailed:
        return initial


def _count_tokens(texts: Sequence[str], tokenizer: TextTokenizer, max_length: int) -> int:
    return sum(map(len, tokenizer.ids(list(texts), prompt="", max_length=max_length).ids))


def _phase_cost(
    phase: PhaseConfig, plan: BatchPlan, counts: Sequence[int], *, matrix: int, rate: float
) -> dict[str, Any]:
    """Estimate a phase from the tokens of some of its batches; `matrix` is 0 without matrices."""
    tokens = int(np.mean(counts) * phase.steps)
    factor = (
        FROZEN_FACTOR
        if isinstance(phase, Stage1Config) and phase.freeze_layers
        else TRAINING_FACTOR
    )
    flops = float(factor * 2 * matrix * tokens)
    if isinstance(phase, AdapterConfig):
        flops *= 2 / 3 + 0.2
    return {
        "steps": phase.steps,
        "batch_size": phase.batch_size,
        "tokens": tokens,
        "largest_batch_tokens": max(counts),
        "minutes": round(flops / (rate * REACHED) / 60, 1),
        "sources": [
            {key: each[key] for key in ("name", "rows", "batches", "epochs")}
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


def _teacher_flops(recipe: Recipe, module: TransformerModel) -> float:
    """Floating-point work of the teacher per token, from a student that has its layers."""
    from transformers import AutoConfig

    from taskdistill.model.backbone import resolve

    all_layers = AutoConfig.from_pretrained(resolve(recipe.teacher.model)).num_hidden_layers
    layers = len(layers_of(module.backbone))
    return 2.0 * matrix_parameters(module) * int(all_layers) / layers


def _memory(
    module: TransformerModel, phases: Mapping[str, Any], compute: torch.dtype | None
) -> int:
    """Weights, gradients, two moments, the graphs of the largest batch kept, and the libraries."""
    tokens = [
        min(phase["largest_batch_tokens"], phase["budget"]["keep_tokens"])
        for phase in phases.values()
        if "budget" in phase
    ]
    return int(
        (
            LIBRARY_BYTES
            + STATE_BYTES * count_parameters(module)
            + max(tokens, default=0) * held_bytes(module.backbone, compute)
        )
        / 1e6
    )
