"""Whether a run may go on: which settings decide a phase's weights, and are they as before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from taskdistill.errors import BadInput
from taskdistill.io.atomic import restore, write_file
from taskdistill.io.folders import flatten, open_folder, require_same
from taskdistill.io.json import open_regular
from taskdistill.io.outputs import check_claim, claim, is_log
from taskdistill.io.sealed import hash_json
from taskdistill.pipeline.context import RunContext
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS
from taskdistill.recipe.recipe import Recipe, ValidationConfig, dump_recipe, parse_recipe

KIND = "run"
FREE_KEYS = (
    "threads",
    "process_timeout",
    "device",
    "evaluation",
    "name",
    "teacher.store",
    "teacher.api_key_env",
    "teacher.device",
    "teacher.batch_tokens",
)
"""Parts of a recipe that may always differ when a run is continued: they move no weight."""

LATER: Mapping[str, Any] = {
    "projection_warmup": None,
    "projection_weight_decay": None,
    "menu.kl_temperature": 0.05,
}
"""Settings of phases that came after runs had been begun, with the value that changes nothing: an
earlier run goes on.
"""


def check_run_folder(out: Path) -> None:
    """Refuse a folder that is something other than a run, or new."""
    check_claim(out, KIND, **_CLAIM)


def claim_run_folder(out: Path) -> None:
    """Make the folder of a run, or go on in it."""
    claim(out, KIND, **_CLAIM)


def _is_earlier_run(path: Path) -> bool:
    """Whether a folder without a manifest is a run of a version that gave it none."""
    try:
        with open_regular(path / "log.jsonl") as file:
            return is_log(file) and (path / "recipe.yaml").is_file()
    except (OSError, BadInput):
        return False


_CLAIM: dict[str, Any] = {
    "earlier": _is_earlier_run,
    "files": {"metrics.json": None, "report.html": None, "log.jsonl": is_log},
    "parts": ("phases", "checkpoints"),
    "folders": {
        "model": "model",
        "static-model": "model",
        "tokenizer": "tokenizer",
        "student-tokenizer": "tokenizer",
    },
}


def chooses_weights(validation: ValidationConfig | None) -> TypeGuard[ValidationConfig]:
    """Say whether scores while training decide which weights a phase ends with."""
    return validation is not None and validation.keep is not None


def deciding_data(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as plain data without what moves no number.

    Where things run, and what is chosen when they run.
    """
    # A key that is left out is written as before there was such a key, so that a run begun by an
    # earlier version has the same hash and goes on.
    fields: dict[str, Any] = recipe.model_dump(mode="json") | {"device": "auto"}
    if recipe.precision == "auto":
        fields["precision"] = "float32"
    for teacher in (fields["teacher"], *fields["teachers"].values()):
        for key in ("device", "batch_tokens"):
            del teacher[key]
        if teacher["dtype"] == "auto":
            del teacher["dtype"]
    base_phases = [phase for name in ("stage1", "long") if (phase := fields[name]) is not None]
    for phase in base_phases:
        _drop_idle(phase, {**LATER, "negatives": 0})
    for phase in fields["adapters"].values():
        _drop_idle(phase, LATER)
    for phase in (*base_phases, *fields["adapters"].values()):
        if phase["micro_batch_tokens"] is None:
            phase["micro_batch_tokens"] = MICRO_BATCH_TOKENS
    return fields


def _drop_idle(phase: dict[str, Any], idle_values: Mapping[str, Any]) -> None:
    for key, idle in idle_values.items():
        *path, name = key.split(".")
        holder = phase
        for part in path:
            holder = holder.get(part, {})
        if name in holder and holder[name] == idle:
            del holder[name]


def phase_fingerprint(recipe: Recipe, name: str) -> dict[str, Any]:
    """Collect what decides the weights of a phase.

    Seed, precision, data, teacher, student, it and the phases before it.

    Everything else may change when a run is continued. Scores while training count where they
    choose the weights.
    """
    phases = recipe.phases()
    # An adapter stands on the base alone: other adapters may come, go and change.
    is_adapter = name.startswith("adapters.")
    before = ("stage1", "long") if is_adapter else ("stage1",) if name == "long" else ()
    names = [each for each in (*before, name) if each in phases]
    used = {source for each in names for source in phases[each].reads()}
    fields = deciding_data(recipe)
    sources = {
        source: _without_words(value)
        for source, value in fields["data"]["sources"].items()
        if source in used
    }
    teacher = _without_words(fields["teacher"])
    for key in ("store", "api_key_env", "trained_on"):
        del teacher[key]
    fingerprint = {
        "seed": recipe.seed,
        "precision": fields["precision"],
        "data": {**fields["data"], "sources": sources},
        "teacher": teacher,
        "student": _without_words(fields["student"]),
    }
    if recipe.teachers:
        fingerprint |= {"teachers": fields["teachers"], "several": fields["several"]}
    if chooses_weights(recipe.evaluation.during):
        fingerprint["during"] = fields["evaluation"]["during"]
    adapters = {f"adapters.{task}": settings for task, settings in fields["adapters"].items()}
    return fingerprint | {each: (fields | adapters)[each] for each in names}


def _without_words(part: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what only the model card and plan read."""
    return {
        key: value
        for key, value in part.items()
        if key not in ("licence", "note", "rows", "tokens")
    }


def resume_meta(run: RunContext, name: str) -> dict[str, str]:
    """Hash what must be the same where a phase is continued.

    The deciding settings and the rows of its sources.
    """
    parts = phase_fingerprint(run.recipe, name)
    return {
        "recipe": hash_json(parts),
        "data": run.inputs.digest(parts["data"]["sources"]),
    }


def is_finished(run: RunContext, phase: str, folder: Path, kind: str) -> bool:
    """Say whether the run has a folder that making again need not give the same."""
    if not restore(folder):
        return False
    require_same(
        folder, open_folder(folder, kind, "delete it to make it again"), resume_meta(run, phase)
    )
    return True


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write RUN/recipe.yaml, refusing a recipe by which a begun phase would have other weights."""
    path, text = out / "recipe.yaml", dump_recipe(recipe)
    if path.is_file():
        earlier_text = path.read_text("utf-8")
        raw = yaml.safe_load(earlier_text)
        try:
            earlier = parse_recipe(raw)
        except BadInput:  # written by a version that knew other keys
            earlier = None
        now = flatten(yaml.safe_load(text))
        _refuse_other_weights(recipe, out, earlier=earlier, before=flatten(raw), now=now)
        if earlier is not None and dump_recipe(earlier) != earlier_text:
            raise BadInput(
                f"{path} is not as this program wrote it, and would be written anew; "
                "move it away, or use a new --out"
            )
    write_file(path, text)


def _refuse_other_weights(
    recipe: Recipe,
    out: Path,
    *,
    earlier: Recipe | None,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> None:
    changed = [
        key for key in {**before, **now} if before.get(key) != now.get(key) and not _is_free(key)
    ]
    if not changed:
        return
    stale = [
        name
        for name in _begun_phases(out)
        if name in recipe.phases()
        and (
            earlier is None
            or name not in earlier.phases()
            or phase_fingerprint(earlier, name) != phase_fingerprint(recipe, name)
        )
    ]
    if stale:
        shown = "; ".join(
            f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed[:5]
        )
        raise BadInput(
            f"{out} was begun with another recipe ({shown}); use a new --out, or the recipe in "
            f"{out / 'recipe.yaml'}, or delete what was trained by it "
            f"({', '.join(stale)} in its phases and checkpoints) to train that again"
        )


def _is_free(key: str) -> bool:
    return not key.startswith("evaluation.during") and any(
        f"{key}.".startswith(f"{free}.") for free in FREE_KEYS
    )


def _begun_phases(out: Path) -> list[str]:
    names = {
        path.name
        for part in ("phases", "checkpoints")
        for path in (out / part).glob("[!.]*")
        if path.is_dir()
    }
    return sorted(names | ({"static"} if (out / "static-model").is_dir() else set()))
