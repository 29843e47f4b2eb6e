"""Which evaluation data was seen in training: by the student in its texts, and by its teacher where that is declared."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.data.layout import RETRIEVAL, list_sets
from taskdistill.data.overlap import SeenTexts, overlap_with, trained_on
from taskdistill.data.readers import SUFFIXES, Fault, read_records
from taskdistill.data.rows import row_texts
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSet
from taskdistill.evaluate.reading import RankingData, SetData, judged_texts
from taskdistill.io.folders import read_manifest
from taskdistill.pipeline.setup import DOCSTRINGS, data_root, load_inputs
from taskdistill.progress import Progress
from taskdistill.recipe.recipe import load_recipe
from taskdistill.types import MANIFEST

TEXT_FIELDS = ("query", "positive", "negatives", "text1", "text2", "text")


@dataclass(frozen=True)
class TrainingTexts:
    """What a model was trained on.

    Attributes:
        trained: Its texts, prepared for comparison; None where only the teacher's declaration is known.
        teacher: Patterns of sets that the teacher was trained on; None where that is not declared.
    """

    name: str
    trained: SeenTexts | None
    texts: int
    teacher: Sequence[str] | None = None


def read_training(path: Path, progress: Progress) -> TrainingTexts:
    """Read what a model was trained on.

    Args:
        path: A recipe, a run folder, a model folder beside its recipe, a data folder (its train splits and texts), or one
            file of rows.

    Raises:
        BadInput: If it is none of these, or its texts cannot be read.
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

    Args:
        path: A data folder, of which the train splits and `texts/` are read, or one file of rows.

    Raises:
        BadInput: If there are none.
    """
    if path.is_dir():
        files = [
            path / entry.splits["train"]
            for entry in list_sets(path).values()
            if entry.kind != RETRIEVAL and "train" in entry.splits
        ]
        if not files:
            raise BadInput(
                f"{path} has no train split and no texts; give the folder that the model was trained on, or its recipe"
            )
    elif path.name.lower().endswith(SUFFIXES):
        files = [path]
    else:
        raise BadInput(
            f"{path} tells no training data; give a recipe, a run or model folder, a data folder or a file of rows"
        )
    return [text for file in files for text in _file_texts(file)]


def seen_in(
    training: TrainingTexts, sets: Sequence[EvalSet], data: Mapping[str, SetData]
) -> dict[str, dict[str, Any]]:
    """Count the evaluation texts that were seen.

    Returns:
        Set to `texts`, `exact` and `near` (share a run of 13 words, without the exact ones), for sets that search also under
        `queries`, and `teacher`: true or false where the teacher's data is declared, otherwise None. Counts are None where
        the training texts are not known.
    """
    result = {}
    for each in sets:
        counts = _counts(training.trained, judged_texts(data[each.name]))
        searched = data[each.name]
        if isinstance(searched, RankingData):
            counts["queries"] = _counts(
                training.trained, list(dict.fromkeys(searched.queries.values()))
            )
        result[each.name] = counts | {"teacher": teacher_saw(training.teacher, each.name)}
    return result


def teacher_saw(declared: Sequence[str] | None, name: str) -> bool | None:
    """Tell whether a teacher was trained on a set.

    Args:
        declared: Patterns of names, or None where nothing is declared.
        name: Of a set, such as `retrieval/scifact`, or of a benchmark's task.

    Returns:
        Whether some pattern fits the name or its last part; None where nothing is declared.
    """
    if declared is None:
        return None
    names = (name, name.rsplit("/", 1)[-1])
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in declared for each in names)


def warnings_of(label: str, seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in sentences what a reader must know before trusting a score.

    Returns:
        One sentence for every set of which something was seen.
    """
    result = []
    for name, counts in seen.items():
        reasons = []
        if counts["exact"] or counts["near"]:
            reasons.append(
                f"of {counts['texts']:,} texts {counts['exact']:,} were seen word for word, {counts['near']:,} more share 13 words in a row"
            )
            if counts.get("queries"):
                queries = counts["queries"]
                reasons.append(
                    f"among them {queries['exact'] + queries['near']:,} of {queries['texts']:,} queries"
                )
        if counts["teacher"]:
            reasons.append("the teacher was trained on this set")
        if reasons:
            result.append(f"{name}, trained on {label}: {'; '.join(reasons)}.")
    return result


def _counts(trained: SeenTexts | None, texts: Sequence[str]) -> dict[str, Any]:
    if trained is None:
        return {"texts": len(texts), "exact": None, "near": None}
    return dict(overlap_with(trained, texts).counts())


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
            f"{path} has no recipe beside it and declares nothing of its teacher; give the recipe or the training data instead"
        )
    progress.note(
        f"{path.name}: no recipe beside the model, so only what its teacher declares is known"
    )
    return TrainingTexts(manifest.get("name", path.name), None, 0, declared)


def _of_recipe(path: Path, docs: Path | None, name: str, progress: Progress) -> TrainingTexts:
    recipe = load_recipe(path)
    if recipe.data.root == DOCSTRINGS and (docs is None or not (docs / MANIFEST).is_file()):
        raise BadInput(
            f"{path} trains on the embedded default, which the run builds; give the run folder, or its folder RUN-data"
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
        if isinstance(record, Fault):
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
