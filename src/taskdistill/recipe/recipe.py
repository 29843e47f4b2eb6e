"""A run as data, read from YAML with dotted overrides; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from taskdistill.config import ConfigModel, Positive, is_set
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.sealed import hash_json
from taskdistill.losses.registry import LOSSES
from taskdistill.recipe.data import DataConfig
from taskdistill.recipe.load import explain, read_recipe
from taskdistill.recipe.phases import (
    ACTS_FOR,
    AdapterConfig,
    PhaseConfig,
    Stage1Config,
    StaticConfig,
)
from taskdistill.recipe.student import StudentConfig
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.seeding import SEEDS
from taskdistill.tasks import TASKS, Task
from taskdistill.types import Precision

FIRST = "teacher"
"""Name of the first teacher among several."""


class ValidationConfig(ConfigModel):
    """Scores while a phase trains, on small development sets, so that they take seconds."""

    every: Positive = Field(
        description=(
            "Steps between two evaluations; the first and the last state of a phase are "
            "always scored"
        )
    )
    sets: list[str] | None = Field(
        default=None, description="Names of development sets; None: evaluation.dev"
    )
    max_queries: Positive | None = Field(
        default=200, description="Most queries, pairs or test rows of a set, drawn by the seed"
    )
    max_documents: Positive | None = Field(
        default=2000,
        description=(
            "A retrieval corpus is cut to the judged documents and others drawn by the "
            "seed, up to this many"
        ),
    )
    keep: str | None = Field(
        default=None,
        description=(
            "`mean` of the main scores, a set, or `set:metric`: every phase that scores "
            "it ends with the weights that were best "
            "by it; None only logs"
        ),
    )


class EvaluationConfig(ConfigModel):
    """What the finished model is measured on, beside its teacher."""

    root: str | None = Field(default=None, description="Folder of evaluation sets; None: data.root")
    sets: list[str] | None = Field(
        default=None, description="Names of evaluation sets; None: every test set found"
    )
    dev: list[str] = Field(
        default_factory=list, description="Names of development sets, for the gate of averaging"
    )
    dims: list[Positive] | None = Field(
        default=None, description="Truncations to score; None: student.matryoshka_dims"
    )
    full_train: bool = Field(
        default=False,
        description="Classification also reports a linear probe on the whole training split",
    )
    precisions: list[Precision] = Field(
        default_factory=lambda: [Precision.FLOAT32, Precision.INT8, Precision.BINARY]
    )
    examples: list[str] = Field(
        default_factory=list, description="Queries whose results the command shows at its end"
    )
    max_queries: Positive | None = Field(
        default=None,
        description="Cut large sets to this many queries, drawn by the seed; None: all",
    )
    during: ValidationConfig | None = Field(
        default=None, description="Scores while training; None: only the finished model is scored"
    )

    @model_validator(mode="after")
    def _sets_for_during(self) -> EvaluationConfig:
        if self.during is not None and not (
            self.dev if self.during.sets is None else self.during.sets
        ):
            raise ValueError("during names no sets, and dev neither; give during.sets or dev")
        return self


class Recipe(ConfigModel):
    """A whole run, from texts and a teacher to a model folder and a report."""

    name: str
    licence: str | None = Field(
        default=None, description="Licence of the trained model, for its card"
    )
    seed: int = Field(default=17, ge=0, lt=SEEDS)
    threads: Positive | None = Field(
        default=None, description="Worker threads; None: the cores of this machine"
    )
    process_timeout: float = Field(
        default=10.0,
        ge=0.01,
        le=525_600,
        description=(
            "Minutes that a process waits for the others in an exchange of a training "
            "step before it ends. What the "
            "first one does alone (teacher store, folders, scores) is waited for without this limit"
        ),
    )
    device: str = Field(
        default="auto",
        description=(
            "Where training and evaluation run: auto (an accelerator if there is one) or "
            "any device that torch knows, such as cuda:1"
        ),
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        default="auto",
        description=(
            "Number type of the passes in training; weights, optimiser and losses stay "
            "float32. auto: bfloat16 on an accelerator that "
            "computes in it, float32 elsewhere; tf32: float32 whose products round their factors. "
            "What the hardware has not is refused"
        ),
    )
    data: DataConfig
    teacher: TeacherConfig
    teachers: dict[str, TeacherConfig] = Field(
        default_factory=dict, description="Further teachers by name, beside `teacher`"
    )
    several: Literal["concatenate", "heads"] = Field(
        default="concatenate",
        description=(
            "With several teachers. concatenate: their unit vectors side by side are one "
            "target; heads: each has its own part of the "
            "projection and its own cosine, and counts the same"
        ),
    )
    student: StudentConfig
    static: StaticConfig | None = None
    stage1: Stage1Config | None = Field(
        default=None,
        description="None: the run ends with the instant student, which is then its model",
    )
    long: Stage1Config | None = Field(
        default=None,
        description="The long phase: more steps of stage 1's loss with its own length and theta",
    )
    adapters: dict[Task, AdapterConfig] = Field(default_factory=dict)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _sources_known(self) -> Recipe:
        for where, phase in self.phases().items():
            for name in sorted({*phase.sources, *phase.reads()}):
                if name not in self.data.sources:
                    raise ValueError(
                        f"{where}.sources names {name!r}{did_you_mean(name, self.data.sources)}"
                    )
        return self

    @model_validator(mode="after")
    def _has_phases(self) -> Recipe:
        if self.stage1 is None:
            if self.static is None:
                raise ValueError(
                    "neither stage1 nor static is given, so nothing would be trained; stage1 is "
                    "the usual one"
                )
            if later := (["long"] if self.long is not None else []) + [
                f"adapters.{task.value}" for task in self.adapters
            ]:
                raise ValueError(f"key 'stage1' is missing: {later[0]} builds on it")
        return self

    @model_validator(mode="after")
    def _teachers_known(self) -> Recipe:
        names = [FIRST, *self.teachers]
        if FIRST in self.teachers:
            raise ValueError(f"teachers names {FIRST!r}, which is the first one; give another name")
        if not self.teachers and self.several != "concatenate":
            raise ValueError("several has no effect without `teachers`; remove it")
        for source, config in self.data.sources.items():
            if config.teachers is not None and (not self.teachers or not config.teachers):
                raise ValueError(
                    f"data.sources.{source}.teachers needs several teachers and one name or more; "
                    "remove it"
                )
            for name in config.teachers or ():
                if name not in names:
                    raise ValueError(
                        f"data.sources.{source}.teachers names {name!r}{did_you_mean(name, names)}"
                    )
        if self.teachers and (
            self.static is not None
            or any(p.projection == "none" for p in (self.stage1, self.long) if p is not None)
        ):
            raise ValueError(
                "several teachers need a projection and no static student: leave `static` out, "
                "and projection at student"
            )
        if keyed := [
            name for name, config in self.teachers.items() if config.api_key_env is not None
        ]:
            raise ValueError(
                f"teachers.{keyed[0]}.api_key_env is not read: a teacher with a key must be the "
                "first, `teacher`"
            )
        return self

    @model_validator(mode="after")
    def _settings_act(self) -> Recipe:
        idle = [
            (f"adapters.{task}.{name}", f"the {task} adapter has no such term")
            for task, adapter in self.adapters.items()
            for name, tasks in ACTS_FOR.items()
            if task not in tasks and is_set(adapter, name)
        ]
        idle += [
            (f"adapters.{task}.{key}", f"weights.{term.name} is 0")
            for task, adapter in self.adapters.items()
            for term in LOSSES.values()
            for key, setting in term.phase_settings.items()
            if setting.needs_weight
            and is_set(adapter, key)
            and not {**TASKS[task].losses, **adapter.weights}.get(term.name, 0)
        ]
        if self.student.vocabulary is not None:
            if self.stage1 is None:
                idle.append(
                    (
                        "student.vocabulary",
                        (
                            "it is learned from the texts of stage1, which is missing; static has"
                            " one of its own"
                        ),
                    )
                )
            if self.static is not None and self.static.vocabulary is None:
                raise ValueError(
                    "static would share the student's vocabulary, which is learned after it; give "
                    "static.vocabulary as well"
                )
        if self.stage1 is not None and self.stage1.projection == "none":
            heads = (
                "projection_init",
                "projection_lr",
                "projection_warmup",
                "projection_weight_decay",
            )
            idle += [
                (f"stage1.{name}", "stage1.projection is none")
                for name in heads
                if is_set(self.stage1, name)
            ]
        if self.long is not None and is_set(self.long, "projection_init"):
            idle.append(
                ("long.projection_init", "the long phase goes on with stage 1's projection")
            )
        for name, config in self.all_teachers().items():
            where = name if name == FIRST else f"teachers.{name}"
            idle += [
                (f"{where}.{key}", f"a {config.kind} teacher does not run here")
                for key in ("device", "dtype", "batch_tokens")
                if config.kind != "local" and is_set(config, key)
            ]
        if self.teacher.kind != "http" and self.teacher.api_key_env is not None:
            idle.append(("teacher.api_key_env", f"a {self.teacher.kind} teacher takes no key"))
        for key, why in idle:
            raise ValueError(f"{key} has no effect: {why}; remove it")
        return self

    def all_teachers(self) -> dict[str, TeacherConfig]:
        """Name every teacher."""
        return {FIRST: self.teacher, **self.teachers}

    def readers(self, source: str) -> list[int]:
        """Say which teachers read a source."""
        chosen = self.data.sources[source].teachers
        return [
            place
            for place, name in enumerate(self.all_teachers())
            if chosen is None or name in chosen
        ]

    def first_stage(self) -> Stage1Config:
        """Return stage 1 where there must be one.

        Raises BadInput if the recipe trains the instant student alone.
        """
        if self.stage1 is None:
            raise BadInput(f"recipe {self.name!r} has no stage1, which is needed here; add it")
        return self.stage1

    def phases(self) -> dict[str, PhaseConfig | StaticConfig]:
        """Return the phases in the order in which they run."""
        result: dict[str, PhaseConfig | StaticConfig] = {}
        if self.static is not None:
            result["static"] = self.static
        if self.stage1 is not None:
            result["stage1"] = self.stage1
        if self.long is not None:
            result["long"] = self.long
        for task in Task:
            if task in self.adapters:
                result[f"adapters.{task.value}"] = self.adapters[task]
        return result

    def digest(self) -> str:
        """Return a hash of everything the recipe says."""
        return hash_json(self.model_dump(mode="json"))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML and apply dotted overrides.

    Args:
        overrides: Strings such as `stage1.steps=100`; the value is YAML.

    Raises:
        BadInput: If the file cannot be read, or a key or value is not the recipe's.
    """
    raw = read_recipe(path, overrides)
    if "ablation" in raw:
        raise BadInput(
            f"{path} is the recipe of an ablation, which has arms instead of phases; run it with: "
            f"taskdistill ablate {path} --out DIR"
        )
    return parse_recipe(raw, str(path))


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain data against the recipe models.

    Raises BadInput on the first faults, each with its dotted key.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{where}: " + "; ".join(explain(error, Recipe)[:5])) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe with every default spelled out, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
