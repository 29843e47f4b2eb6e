"""Which terms a phase has: weights completed and moved, and settings without effect refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from taskdistill.config import is_set
from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.losses.registry import LOSSES, REFUSALS, needing, phase_terms, task_terms
from taskdistill.recipe.phases import STAGE1_LOSSES, AdapterConfig, PhaseConfig, Stage1Config
from taskdistill.tasks import TASKS, Task
from taskdistill.types import RowKind


def check_options(where: str, settings: PhaseConfig, weights: Mapping[str, float]) -> None:
    """Refuse settings of terms that have no weight, and ramps that move none.

    Raises BadInput naming the setting.
    """
    for name in settings.weight_schedule:
        if name not in weights:
            raise BadInput(
                f"{where}.weight_schedule.{name} has no effect: that term has no weight above 0; "
                "remove it"
            )
    for name in type(settings.menu).model_fields:
        terms = [
            term.name
            for term in LOSSES.values()
            if term.config.in_menu and name in term.config.model_fields
        ]
        if is_set(settings.menu, name) and not weights.keys() & set(terms):
            raise BadInput(
                f"{where}.menu.{name} has no effect without a weight of {' or '.join(terms)}; "
                "remove it"
            )


def _check_sharpen(
    name: str, settings: AdapterConfig, used: Sequence[Dataset], requested: Mapping[str, float]
) -> None:
    """Refuse what would sharpen no contrast.

    Without its term, or without hard negatives in the rows.
    """
    if not settings.sharpen.enabled:
        return
    if not needing("candidates", requested) or all(
        dataset.kind is not RowKind.PAIRS for dataset in used
    ):
        raise BadInput(f"{name}.sharpen has no effect without a contrast of pairs; remove it")
    max_negatives = max(
        (
            len(row.negatives)
            for dataset in used
            if dataset.kind is RowKind.PAIRS
            for row in dataset.rows
        ),
        default=0,
    )
    max_negatives = min(max_negatives, settings.negatives)
    if (settings.sharpen.hardness and max_negatives < 1) or (
        settings.sharpen.mixed_negatives and max_negatives < 2
    ):
        raise BadInput(
            f"{name}.sharpen: rows have at most {max_negatives} hard negatives here; hardness "
            "needs 1 a row and mixed_negatives 2: mine some with "
            "`taskdistill mine`, or remove the setting"
        )


def check_adapter(
    where: str, settings: AdapterConfig, used: Sequence[Dataset], weights: Mapping[str, float]
) -> None:
    """Refuse what has no effect on an adapter. Raises BadInput naming the setting."""
    check_options(where, settings, weights)
    _check_sharpen(where, settings, used, weights)


def check_stage1(where: str, settings: Stage1Config, used: Sequence[Dataset]) -> None:
    """Refuse what has no effect on a phase that trains the base.

    Raises BadInput naming the setting or term.
    """
    requested = stage1_weights(where, settings.weights)
    check_options(where, settings, requested)
    if settings.projection == "student" and not needs_projection(requested):
        for name in ("projection_lr", "projection_warmup", "projection_weight_decay"):
            if getattr(settings, name) is not None:
                raise BadInput(
                    f"{where}.{name} has no effect: no term with a weight goes through the "
                    "projection; remove it"
                )
    kinds = {dataset.kind for dataset in used}
    rows = {term.name: term.rows["base"] for term in phase_terms("base", requested)}
    if kinds - {kind for taken in rows.values() for kind in taken}:
        name, taken = next(iter(rows.items()))
        raise BadInput(
            f"{where}: {name} is a term of {' and '.join(taken)}, and some sources hold other rows;"
            " give a weight to distill as well"
        )
    for name, taken in rows.items():
        if not kinds & set(taken):
            raise BadInput(
                f"{where}.weights.{name} has no effect: no source of the phase holds "
                f"{' or '.join(taken)}; remove it"
            )


def _refuse_unknown(where: str, names: Collection[str], known: Sequence[str], what: str) -> None:
    """Refuse losses that stored vectors cannot feed, and those that the phase does not have."""
    for name in names:
        if name in REFUSALS:
            raise BadInput(f"{where}.weights names {name!r}, which {REFUSALS[name]}")
    for name in names:
        if name not in known:
            raise BadInput(
                f"{where}.weights names {name!r}, which this {what} does not "
                f"have{did_you_mean(name, known)}"
            )


def weights_for(task: Task, weights: Mapping[str, float]) -> dict[str, float]:
    """Complete a recipe's loss weights with the paper's.

    Raises BadInput if a term is not one of the task's.
    """
    _refuse_unknown(f"adapters.{task.value}", weights, task_terms(task), "task")
    return {
        name: weight for name, weight in {**TASKS[task].losses, **weights}.items() if weight > 0
    }


def stage1_weights(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Check the loss weights of a phase that trains the base.

    Raises BadInput if a term does not exist, or all are off.
    """
    _refuse_unknown(name, weights, [term.name for term in phase_terms("base")], "phase")
    requested = {term: weight for term, weight in (weights or STAGE1_LOSSES).items() if weight > 0}
    if not requested:
        raise BadInput(
            f"{name}.weights has no term with a weight above 0; distill is the usual one"
        )
    return requested


def needs_projection(terms: Collection[str]) -> bool:
    """Say whether some terms compare in the teacher's space.

    The others compare similarities, which need no common space.
    """
    return bool(needing("projection", terms))


def weight_at(weights: Mapping[str, float], settings: PhaseConfig, step: int) -> dict[str, float]:
    """Return the weights of one step.

    `settings`: the phase; its ramps multiply weights. `step`: step of the phase, from 0.
    """
    result = dict(weights)
    for name in weights.keys() & settings.weight_schedule.keys():
        ramp = settings.weight_schedule[name]
        done = min(1.0, step / max(1.0, ramp.until * settings.steps))
        result[name] = weights[name] * (ramp.start + (ramp.end - ramp.start) * done)
    return result
