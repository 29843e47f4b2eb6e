"""One batch with its relations, as a table."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.pipeline.setup import TrainData, data_root, load_inputs
from taskdistill.progress import Progress
from taskdistill.quantization import normalize
from taskdistill.recipe.phases import AdapterConfig, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.store import open_views
from taskdistill.train.collate import Relation, TrainBatch, relations
from taskdistill.train.phases import collator, make_plan, static_phase
from taskdistill.types import RowKind

WIDTH = 60
SHOWN = 12
"""Most candidates that a cell lists."""
MASKED = (Relation.DUPLICATE, Relation.MARGIN, Relation.LABEL, Relation.UNUSED)


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """Which batch is laid out, and where its inputs are."""

    phase: str
    step: int
    row: int | None = None
    """Show every candidate of this row instead of one line a row."""
    data_folder: Path | None = None
    """Where the embedded default was built; None builds it in a temporary folder."""
    store: Path | None = None
    """Folder of teacher stores, such as that of a run; None embeds the batch's texts anew where a
    margin needs them.
    """


Laid = tuple[str, list[str], list[list[str]], list[str]]
"""Title, columns, rows, and lines that explain."""


def inspect_batch(
    recipe: Recipe,
    recipe_folder: Path,
    request: InspectRequest,
    progress: Progress,
    *,
    api_key: str | None = None,
) -> Laid:
    """Lay out one step's batch: what is compared with what, and which candidates are masked why.

    `recipe_folder`: where relative paths of the recipe start.
    """
    phase, step, row = request.phase, request.step, request.row
    phases = recipe.phases()
    if phase not in phases:
        raise BadInput(f"the recipe has no phase {phase!r}{did_you_mean(phase, phases)}")
    settings = phases[phase]
    config = static_phase(settings) if isinstance(settings, StaticConfig) else settings
    if not 0 <= step < config.steps:
        raise BadInput(f"{phase} has steps 0 to {config.steps - 1}, got {step}")
    with tempfile.TemporaryDirectory() as temporary:
        root = data_root(
            recipe, recipe_folder, request.data_folder or Path(temporary) / "data", progress
        )
        inputs: TrainData = load_inputs(recipe, root, progress)
        batch = make_plan(recipe, phase, config, inputs.datasets).at(step)
        prepared = collator(phase, config)(batch)
        cosines = None
        if (
            isinstance(config, AdapterConfig)
            and config.false_negative_margin is not None
            and batch.kind is RowKind.PAIRS
        ):
            cosines = _teacher_cosines(
                recipe, prepared, request.store or Path(temporary) / "store", api_key
            )
    title = (
        f"{phase}, step {step}: {len(batch.rows)} rows of {batch.dataset} ({batch.kind}), "
        f"{len(prepared.texts)} distinct texts"
    )
    if (
        not isinstance(config, AdapterConfig)
        or prepared.positive_idx is None
        or prepared.scores is not None
    ):
        if row is not None:
            raise BadInput(
                f"--row has no effect here: {phase} contrasts no candidates in this batch"
            )
        return title, *_plain(prepared)
    cells = relations(
        prepared,
        cosines,
        config.false_negative_margin,
        others=config.negatives_of_others,
        mask_same_label=config.mask_same_label,
    )
    if row is not None:
        if not 0 <= row < len(batch.rows):
            raise BadInput(f"the batch has rows 0 to {len(batch.rows) - 1}, got {row}")
        return title, *_one_row(prepared, cells, row, cosines)
    return title, *_relations(prepared, cells, config)


def _teacher_cosines(
    recipe: Recipe, prepared: TrainBatch, store: Path, api_key: str | None
) -> np.ndarray:
    """Give the teacher's cosine of every query with every positive, as training looks it up."""
    teacher = make_teacher(recipe.teacher, api_key=api_key, threads=recipe.threads, root=store)
    stores = open_views(store, teacher, recipe.teacher.instructions)
    count, rows = len(prepared.query_idx), list[np.ndarray]()
    requested = prepared.teacher_texts()
    for view, text in requested[: 2 * count]:
        if stores[view].missing([text]):
            for each in dict.fromkeys(stores.values()):
                fill_store(
                    each, [other for seen, other in requested if stores[seen] is each], teacher
                )
        rows.append(stores[view].get([text])[0].astype(np.float32))
    unit = normalize(np.stack(rows))
    cosines: np.ndarray = unit[:count] @ unit[count:].T
    return cosines


def _texts(prepared: TrainBatch) -> list[str]:
    return [" ".join(text.split())[:WIDTH] for _, text in prepared.texts]


def _plain(prepared: TrainBatch) -> tuple[list[str], list[list[str]], list[str]]:
    """Lay out a batch without candidates.

    Lone texts, graded pairs, and whatever is only compared with the teacher.
    """
    texts, notes = _texts(prepared), [f"compared with the teacher: {len(prepared.distilled)} texts"]
    if prepared.positive_idx is None:
        return (
            ["row", "text"],
            [[str(i), texts[place]] for i, place in enumerate(prepared.query_idx)],
            notes,
        )
    pairs = list(zip(prepared.query_idx.tolist(), prepared.positive_idx.tolist(), strict=True))
    if prepared.scores is not None:
        rows = [
            [str(i), texts[a], texts[b], f"{score:.2f}"]
            for i, ((a, b), score) in enumerate(zip(pairs, prepared.scores, strict=True))
        ]
        return ["row", "first text", "second text", "score"], rows, notes
    return (
        ["row", "query", "positive"],
        [[str(i), texts[a], texts[b]] for i, (a, b) in enumerate(pairs)],
        notes,
    )


def _relations(
    prepared: TrainBatch, cells: np.ndarray, settings: AdapterConfig
) -> tuple[list[str], list[list[str]], list[str]]:
    assert prepared.positive_idx is not None
    texts, labelled = _texts(prepared), prepared.batch.kind is RowKind.LABELLED
    shown = [Relation.LABEL] if labelled else [Relation.DUPLICATE, Relation.MARGIN]
    columns = ["row", "query", "positive", "negatives", "hard negatives", *shown]
    if labelled:
        columns = ["row", "anchor", "positive", "label", "negatives", "hard negatives", *shown]
    rows = []
    for i, (a, b) in enumerate(
        zip(prepared.query_idx.tolist(), prepared.positive_idx.tolist(), strict=True)
    ):
        counts = [
            str(int((cells[i] == Relation.NEGATIVE).sum())),
            _listed(np.flatnonzero(cells[i] == Relation.HARD)),
        ]
        masked = [_listed(np.flatnonzero(cells[i] == relation)) for relation in shown]
        label = [prepared.batch.rows[i].label] if labelled else []
        rows.append([str(i), texts[a], texts[b], *label, *counts, *masked])
    counted = Counter(cells.ravel().tolist())
    notes = [
        (
            f"candidates 0 to {len(cells) - 1} are the positives of these rows, the others their "
            "hard negatives, row by row"
        ),
        f"{cells.shape[1]} candidates a query: "
        + ", ".join(
            f"{counted[relation]:,} {relation}" for relation in Relation if counted[relation]
        ),
        f"masked share: {100 * sum(counted[relation] for relation in MASKED) / cells.size:.2f} %",
        f"compared with the teacher: {len(prepared.distilled)} texts",
    ]
    if not labelled and settings.false_negative_margin is None:
        notes.append(
            "no margin: set false_negative_margin to mask what the teacher finds closer than "
            "the positive"
        )
    return columns, rows, notes


def _one_row(
    prepared: TrainBatch, cells: np.ndarray, row: int, cosines: np.ndarray | None
) -> tuple[list[str], list[list[str]], list[str]]:
    assert prepared.positive_idx is not None
    texts = _texts(prepared)
    places = (
        prepared.positive_idx
        if prepared.negative_idx is None
        else np.concatenate([prepared.positive_idx, prepared.negative_idx])
    )
    owners = np.arange(len(prepared.query_idx))
    if prepared.negative_owner is not None:
        owners = np.concatenate([owners, prepared.negative_owner])
    rows = [
        [
            str(i),
            str(owner),
            relation,
            "-" if cosines is None or i >= cosines.shape[1] else f"{cosines[row, i]:.3f}",
            texts[place],
        ]
        for i, (owner, relation, place) in enumerate(zip(owners, cells[row], places, strict=True))
    ]
    return (
        ["candidate", "of row", "relation", "teacher's cosine", "text"],
        rows,
        [f"query of row {row}: {texts[prepared.query_idx[row]]}"],
    )


def _listed(numbers: np.ndarray) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN].tolist()))
    return (f"{shown}, ... ({len(numbers)})" if len(numbers) > SHOWN else shown) or "-"
