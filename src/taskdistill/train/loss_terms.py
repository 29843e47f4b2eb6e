"""The loss menu in a phase.

Which terms a batch allows, their settings, and weights that change with the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.losses.registry import CONTRASTS, LOSSES, STAGE1_TERMS, TEACHER_TERMS
from taskdistill.losses.term import LossTerm, normalize, over_prefixes
from taskdistill.losses.terms.contrastive import mixed_negatives, sharpened_info_nce
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import (
    AdapterConfig,
    HardNegativeWeighting,
    LossOptions,
    PhaseConfig,
    Stage1Config,
)
from taskdistill.train.arithmetic import to_device
from taskdistill.train.collate import TrainBatch
from taskdistill.types import RowKind

LAYERS = "hidden"


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
        terms = [term.name for term in LOSSES.values() if name in term.options.values()]
        if getattr(settings.menu, name) != type(settings.menu).model_fields[
            name
        ].default and not weights.keys() & set(terms):
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
    if not requested.keys() & set(CONTRASTS) or all(
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
    if requested.keys() == {"list_kl"} and any(
        dataset.kind is not RowKind.PAIRS for dataset in used
    ):
        raise BadInput(
            f"{where}: list_kl is a term of pairs, and some sources hold other rows; give a "
            "weight to distill as well"
        )
    if "list_kl" in requested and all(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(
            f"{where}.weights.list_kl has no effect: no source of the phase holds pairs; remove it"
        )


def refuse_layers(where: str, names: Collection[str]) -> None:
    """Refuse the one loss of the menu that stored vectors cannot feed.

    Raises BadInput if it is among them.
    """
    if LAYERS in names:
        raise BadInput(
            f"{where}.weights names {LAYERS!r}, which compares layers of student and teacher; the"
            " teacher store holds final vectors only. Take rkd_distance or similarity, or"
            " `losses.terms.embedding.hidden_distance` in a loop of your own"
        )


def stage1_weights(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Check the loss weights of a phase that trains the base.

    Raises BadInput if a term does not exist, or all are off.
    """
    refuse_layers(name, weights)
    for term in weights:
        if term not in STAGE1_TERMS:
            raise BadInput(
                f"{name}.weights names {term!r}, which this phase does not "
                f"have{did_you_mean(term, STAGE1_TERMS)}"
            )
    requested = {
        term: weight for term, weight in (weights or {"distill": 1.0}).items() if weight > 0
    }
    if not requested:
        raise BadInput(
            f"{name}.weights has no term with a weight above 0; distill is the usual one"
        )
    return requested


def needs_projection(terms: Collection[str]) -> bool:
    """Say whether some terms compare in the teacher's space.

    The others compare similarities, which need no common space.
    """
    return any("projection" in LOSSES[name].needs for name in terms)


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


@dataclass(frozen=True, kw_only=True)
class _TeacherPart:
    """One teacher's columns among those of all, and the texts that it has vectors for."""

    columns: slice
    known: Tensor | None
    """`(n,)` of bool; None where it has all, as a single teacher does."""


def _teacher_parts(teacher: Tensor, widths: Sequence[int]) -> list[_TeacherPart]:
    if not widths:
        return [_TeacherPart(columns=slice(0, teacher.shape[1]), known=None)]
    ends = list(accumulate(widths))
    columns = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    known = [~teacher[:, each].isnan().any(1) for each in columns]
    # With two texts there is no relation to compare but one; a teacher that knows fewer says
    # nothing about this batch.
    return [
        _TeacherPart(columns=each, known=rows)
        for each, rows in zip(columns, known, strict=True)
        if int(rows.sum()) > 2
    ]


def teacher_terms(
    vectors: Tensor,
    prepared: TrainBatch,
    teacher: Tensor,
    projection: Projection | None,
    dims: Sequence[int],
    settings: PhaseConfig,
    names: Collection[str],
    *,
    widths: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Take every named term against the teacher that the batch allows, over every prefix.

    `teacher`: the teacher's vectors of `TrainBatch.distilled`, `(n, T)`; of several teachers side
    by side, not a number where one has none. `widths`: size of each teacher's vectors, where there
    are several: a term is then its mean over the teachers that know the texts. Returns name to
    scalar; `list_kl` only for pairs.
    """
    parts = _teacher_parts(teacher, widths)
    terms: dict[str, Tensor] = {}
    for name in (each for each in TEACHER_TERMS if each in names):
        if name == "list_kl" and prepared.batch.kind is not RowKind.PAIRS:
            continue
        values = [
            _teacher_term(
                LOSSES[name], part, vectors, prepared, teacher, projection, dims, settings.menu
            )
            for part in parts
        ]
        terms[name] = torch.stack(values).mean() if values else 0.0 * vectors.sum()
    return terms


def _teacher_term(
    term: LossTerm,
    part: _TeacherPart,
    vectors: Tensor,
    prepared: TrainBatch,
    teacher: Tensor,
    projection: Projection | None,
    dims: Sequence[int],
    menu: LossOptions,
) -> Tensor:
    """Take one term against one teacher, on the texts that it knows."""
    options: dict[str, Any] = {key: getattr(menu, name) for key, name in term.options.items()}
    if term.name == "list_kl":
        return _lists(part, vectors, prepared, teacher, dims, **options)
    student_all = vectors[to_device(prepared.compared(), vectors.device)]
    read = torch.tensor(prepared.teacher_text_idx, device=vectors.device)
    target = teacher[:, part.columns]
    if part.known is not None:
        student_all, read, target = student_all[part.known], read[part.known], target[part.known]
    target = normalize(target)

    def project(unit: Tensor) -> Tensor:
        assert projection is not None
        projected: Tensor = projection(unit)
        return projected[:, part.columns]

    if term.name == "teacher_nce":
        into = None if projection is None else project
        return term.formula(student_all, read, target, into, dims, **options)
    if term.name == "score_kl":
        options["same"] = read[:, None] == read[None, :]

    def at_width(dim: int) -> Tensor:
        student, reference = normalize(student_all[:, :dim]), target
        if "projection" in term.needs and projection is not None:
            student = project(student)
        elif "projection" in term.needs:
            reference = normalize(target[:, :dim])
        # Every prefix draws the same sample, and so does a continued run.
        sample = {"generator": step_rng(prepared.batch.step)} if term.draws else {}
        return term.formula(student, reference, **options, **sample)

    return over_prefixes(at_width, dims)


def _lists(
    part: _TeacherPart,
    vectors: Tensor,
    prepared: TrainBatch,
    teacher: Tensor,
    dims: Sequence[int],
    temperature: float,
) -> Tensor:
    """Compare each query's distribution over the documents of the batch with one teacher's."""
    assert prepared.positive_idx is not None
    places, target = (
        to_device(prepared.compared(), vectors.device),
        normalize(teacher[:, part.columns]),
    )
    known = (
        torch.arange(len(places), device=vectors.device)
        if part.known is None
        else part.known.nonzero()[:, 0]
    )
    # Queries come first, then the positives, then hard negatives where they are compared.
    queries, listed = (
        known[known < len(prepared.query_idx)],
        known[known >= len(prepared.query_idx)],
    )
    if len(queries) < 1 or len(listed) < 2:
        return 0.0 * vectors.sum()

    def one(dim: int) -> Tensor:
        student = normalize(vectors[:, :dim])
        return LOSSES["list_kl"].formula(
            student[places[queries]],
            student[places[listed]],
            target[queries],
            target[listed],
            temperature=temperature,
        )

    return over_prefixes(one, dims)


def sharpened(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None,
    prepared: TrainBatch,
    sharpen: HardNegativeWeighting,
) -> Tensor:
    """Take InfoNCE of pairs with focal and hardness weights and mixed negatives.

    `queries`: unit rows, `(B, D)`. `documents`: unit rows, `(B + H, D)`: positives of the batch,
    then hard negatives. `prepared`: the batch: whose hard negatives they are, and its step.
    """
    count, hard, mixed = len(queries), None, None
    if prepared.negative_owner is not None and len(prepared.negative_owner):
        owners = to_device(prepared.negative_owner, queries.device)
        if sharpen.hardness:
            is_own = owners[None, :] == torch.arange(count, device=queries.device)[:, None]
            hard = torch.cat([is_own.new_zeros(count, count), is_own], 1)
        if sharpen.mixed_negatives:
            source = step_rng(prepared.batch.step)
            mixed = mixed_negatives(
                documents[count:], owners, count, mixes=sharpen.mixed_negatives, generator=source
            )
    return sharpened_info_nce(
        queries,
        documents,
        positives,
        temperature,
        excluded,
        focal=sharpen.focal,
        hardness=sharpen.hardness,
        hard=hard,
        mixed=mixed,
    )


def step_rng(step: int) -> torch.Generator:
    """Return a generator of the step alone, so that a continued run draws the same."""
    return torch.Generator().manual_seed(0x5EED + step)
