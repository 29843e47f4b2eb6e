"""One batch with its relations, as a table."""

from __future__ import annotations

import tempfile
from pathlib import Path

from taskdistill.errors import BadInput, nearest
from taskdistill.job.start import data_root, load_inputs
from taskdistill.job.watch import Watcher
from taskdistill.recipe import Adapter, Recipe, StaticSettings
from taskdistill.train.phases import make_plan, preparer, static_phase
from taskdistill.train.prepare import Prepared, false_negatives
from taskdistill.vocabulary import RowKind

WIDTH = 60


def inspect_batch(
    recipe: Recipe, recipe_folder: Path, phase: str, step: int, watcher: Watcher, data_folder: Path | None = None
) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Lay out one step's batch.

    Args:
        recipe: The recipe.
        recipe_folder: Where relative paths of the recipe start.
        phase: Name of the phase.
        step: Its step.
        watcher: Told the counts of the sources.
        data_folder: Where the embedded default was built; None builds it in a temporary folder.

    Returns:
        Title, columns, rows, and lines that explain.

    Raises:
        BadInput: If the recipe has no such phase or step.
    """
    phases = recipe.phases()
    if phase not in phases:
        raise BadInput(f"the recipe has no phase {phase!r}{nearest(phase, phases)}")
    settings = phases[phase]
    made = static_phase(settings) if isinstance(settings, StaticSettings) else settings
    if not 0 <= step < made.steps:
        raise BadInput(f"{phase} has steps 0 to {made.steps - 1}, got {step}")
    with tempfile.TemporaryDirectory() as temporary:
        inputs = load_inputs(recipe, data_root(recipe, recipe_folder, data_folder or Path(temporary) / "data", watcher), watcher)
    batch = make_plan(recipe, phase, made, inputs.datasets).at(step)
    prepared = preparer(phase, made)(batch)
    title = f"{phase}, step {step}: {len(batch.rows)} rows of {batch.dataset} ({batch.kind}), {len(prepared.texts)} distinct texts"
    return title, *_relations(prepared, made if isinstance(made, Adapter) else None)


def _relations(prepared: Prepared, settings: Adapter | None) -> tuple[list[str], list[list[str]], list[str]]:
    texts = [" ".join(text.split())[:WIDTH] for _, text in prepared.texts]
    notes = [f"compared with the teacher: {len(prepared.distilled)} texts"]
    if prepared.second is None:
        return ["row", "text"], [[str(i), texts[place]] for i, place in enumerate(prepared.first)], notes
    pairs = list(zip(prepared.first.tolist(), prepared.second.tolist(), strict=True))
    if prepared.scores is not None:
        rows = [[str(i), texts[a], texts[b], f"{score:.2f}"] for i, ((a, b), score) in enumerate(zip(pairs, prepared.scores, strict=True))]
        return ["row", "first text", "second text", "score"], rows, notes
    if prepared.batch.kind is RowKind.LABELLED:
        rows = [
            [str(i), item.label, texts[a], texts[b], ", ".join(item.negative_labels)]
            for i, ((a, b), item) in enumerate(zip(pairs, prepared.batch.rows, strict=True))
        ]
        return ["row", "label", "anchor", "positive", "labels of the negatives"], rows, notes
    if settings is None:
        return ["row", "query", "positive"], [[str(i), texts[a], texts[b]] for i, (a, b) in enumerate(pairs)], notes
    masked = false_negatives(prepared, others=settings.negatives_of_others)
    rows = [[str(i), texts[a], texts[b], ", ".join(map(str, masked[i].nonzero()[0].tolist())) or "-"] for i, (a, b) in enumerate(pairs)]
    notes.append(f"{masked.shape[1]} candidates a query, {100 * masked.mean():.2f} % masked as duplicates or known positives")
    if settings.false_negative_margin is not None:
        notes.append(f"the teacher's margin of {settings.false_negative_margin} masks more; its share is in log.jsonl")
    return ["row", "query", "positive", "masked candidates"], rows, notes
