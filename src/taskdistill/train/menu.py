"""The loss menu in a phase: which terms a batch allows, their settings, and weights that change with the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput, nearest
from taskdistill.loss_menu import IN_TEACHER_SPACE, MENU, list_kl, mixed_negatives, sharpened_info_nce
from taskdistill.losses import info_nce, normalise, over_prefixes
from taskdistill.model.projection import Projection
from taskdistill.recipe import Adapter, Phase, Stage1
from taskdistill.recipe_phases import MENU_ACTS, Sharpen
from taskdistill.train.prepare import Prepared
from taskdistill.vocabulary import RowKind

LIST_KL = "list_kl"
TEACHER_NCE = "teacher_nce"
TEACHER_TERMS = (*MENU, LIST_KL, TEACHER_NCE)
"""Terms that compare with the teacher's vectors, beside `distill`."""
LAYERS = "hidden"


def check_menu(where: str, settings: Phase, wanted: Mapping[str, float]) -> None:
    """Refuse settings of terms that have no weight, and ramps that move none.

    Args:
        where: The phase, for messages.
        settings: Its part of the recipe.
        wanted: Terms with a weight above 0.

    Raises:
        BadInput: Naming the setting.
    """
    for name in settings.weight_schedule:
        if name not in wanted:
            raise BadInput(f"{where}.weight_schedule.{name} has no effect: that term has no weight above 0; remove it")
    for name, terms in MENU_ACTS.items():
        if getattr(settings.menu, name) != type(settings.menu).model_fields[name].default and not wanted.keys() & set(terms):
            raise BadInput(f"{where}.menu.{name} has no effect without a weight of {' or '.join(terms)}; remove it")


def _check_sharpen(name: str, settings: Adapter, used: Sequence[Dataset], wanted: Mapping[str, float]) -> None:
    """Refuse what would sharpen no contrast: without its term, or without hard negatives in the rows."""
    if not settings.sharpen.acts():
        return
    if not wanted.keys() & {"info_nce", "binary_info_nce", "int8_info_nce"} or all(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(f"{name}.sharpen has no effect without a contrast of pairs; remove it")
    most = max((len(row.negatives) for dataset in used if dataset.kind is RowKind.PAIRS for row in dataset.rows), default=0)
    most = min(most, settings.negatives)
    if (settings.sharpen.hardness and most < 1) or (settings.sharpen.mixed_negatives and most < 2):
        raise BadInput(
            f"{name}.sharpen: rows have at most {most} hard negatives here; hardness needs 1 a row and mixed_negatives 2: mine some with "
            f"`taskdistill mine`, or remove the setting"
        )


def check_adapter(where: str, settings: Adapter, used: Sequence[Dataset], wanted: Mapping[str, float]) -> None:
    """Refuse what has no effect on an adapter.

    Args:
        where: The phase, for messages.
        settings: Its part of the recipe.
        used: Its sources.
        wanted: Terms with a weight above 0.

    Raises:
        BadInput: Naming the setting.
    """
    check_menu(where, settings, wanted)
    _check_sharpen(where, settings, used, wanted)


def check_stage1(where: str, settings: Stage1, used: Sequence[Dataset]) -> None:
    """Refuse what has no effect on a phase that trains the base.

    Args:
        where: The phase, for messages.
        settings: Its part of the recipe.
        used: Its sources.

    Raises:
        BadInput: Naming the setting or term.
    """
    wanted = stage1_weights(where, settings.weights)
    check_menu(where, settings, wanted)
    if wanted.keys() == {LIST_KL} and any(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(f"{where}: list_kl is a term of pairs, and some sources hold other rows; give a weight to distill as well")
    if LIST_KL in wanted and all(dataset.kind is not RowKind.PAIRS for dataset in used):
        raise BadInput(f"{where}.weights.list_kl has no effect: no source of the phase holds pairs; remove it")


def refuse_several(where: str, wanted: Collection[str]) -> None:
    """Refuse terms of the menu where several teachers' vectors lie side by side.

    Args:
        where: The phase, for messages.
        wanted: Terms with a weight above 0.

    Raises:
        BadInput: If there is one.
    """
    if found := [name for name in TEACHER_TERMS if name in wanted]:
        raise BadInput(f"{where}.weights names {found[0]!r}, which compares with one teacher; with several teachers only distill does")


def refuse_layers(where: str, names: Collection[str]) -> None:
    """Refuse the one loss of the menu that stored vectors cannot feed.

    Args:
        where: The phase, for messages.
        names: Terms of a recipe.

    Raises:
        BadInput: If it is among them.
    """
    if LAYERS in names:
        raise BadInput(
            f"{where}.weights names {LAYERS!r}, which compares layers of student and teacher; the teacher store holds final vectors only. "
            f"Take rkd_distance or similarity, or `loss_menu.hidden_distance` in a loop of your own"
        )


def stage1_weights(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """Check the loss weights of a phase that trains the base.

    Args:
        name: The phase.
        given: Term to weight.

    Returns:
        Term to weight; a term with weight 0 is not computed.

    Raises:
        BadInput: If a term does not exist, or all are off.
    """
    known = ("distill", *TEACHER_TERMS)
    refuse_layers(name, given)
    for term in given:
        if term not in known:
            raise BadInput(f"{name}.weights names {term!r}, which this phase does not have{nearest(term, known)}")
    wanted = {term: weight for term, weight in given.items() if weight > 0}
    if not wanted:
        raise BadInput(f"{name}.weights has no term with a weight above 0; distill is the usual one")
    return wanted


def weight_at(weights: Mapping[str, float], settings: Phase, step: int) -> dict[str, float]:
    """Return the weights of one step.

    Args:
        weights: Term to the weight of the recipe.
        settings: The phase; its ramps multiply weights.
        step: Step of the phase, from 0.

    Returns:
        Term to weight.
    """
    found = dict(weights)
    for name in weights.keys() & settings.weight_schedule.keys():
        ramp = settings.weight_schedule[name]
        done = min(1.0, step / max(1.0, ramp.until * settings.steps))
        found[name] = weights[name] * (ramp.start + (ramp.end - ramp.start) * done)
    return found


def teacher_terms(
    vectors: Tensor,
    prepared: Prepared,
    teacher: Tensor,
    projection: Projection | None,
    dims: Sequence[int],
    settings: Phase,
    wanted: Collection[str],
) -> dict[str, Tensor]:
    """Take every wanted term of the menu that the batch allows, over every prefix.

    Args:
        vectors: Pooled vectors of the texts, `(texts, D)`.
        prepared: The batch.
        teacher: The teacher's vectors of `Prepared.distilled`, `(n, T)`.
        projection: Into the teacher's space, or None.
        dims: Prefix sizes.
        settings: Temperatures, margin and how much is drawn.
        wanted: Terms with a weight above 0.

    Returns:
        Name to scalar; `list_kl` only for pairs.
    """
    chosen, menu = vectors[[place for place, _ in prepared.distilled]], settings.menu
    target = normalise(teacher)
    options: dict[str, dict[str, float]] = {
        "score_softmax": {"temperature": menu.score_temperature},
        "relative": {"margin": menu.relative_margin, "couples": menu.couples},
        "rkd_angle": {"corners": menu.corners},
    }
    terms: dict[str, Tensor] = {}
    for name in (each for each in MENU if each in wanted):

        def one(dim: int, name: str = name) -> Tensor:
            mine, theirs = normalise(chosen[:, :dim]), target
            if name in IN_TEACHER_SPACE:
                mine, theirs = (mine, normalise(target[:, :dim])) if projection is None else (projection(mine), target)
            drawn = {"generator": step_generator(prepared.batch.step)} if name in ("relative", "rkd_angle") else {}
            return MENU[name](mine, theirs, **options.get(name, {}), **drawn)

        terms[name] = over_prefixes(one, dims)
    if LIST_KL in wanted and prepared.batch.kind is RowKind.PAIRS:
        assert prepared.second is not None
        count, first, second = len(prepared.first), torch.from_numpy(prepared.first), torch.from_numpy(prepared.second)

        def lists(dim: int) -> Tensor:
            mine = normalise(vectors[:, :dim])
            return list_kl(mine[first], mine[second], target[:count], target[count : 2 * count], temperature=menu.list_temperature)

        terms[LIST_KL] = over_prefixes(lists, dims)
    if TEACHER_NCE in wanted:
        terms[TEACHER_NCE] = told_apart(vectors, prepared, teacher, projection, dims, menu.nce_temperature)
    return terms


def sharpened(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: Tensor | float,
    excluded: Tensor | None,
    prepared: Prepared,
    sharpen: Sharpen,
) -> Tensor:
    """Take InfoNCE of pairs with focal and hardness weights and mixed negatives.

    Args:
        queries: Unit rows, `(B, D)`.
        documents: Unit rows, `(B + H, D)`: positives of the batch, then hard negatives.
        positives: Place of each query's positive.
        temperature: Divisor of the similarities.
        excluded: See `losses.info_nce`.
        prepared: The batch: whose hard negatives they are, and its step.
        sharpen: What is asked for.

    Returns:
        Scalar.
    """
    count, hard, mixed = len(queries), None, None
    if prepared.negative_rows is not None and len(prepared.negative_rows):
        owners = torch.from_numpy(prepared.negative_rows).to(queries.device)
        if sharpen.hardness:
            own = owners[None, :] == torch.arange(count, device=queries.device)[:, None]
            hard = torch.cat([own.new_zeros(count, count), own], 1)
        if sharpen.mixed_negatives:
            source = step_generator(prepared.batch.step)
            mixed = mixed_negatives(documents[count:], owners, count, mixes=sharpen.mixed_negatives, generator=source)
    return sharpened_info_nce(
        queries, documents, positives, temperature, excluded, focal=sharpen.focal, hardness=sharpen.hardness, hard=hard, mixed=mixed
    )


def step_generator(step: int) -> torch.Generator:
    """Return a source of draws that depends on the step alone, so that a continued run draws the same.

    Args:
        step: Step of the phase.

    Returns:
        A generator on the CPU.
    """
    return torch.Generator().manual_seed(0x5EED + step)


def told_apart(
    vectors: Tensor, prepared: Prepared, target: Tensor, projection: Projection | None, dims: Sequence[int], temperature: float
) -> Tensor:
    """InfoNCE of each text against the teacher's vectors of the batch, over every prefix (ours).

    A cosine alone lets all vectors drift towards the mean of the teacher's; here a text has to be nearer to its own teacher vector
    than to those of the other texts. Texts for which the teacher read the same one are no negatives of each other.

    Args:
        vectors: Pooled vectors, `(texts, D)`.
        prepared: The batch.
        target: The teacher's vectors of `prepared.distilled`, `(n, T)`.
        projection: Into the teacher's space, or None.
        dims: Prefix sizes.
        temperature: Divisor of the cosines.

    Returns:
        Scalar.
    """
    chosen = vectors[[place for place, _ in prepared.distilled]]
    read = torch.tensor(prepared.read, device=vectors.device)
    own = torch.arange(len(read), device=vectors.device)
    same = read[:, None] == read[None, :]

    def one(dim: int) -> Tensor:
        mine = normalise(chosen[:, :dim])
        mine, theirs = (mine, target[:, :dim]) if projection is None else (normalise(projection(mine)), target)
        return info_nce(mine, normalise(theirs), own, temperature, same)

    return over_prefixes(one, dims)
