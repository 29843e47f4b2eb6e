"""What every process of an experiment works with: rows, teacher store, evaluation sets and the base
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskdistill.ablate.arms import Arm
from taskdistill.ablate.measure import ExperimentSets, open_sets
from taskdistill.ablate.phases import batch_plan
from taskdistill.ablate.settings import Experiment
from taskdistill.ablate.static import CachedTokenizer, is_static, static_student
from taskdistill.data.batches import BatchPlan
from taskdistill.data.rows import Dataset
from taskdistill.device import CPU
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.model.fingerprint import weights_hash
from taskdistill.model.model import Model
from taskdistill.model.rope import rope_theta
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.setup import data_root, load_inputs, start_student
from taskdistill.pipeline.teacher_store import store_root
from taskdistill.progress import Progress, SilentProgress
from taskdistill.tasks import Task
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.protocol import Teacher, View, release
from taskdistill.teacher.store import TeacherStore, open_views
from taskdistill.train.arithmetic import Arithmetic, choose_arithmetic, training_device
from taskdistill.train.collate import collate

UNUSABLE = "unusable-texts.json"
FILL_ROUNDS = 4


@dataclass(kw_only=True)
class ExperimentContext:
    """The experiment with its data at hand; every process opens its own."""

    experiment: Experiment
    out: Path
    root: Path
    datasets: dict[str, Dataset]
    data_hash: str
    teacher: Teacher
    stores: Mapping[View, TeacherStore]
    sets: ExperimentSets
    counts: dict[str, Any]
    tokens: dict[tuple[str, str], NDArray[np.int32]] = field(default_factory=dict)
    """Prompt and text of evaluation sets to token ids."""

    @cached_property
    def base(self) -> Model:
        """The untouched checkpoint; `fresh` gives copies of it."""
        if is_static(self.experiment):
            return static_student(self.experiment, self.datasets)
        student, stage = start_student(self.experiment.recipe), self.experiment.recipe.first_stage()
        assert isinstance(student.module, TransformerModel)
        if stage.rope_theta is not None and rope_theta(student.module.backbone) is None:
            kind = student.module.backbone.config.model_type
            raise BadInput(
                f"stage1.rope_theta has no effect: a {kind} backbone has no rotary positions;"
                " remove it"
            )
        return student

    @cached_property
    def device(self) -> torch.device:
        """Where students are trained and scored; a static one stays on the CPU."""
        return CPU if is_static(self.experiment) else training_device(self.experiment.recipe.device)

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """Number types of the passes of training."""
        return (
            Arithmetic()
            if is_static(self.experiment)
            else choose_arithmetic(self.experiment.recipe.precision, self.device)
        )

    @cached_property
    def once(self) -> CachedTokenizer | None:
        """The base's tokenizer that remembers the training texts, for a static student; None for
        another, whose steps are long.
        """
        return CachedTokenizer(self.base.tokenizer) if is_static(self.experiment) else None

    @cached_property
    def base_weights(self) -> dict[str, torch.Tensor]:
        """Copies of the base's weights by name."""
        return {name: p.detach().cpu().clone() for name, p in self.base.module.named_parameters()}

    @cached_property
    def base_weights_hash(self) -> str:
        """Hash of the base's weights."""
        return weights_hash(self.fresh().module)

    @cached_property
    def checkpoint_hash(self) -> str:
        """Hash of the base's weights, tokenizer, pooling, prompts and lengths, taken before the
        first step.
        """
        module = self.base.module
        stage, settings = self.experiment.recipe.first_stage(), self.base.settings
        pooling = module.pooling.value if isinstance(module, TransformerModel) else "static"
        message = [
            pooling,
            sorted(settings.prompts.items()),
            settings.max_length,
            stage.max_length,
            settings.rope_theta,
        ]
        tokens = hashlib.sha256(self.base.tokenizer.to_json().encode()).hexdigest()
        return hashlib.sha256(
            json.dumps([self.base_weights_hash, tokens, message]).encode()
        ).hexdigest()

    @property
    def truncations(self) -> tuple[int, ...]:
        """Sizes to which vectors are cut when they are scored: those of the evaluation, otherwise
        those trained for.
        """
        return tuple(self.experiment.recipe.evaluation.dims or self.base.settings.matryoshka_dims)

    def fresh(self) -> Model:
        """Put the base's weights back."""
        weights = self.base_weights
        with torch.no_grad():
            for name, parameter in self.base.module.named_parameters():
                parameter.copy_(weights[name])
        return self.base

    def plan(self, seed: int, arm: Arm | None = None) -> BatchPlan:
        """Return the batches of a seed. `arm`: only asked whether its batch is larger."""
        times = self.experiment.ablation.large_batch if arm is not None and arm.large else 1
        return batch_plan(self.experiment, self.datasets, seed, times)

    def teacher_texts(self, seed: int, steps: int) -> dict[View, list[str]]:
        """List the distinct texts that some steps compare with the teacher.

        Returns view to texts, in the order of first use.
        """
        plan, result = self.plan(seed), dict[View, dict[str, None]]()
        for step in range(steps):
            prepared = collate(plan.at(step), task=Task.RETRIEVAL, distil=True)
            for view, text in prepared.teacher_texts():
                result.setdefault(view, {})[text] = None
        return {view: list(texts) for view, texts in result.items()}


def open_context(
    experiment: Experiment,
    out: Path,
    recipe_folder: Path,
    progress: Progress | None = None,
    api_key: str | None = None,
) -> ExperimentContext:
    """Read what an experiment needs.

    `recipe_folder`: where the recipe file is, for relative paths in it. Raises BadInput if data,
    teacher or sets cannot be used.
    """
    progress = progress or SilentProgress()
    recipe = experiment.recipe
    root = data_root(recipe, recipe_folder, out.parent / f"{out.name}-data", progress)
    alone = recipe.model_copy(update={"static": None, "long": None, "adapters": {}})
    inputs = load_inputs(alone, root, progress)
    if (out / UNUSABLE).is_file():
        inputs = inputs.without(set(_unusable(out / UNUSABLE)))
    teacher = make_teacher(
        recipe.teacher, api_key=api_key, threads=recipe.threads or 1, root=store_root(recipe, out)
    )
    stores = open_views(store_root(recipe, out), teacher, recipe.teacher.instructions)
    return ExperimentContext(
        experiment=experiment,
        out=out,
        root=root,
        datasets=inputs.datasets,
        data_hash=inputs.digest(),
        teacher=teacher,
        stores=stores,
        sets=open_sets(experiment, root),
        counts=inputs.counts(),
    )


def fill_teacher_store(
    context: ExperimentContext,
    seeds_and_steps: Mapping[int, int],
    progress: Progress,
    reopen: Callable[[], ExperimentContext],
) -> ExperimentContext:
    """Embed every text that some arm will compare with the teacher; rows with a text that has no
    vector are left out everywhere.

    `seeds_and_steps`: seed to the most steps that distil with it. `reopen`: opens the context
    again, without unusable rows. Returns the context, opened again if rows were left out. Raises
    WorkFailed if new texts keep turning up without a vector.
    """
    left_out: set[str] = set()
    for _ in range(FILL_ROUNDS):
        requested: dict[int, tuple[TeacherStore, dict[str, None]]] = {}
        for seed, steps in seeds_and_steps.items():
            for view, texts in context.teacher_texts(seed, steps).items():
                store = context.stores[view]
                requested.setdefault(id(store), (store, {}))[1].update(dict.fromkeys(texts))
        missing: set[str] = set()
        for store, result in requested.values():
            if new := len(store.missing(list(result))):
                progress.stage(f"embedding {new:,} texts with the teacher")
            report = fill_store(store, list(result), context.teacher, progress=progress.count)
            progress.note(
                f"teacher store: {report.distinct:,} distinct texts, {report.found:,} already"
                f" there, {report.embedded:,} embedded"
            )
            missing.update(store.missing(list(result)))
        if not missing:
            release(context.teacher)
            return context
        left_out |= missing
        write_sealed(context.out / UNUSABLE, {"texts": sorted(left_out)})
        context = reopen()
    raise WorkFailed(
        f"the teacher keeps giving unusable vectors, the last for {sorted(left_out)[0][:60]!r};"
        " look at the teacher"
    )


def _unusable(path: Path) -> list[str]:
    """Read the texts for which the teacher gave no vector; the first format was a list alone."""
    result = read_sealed(path, "remove it to ask the teacher for those texts again")
    texts: list[str] = result["texts"] if isinstance(result, dict) else result
    return texts
