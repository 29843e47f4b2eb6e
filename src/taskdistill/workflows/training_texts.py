"""The texts that a model, a run, a recipe or a data folder says it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskdistill.data.layout import RETRIEVAL, list_sets
from taskdistill.data.overlap import trained_on
from taskdistill.data.rows import row_texts
from taskdistill.errors import BadInput, RowError
from taskdistill.evaluate.contamination import TrainingTexts
from taskdistill.io.folders import read_manifest
from taskdistill.io.records import SUFFIXES, read_records
from taskdistill.pipeline.setup import DOCSTRINGS, data_root, load_inputs
from taskdistill.progress import Progress
from taskdistill.recipe.recipe import load_recipe
from taskdistill.types import MANIFEST

TEXT_FIELDS = ("query", "positive", "negatives", "text1", "text2", "text")


def read_training(path: Path, progress: Progress) -> TrainingTexts:
    """Read what a model was trained on.

    `path`: a recipe, a run folder, a model folder beside its recipe, a data folder (its train
    splits and texts), or one file of rows.
    """
    if path.is_dir() and (path / MANIFEST).is_file() and not (path / "recipe.yaml").is_file():
        manifest = read_manifest(path)
        if manifest["kind"] == "model":
            return _of_model(path, manifest, progress)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return _of_recipe(
            path / "recipe.yaml", path.with_name(f"{path.name}-data"), path.name, progress
        )
    if path.suffix in (".yaml", ".yml"):
        return _of_recipe(path, None, path.stem, progress)
    texts = training_texts(path)
    progress.note(f"{path.name}: {len(texts):,} training texts")
    return _training(path.name, texts)


def training_texts(path: Path) -> list[str]:
    """Read the texts that data tells to train on.

    `path`: a data folder, of which the train splits and `texts/` are read, or one file of rows.
    """
    if path.is_dir():
        files = [
            path / entry.splits["train"]
            for entry in list_sets(path).values()
            if entry.kind != RETRIEVAL and "train" in entry.splits
        ]
        if not files:
            raise BadInput(
                f"{path} has no train split and no texts; give the folder that the model was "
                "trained on, or its recipe"
            )
    elif path.name.lower().endswith(SUFFIXES):
        files = [path]
    else:
        raise BadInput(
            f"{path} tells no training data; give a recipe, a run or model folder, a data folder "
            "or a file of rows"
        )
    return [text for file in files for text in _file_texts(file)]


def _training(
    name: str, texts: Sequence[str], teacher: Sequence[str] | None = None
) -> TrainingTexts:
    distinct = list(dict.fromkeys(texts))
    return TrainingTexts(name, trained_on(distinct), len(distinct), teacher)


def _of_model(path: Path, manifest: Mapping[str, Any], progress: Progress) -> TrainingTexts:
    run = path.parent
    if (run / "recipe.yaml").is_file():
        return _of_recipe(
            run / "recipe.yaml", run.with_name(f"{run.name}-data"), run.name, progress
        )
    declared = (manifest.get("settings") or {}).get("teacher", {}).get("trained_on")
    if declared is None:
        raise BadInput(
            f"{path} has no recipe beside it and declares nothing of its teacher; give the "
            "recipe or the training data instead"
        )
    progress.note(
        f"{path.name}: no recipe beside the model, so only what its teacher declares is known"
    )
    return TrainingTexts(manifest.get("name", path.name), None, 0, declared)


def _of_recipe(path: Path, docs: Path | None, name: str, progress: Progress) -> TrainingTexts:
    recipe = load_recipe(path)
    if recipe.data.root == DOCSTRINGS and (docs is None or not (docs / MANIFEST).is_file()):
        raise BadInput(
            f"{path} trains on the embedded default, which the run builds; give the run folder, "
            "or its folder RUN-data"
        )
    root = data_root(recipe, path.parent, docs or Path(), progress)
    inputs = load_inputs(recipe, root, progress)
    texts = [
        text
        for dataset in inputs.datasets.values()
        for row in dataset.rows
        for text in row_texts(row)
    ]
    return _training(name, texts, recipe.teacher.trained_on)


def _file_texts(path: Path) -> list[str]:
    texts: list[str] = []
    for _, record in read_records(path):
        if isinstance(record, RowError):
            continue
        for field in TEXT_FIELDS:
            value = record.get(field)
            texts += (
                [value]
                if isinstance(value, str)
                else [each for each in value or () if isinstance(each, str)]
            )
    if not texts:
        raise BadInput(f"{path} has no rows with a text under {', '.join(TEXT_FIELDS)}")
    return texts
