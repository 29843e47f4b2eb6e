"""The loss menu in a phase: which terms a batch allows, their settings, and weights that change with the steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.losses.distillation import (
    IN_TEACHER_SPACE,
    MENU,
    list_kl,
    mixed_negatives,
    sharpened_info_nce,
)
from taskdistill.losses.formulas import info_nce, normalize, over_prefixes
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import (
    MENU_ACTS,
    AdapterConfig,
    HardNegativeWeighting,
    LossOptions,
    PhaseConfig,
    Stage1Config,
)
from taskdistill.train.arithmetic import to_device
from taskdistill.train.collate import TrainBatch
from taskdistill.types import RowKind

LIST_KL = "list_kl"
TEACHER_NCE = "teacher_nce"
TEACHER_TERMS = (*MENU, LIST_KL, TEACHER_NCE)
"""Terms that compare with the teacher's vectors, beside `distill`."""
LAYERS = "hidden"


def check_menu(where: str, settings: PhaseConfig, wanted: Mapping[str, float]) -> None:
    """Refuse settings of terms that have no weight, and ramps that move none.

    Args:
        wanted: Terms with a weight above 0.

    Raises:
        BadInput: Naming the setting.
    """
    for name in settings.weight_schedule:
        if name not in wanted:
            raise BadInput(
                f"{where}.weight_schedule.{name} has no effect: that term has no weight above 0; remove it"
            )
    for name, terms in MENU_ACTS.items():
        if getattr(settings.menu, name) != type(settings.menu).model_fields[
            name
        ].default and not wanted.keys() & set(terms):
            raise BadInput(
                f"{where}.menu.{name} has no effect without a weight of {' or '.join(terms)}; remove it"
            )


def _check_sharpen(
    name: str, settings: AdapterConfig, used: Sequence[Dataset], requested: Mapping[str, float]
) -> None:
    """Refuse what would sharpen no contrast: without its term, or without hard negatives in the rows."""
    if not settings.sharpen.acts():
        return
    if not requested.keys() & {"info_nce", "binary_info_nce", "int8_info_nce"} or all(
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
            f"{name}.sharpen: rows have at most {max_negatives} hard negatives here; hardness needs 1 a row and mixed_negatives 2: mine some with "
            f"`taskdistill mine`, or remove the setting"
        )


def check_adapter(
    where: str, settings: AdapterConfig, used: Sequence[Dataset], wanted: Mapping[str, float]
) -> None:
    """Refuse what has no effect on an adapter.

    Args:
        wanted: Terms with a weight above 0.

    Raises:
        BadInput: Naming the setting.
    """
    check_menu(where, settings, wanted)
    _check_sharpen(where, settings, used, wanted)


def check_stage1(where: str, settings: Stage1Config, used: Sequence[Dataset]) -> None:
    """Refuse what has no effect on a phase that trains the base.

    Raises:
        BadInput: Naming the setting or term.
    """
    requested = stage1_weights(where, settings.weights)
    check_menu(where, settings, requested)
    if settings.projection == "student" and not needs_projection(requested):
        for name in ("projection_lr", "projection_warmup", "projection_weight_decay"):
            if getattr(settings, name) is not None:
                raise BadInput(
                    f"{where}.{name} has no effect: no term with a weight goes through the projection; remove it"
                )
    if requested.keys() == {LIST_KL} and any(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(
            f"{where}: list_kl is a term of pairs, and some sources hold other rows; give a weight to distill as well"
        )
    if LIST_KL in requested and all(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(
            f"{where}.weights.list_kl has no effect: no source of the phase holds pairs; remove it"
        )


def refuse_layers(where: str, names: Collection[str]) -> None:
    """Refuse the one loss of the menu that stored vectors cannot feed.

    Raises:
        BadInput: If it is among them.
    """
    if LAYERS in names:
        raise BadInput(
            f"{where}.weights names {LAYERS!r}, which compares layers of student and teacher; the teacher store holds final vectors only. "
            f"Take rkd_distance or similarity, or `loss_menu.hidden_distance` in a loop of your own"
        )


def stage1_weights(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Check the loss weights of a phase that trains the base.

    Args:
        weights: Term to weight; empty: the paper's.

    Returns:
        Term to weight; a term with weight 0 is not computed.

    Raises:
        BadInput: If a term does not exist, or all are off.
    """
    known = ("distill", *TEACHER_TERMS)
    refuse_layers(name, weights)
    for term in weights:
        if term not in known:
            raise BadInput(
                f"{name}.weights names {term!r}, which this phase does not have{did_you_mean(term, known)}"
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
    """Say whether some terms compare vectors in the teacher's space, through the projection.

    Args:
        terms: Names of terms with a weight above 0.

    Returns:
        Whether one does; the others compare similarities among texts, which need no common space.
    """
    return bool({"distill", TEACHER_NCE, *IN_TEACHER_SPACE} & set(terms))


def weight_at(weights: Mapping[str, float], settings: PhaseConfig, step: int) -> dict[str, float]:
    """Return the weights of one step.

    Args:
        settings: The phase; its ramps multiply weights.
        step: Step of the phase, from 0.
    """
    result = dict(weights)
    for name in weights.keys() & settings.weight_schedule.keys():
        ramp = settings.weight_schedule[name]
        done = min(1.0, step / max(1.0, ramp.until * settings.steps))
        result[name] = weights[name] * (ramp.start + (ramp.end - ramp.start) * done)
    return result


@dataclass(frozen=True, kw_only=True)
class _TeacherPart:
    """One teacher's columns among those of all teachers, and the compared texts that it has a vector for."""

    columns: slice
    known: Tensor | None
    """`(n,)` of bool; None where it has all, as a single teacher does."""


def _teacher_parts(teacher: Tensor, widths: Sequence[int]) -> list[_TeacherPart]:
    if not widths:
        return [_TeacherPart(columns=slice(0, teacher.shape[1]), known=None)]
    ends = list(accumulate(widths))
    columns = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    known = [~teacher[:, each].isnan().any(1) for each in columns]
    # With two texts there is no relation to compare but one; a teacher that knows fewer says nothing about this batch.
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
    wanted: Collection[str],
    *,
    widths: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Take every wanted term of the menu that the batch allows, over every prefix.

    Args:
        vectors: Pooled vectors of the texts, `(texts, D)`.
        teacher: The teacher's vectors of `Prepared.distilled`, `(n, T)`; of several teachers side by side, not a number where one has none.
        projection: Into the teacher's space, or None.
        wanted: Terms with a weight above 0.
        widths: Size of each teacher's vectors, where there are several: a term is then its mean over the teachers that know the texts.

    Returns:
        Name to scalar; `list_kl` only for pairs.
    """
    parts = _teacher_parts(teacher, widths)
    terms: dict[str, Tensor] = {}
    for name in (each for each in TEACHER_TERMS if each in wanted):
        if name == LIST_KL and prepared.batch.kind is not RowKind.PAIRS:
            continue
        values = [
            _teacher_term(name, part, vectors, prepared, teacher, projection, dims, settings.menu)
            for part in parts
        ]
        terms[name] = torch.stack(values).mean() if values else 0.0 * vectors.sum()
    return terms


def _teacher_term(
    name: str,
    part: _TeacherPart,
    vectors: Tensor,
    prepared: TrainBatch,
    teacher: Tensor,
    projection: Projection | None,
    dims: Sequence[int],
    menu: LossOptions,
) -> Tensor:
    """Take one term against one teacher, on the texts that it knows."""
    if name == LIST_KL:
        return _lists(part, vectors, prepared, teacher, dims, menu.list_temperature)
    chosen = vectors[to_device(prepared.compared(), vectors.device)]
    read = torch.tensor(prepared.read, device=vectors.device)
    target = teacher[:, part.columns]
    if part.known is not None:
        chosen, read, target = chosen[part.known], read[part.known], target[part.known]
    target = normalize(target)

    def project(unit: Tensor) -> Tensor:
        assert projection is not None
        projected: Tensor = projection(unit)
        return projected[:, part.columns]

    if name == TEACHER_NCE:
        return teacher_info_nce(
            chosen,
            read,
            target,
            None if projection is None else project,
            dims,
            menu.nce_temperature,
        )
    options: dict[str, Any] = {}
    if name in ("score_softmax", "score_kl"):
        options = {
            "temperature": menu.score_temperature
            if name == "score_softmax"
            else menu.kl_temperature
        }
    elif name == "relative":
        options = {"margin": menu.relative_margin, "couples": menu.couples}
    elif name == "rkd_angle":
        options = {"corners": menu.corners}
    if name == "score_kl":
        options["same"] = read[:, None] == read[None, :]

    def one(dim: int) -> Tensor:
        student, reference = normalize(chosen[:, :dim]), target
        if name in IN_TEACHER_SPACE:
            student, reference = (
                (student, normalize(target[:, :dim]))
                if projection is None
                else (project(student), target)
            )
        sampled = (
            {"generator": step_rng(prepared.batch.step)}
            if name in ("relative", "rkd_angle")
            else {}
        )
        return MENU[name](student, reference, **options, **sampled)

    return over_prefixes(one, dims)


def _lists(
    part: _TeacherPart,
    vectors: Tensor,
    prepared: TrainBatch,
    teacher: Tensor,
    dims: Sequence[int],
    temperature: float,
) -> Tensor:
    """Compare each query's distribution over the documents of the batch with one teacher's."""
    assert prepared.second is not None
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
    queries, listed = known[known < len(prepared.first)], known[known >= len(prepared.first)]
    if len(queries) < 1 or len(listed) < 2:
        return 0.0 * vectors.sum()

    def one(dim: int) -> Tensor:
        student = normalize(vectors[:, :dim])
        return list_kl(
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

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(B + H, D)`: positives of the batch, then hard negatives.
        prepared: The batch: whose hard negatives they are, and its step.
    """
    count, hard, mixed = len(queries), None, None
    if prepared.negative_rows is not None and len(prepared.negative_rows):
        owners = to_device(prepared.negative_rows, queries.device)
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
    """Return a source of draws that depends on the step alone, so that a continued run draws the same."""
    return torch.Generator().manual_seed(0x5EED + step)


def teacher_info_nce(
    chosen: Tensor,
    read: Tensor,
    target: Tensor,
    project: Callable[[Tensor], Tensor] | None,
    dims: Sequence[int],
    temperature: float,
) -> Tensor:
    """InfoNCE of each text against the teacher's vectors of the batch, over every prefix (ours).

    A cosine alone lets all vectors drift towards the mean of the teacher's; here a text has to be nearer to its own teacher vector
    than to those of the other texts. Texts for which the teacher read the same one are no negatives of each other.

    Args:
        chosen: Pooled vectors of the compared texts, `(n, D)`.
        read: Number of the text that the teacher read for each, `(n,)`.
        target: The teacher's vectors, `(n, T)`.
        project: Into the teacher's space, or None.
    """
    positives = torch.arange(len(read), device=chosen.device)
    same = read[:, None] == read[None, :]

    def one(dim: int) -> Tensor:
        student = normalize(chosen[:, :dim])
        student, teacher = (
            (student, target[:, :dim]) if project is None else (normalize(project(student)), target)
        )
        return info_nce(student, normalize(teacher), positives, temperature, same)

    return over_prefixes(one, dims)
