"""An ablation as data: a recipe, its `ablation` section, a preset below both, and the hash of all
that is frozen before the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from taskdistill.ablate.arms import ARMS, CORE, Arm, arm_of
from taskdistill.config import ConfigModel, Fraction, Positive
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.pipeline.resume import deciding_data
from taskdistill.recipe.load import explain, read_recipe
from taskdistill.recipe.recipe import Recipe, parse_recipe
from taskdistill.seeding import later_seed
from taskdistill.tasks import Task
from taskdistill.types import RowKind

EXPECTATION = (
    "On small students and short budgets C leads early, D catches up, DC ends 0 to 1.5 points above"
    " the better of both, and the spread-out regulariser matters for binary vectors only."
)
"""What is written down before a run that states nothing of its own."""

Rate = Annotated[float, Field(gt=0)]


class SearchSpace(ConfigModel):
    """From where to where every arm is tuned; each is drawn evenly on a logarithmic scale."""

    lr: tuple[Rate, Rate] = Field(default=(1e-4, 3e-3), description="Learning rate")
    temperature: tuple[Rate, Rate] = Field(default=(0.01, 0.2), description="Of InfoNCE")
    weight: tuple[Rate, Rate] = Field(
        default=(0.5, 20.0), description="Of distillation where it is combined with InfoNCE"
    )

    @model_validator(mode="after")
    def _ascending(self) -> SearchSpace:
        for name in type(self).model_fields:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} {[low, high]} is empty; give the smaller number first")
        return self


class Ablation(ConfigModel):
    """What the experiment is, beside the recipe's data, teacher, student and stage 1 (steps, batch,
    length, optimiser of every arm).
    """

    arms: list[str] = Field(
        default_factory=lambda: list(ARMS),
        description="Names of arms; A0, D, C and DC are always among them",
    )
    seeds: Positive = Field(default=5, description="Seeds of D, C and DC")
    other_seeds: Positive | None = Field(
        default=None, description="Seeds of every other arm; None: as many"
    )
    second_share: Fraction = Field(
        default=0.3,
        gt=0,
        description="Share of the steps that a second phase has (D->DC, D->C, D->D)",
    )
    temperature: Rate = Field(default=0.05, description="Of InfoNCE where it is not tuned")
    distill_weight: Rate = Field(
        default=2.0, description="Of distillation beside InfoNCE where it is not tuned"
    )
    gor_weight: Rate = Field(
        default=1.0, description="Of the spread-out regulariser in the arms that have it"
    )
    negatives: int = Field(default=0, ge=0, description="Hard negatives taken from a row, at most")
    negatives_from: Literal["rows", "bm25", "student", "teacher"] | None = Field(
        default=None,
        description=(
            "Who chose the rows' negatives; the teacher is refused, since that would be its signal"
            " in C"
        ),
    )
    base_from_teacher: bool = Field(
        default=False,
        description=(
            "Allow a student that starts from the teacher's own layers; every arm then holds"
            " something of the teacher"
        ),
    )
    trials: Positive = Field(
        default=6, description="Settings tried for each tuned arm; the first is the untuned one"
    )
    trial_share: float = Field(
        default=0.25, gt=0, le=1, description="Share of the steps that a trial has"
    )
    ranges: SearchSpace = Field(default_factory=SearchSpace)
    points: Positive = Field(
        default=10, description="Points of each learning curve, on the dev sets"
    )
    max_dev_queries: Positive | None = Field(
        default=None, description="Cut dev sets to this many queries; None: all"
    )
    margin: float = Field(
        default=1.0,
        gt=0,
        description="Difference in points of the primary metric below which nothing is relevant",
    )
    pilot_seeds: Positive = Field(
        default=3, description="Seeds of DC from which the smallest detectable effect is taken"
    )
    query_sd: float = Field(
        default=0.19,
        gt=0,
        description="Stated standard deviation over queries of a difference of two arms, 0 to 1",
    )
    large_batch: Positive = Field(
        default=4, description="Batch of the arm C-large, in times the others'"
    )
    longest: float = Field(
        default=4.0, ge=1, description="C at equal cost gets at most this many times the steps"
    )
    keep_models: bool = Field(
        default=False, description="Write a model folder for every arm and seed"
    )
    expectation: str = Field(
        default=EXPECTATION, description="What is expected, written down and hashed before the run"
    )

    @model_validator(mode="after")
    def _known(self) -> Ablation:
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"arms names {name!r}{did_you_mean(name, ARMS)}")
        if self.negatives and self.negatives_from is None:
            raise ValueError(
                "negatives needs negatives_from: say who chose the rows' negatives (rows, bm25,"
                " student)"
            )
        if not self.negatives and self.negatives_from is not None:
            raise ValueError("negatives_from has no effect while negatives is 0; remove it")
        if self.other_seeds is not None and self.other_seeds > self.seeds:
            raise ValueError(
                f"other_seeds {self.other_seeds} is more than seeds {self.seeds}; arms are compared"
                " on the seeds they share"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "arms": ["A0", "D", "C", "DC"],
        "seeds": 2,
        "pilot_seeds": 2,
        "trials": 2,
        "points": 4,
        "max_dev_queries": 200,
    },
    "demo": {
        "arms": [name for name in ARMS if name not in ("C-large", "C-seconds")],
        "seeds": 5,
        "other_seeds": 3,
        "trials": 6,
        "points": 8,
    },
    "full": {"arms": list(ARMS), "seeds": 5, "trials": 12, "points": 20, "longest": 16.0},
}
"""Size of an experiment, below what a recipe's `ablation` section says."""


@dataclass(frozen=True)
class Experiment:
    """Everything that is frozen before the run."""

    recipe: Recipe
    ablation: Ablation
    left_out: tuple[str, ...]
    """Sources of stage 1 that are no pairs, which not every arm could learn from."""

    def arms(self) -> list[Arm]:
        """Return the arms in the order of the table of arms."""
        return [arm_of(name) for name in ARMS if name in self.ablation.arms]

    def seeds_of(self, arm: Arm) -> list[int]:
        """Return the seeds of an arm; seed k means the same batches and the same initial projection
        in every arm.

        Returns consecutive numbers from the recipe's seed on; one only for the arm that is not
        trained.
        """
        count = (
            self.ablation.seeds
            if arm.name in CORE
            else self.ablation.other_seeds or self.ablation.seeds
        )
        return [later_seed(self.recipe.seed, k) for k in range(count if arm.phases else 1)]

    def frozen(self) -> dict[str, Any]:
        """Return what is written down before the run.

        Returns plain data: the recipe without what moves no number (folders, whose content is
        hashed elsewhere), and the ablation.
        """
        left_out = ("name", "threads", "process_timeout", "static", "long", "adapters")
        recipe = {
            key: value for key, value in deciding_data(self.recipe).items() if key not in left_out
        }
        for part, name in (("teacher", "store"), ("data", "root"), ("evaluation", "root")):
            recipe[part].pop(name)
        return {
            "recipe": recipe,
            "ablation": self.ablation.model_dump(mode="json"),
            "left_out": list(self.left_out),
        }

    def digest(self) -> str:
        """Hash what is frozen. Returns 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.frozen(), sort_keys=True).encode()).hexdigest()


def load_experiment(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    arms: Sequence[str] = (),
    seeds: int | None = None,
) -> Experiment:
    """Read a recipe with its `ablation` section; a preset fills what the section leaves open,
    arguments come before both.

    `overrides`: such as `stage1.steps=100` or `ablation.trials=4`. `arms`: arms instead of the
    section's; A0, D, C and DC are added. `seeds`: number of seeds instead of the section's. Raises
    BadInput if the recipe or the section is faulty, or no source holds pairs.
    """
    raw = read_recipe(path, overrides)
    section = raw.pop("ablation", None) or {}
    if not isinstance(section, dict):
        raise BadInput(f"{path}: `ablation` holds no mapping; write arms, seeds and so on below it")
    if preset is not None and preset not in PRESETS:
        raise BadInput(f"unknown preset {preset!r}{did_you_mean(preset, PRESETS)}")
    request: dict[str, Any] = {**PRESETS.get(preset or "", {}), **section}
    if arms:
        request["arms"] = list(arms)
    if seeds is not None:
        request["seeds"] = seeds
        if request.get("other_seeds") is not None:
            request["other_seeds"] = min(request["other_seeds"], seeds)
    try:
        ablation = Ablation.model_validate(request)
    except ValidationError as error:
        raise BadInput(f"{path}: ablation: " + "; ".join(explain(error, Ablation)[:5])) from None
    ablation = ablation.model_copy(
        update={"arms": [name for name in ARMS if name in {*ablation.arms, "A0", *CORE}]}
    )
    return make_experiment(parse_recipe(raw, str(path)), ablation)


def make_experiment(recipe: Recipe, ablation: Ablation) -> Experiment:
    """Fit a recipe and an ablation together: every arm learns from the same pairs.

    `recipe`: the recipe; of its phases only stage 1 is used. Raises BadInput if stage 1 has no
    source of pairs, too few steps for its curve, or a teacher's signal would reach C.
    """
    stage = recipe.first_stage()
    if recipe.teachers:
        raise BadInput("an ablation has one teacher; leave `teachers` out")
    if recipe.student.vocabulary is not None:
        raise BadInput(
            "an ablation compares arms of one vocabulary, the initial model's; leave"
            " student.vocabulary out"
        )
    if stage.freeze_layers:
        raise BadInput("an ablation trains the whole student; leave stage1.freeze_layers out")
    retained = {
        name: weight
        for name, weight in stage.sources.items()
        if weight > 0 and recipe.data.sources[name].kind is RowKind.PAIRS
    }
    left = tuple(
        name for name, weight in stage.sources.items() if weight > 0 and name not in retained
    )
    if not retained:
        raise BadInput(
            "stage1.sources has no pairs; InfoNCE needs queries with positives, and every arm"
            " learns from the same rows"
        )
    first = stage.steps - second_steps(stage.steps, ablation)
    if min(stage.steps // ablation.points, first, trial_steps(stage.steps, ablation)) < 1:
        raise BadInput(
            f"stage1.steps {stage.steps} is too few for {ablation.points} points, a second phase"
            " and trials; give more steps"
        )
    retrieval = recipe.adapters.get(Task.RETRIEVAL)
    if retrieval is not None and retrieval.false_negative_margin is not None:
        raise BadInput(
            "adapters.retrieval.false_negative_margin masks negatives by the teacher's"
            " similarities, which is the teacher's signal in C; set it to null: --set"
            " adapters.retrieval.false_negative_margin=null"
        )
    if ablation.negatives_from == "teacher":
        raise BadInput(
            "ablation.negatives_from is the teacher: negatives that it mined are its signal, and C"
            " would not be without it; mine them with BM25 or the student, or set"
            " ablation.negatives to 0"
        )
    if recipe.student.init == "teacher" and not ablation.base_from_teacher:
        raise BadInput(
            "student.init is `teacher`: every arm, C too, would start from the teacher's own"
            " layers; start from another checkpoint or from `config`, or accept it with"
            " ablation.base_from_teacher=true, which the report will say"
        )
    if not recipe.evaluation.dev:
        raise BadInput(
            "evaluation.dev names no set; tuning and learning curves need dev sets apart from the"
            " test sets"
        )
    sources = stage.model_copy(update={"sources": retained})
    return Experiment(recipe.model_copy(update={"stage1": sources}), ablation, left)


def second_steps(steps: int, ablation: Ablation) -> int:
    """Return the steps of a second phase. Returns at least 1."""
    return max(1, round(ablation.second_share * steps))


def trial_steps(steps: int, ablation: Ablation) -> int:
    """Return the steps of a trial. Returns at least 1."""
    return max(1, round(ablation.trial_share * steps))
