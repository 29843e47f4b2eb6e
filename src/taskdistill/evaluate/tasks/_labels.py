"""Labeled texts and their training rows: shared by clustering, classification and multilabel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate.set_data import LabeledData, language
from taskdistill.evaluate.task_type import plain_or_gzip, split_files
from taskdistill.io.beir import first_row, listing, refuse, rows, sample


def labeled_files(root: Path, split: str, *, multilabel: bool) -> Iterator[tuple[str, Path, Path]]:
    """Yield name, test rows and training rows of the classification sets of one sort of labels."""
    for name, path in split_files(root / "labelled", split):
        train = plain_or_gzip(path.parent, f"{name}.train.jsonl")
        if (
            not name.startswith("clu-")
            and train is not None
            and isinstance(first_row(path).get("label"), list) == multilabel
        ):
            yield name, path, train


def read_labeled(path: Path, limit: int | None, seed: int) -> LabeledData:
    """Read texts with a label, or a list of labels, each."""
    notes: list[str] = []
    sampled = sample(list(rows(path, ("text",), notes)), limit, seed)
    labels: list[str | list[str]] = []
    for row in sampled:
        label = row.get("label")
        if label is None:
            refuse(path, row["#"], "no label")
        labels.append([str(each) for each in label] if isinstance(label, list) else str(label))
    languages = [language(row) for row in sampled]
    return LabeledData(
        texts=[row["text"] for row in sampled],
        labels=labels,
        languages=languages,
        notes=tuple(notes),
    )


def read_with_train(
    name: str, files: tuple[Path, ...], limit: int | None, seed: int
) -> LabeledData:
    """Read test rows, at most `limit`, and all training rows."""
    data, train = read_labeled(files[0], limit, seed), read_labeled(files[1], None, seed)
    if len({str(label) for label in train.labels}) < 2:
        raise BadInput(
            f"{name}: every training row has the label {train.labels[0]!r};"
            " a classifier needs at least two labels"
        )
    return replace(data, train=train, notes=(*data.notes, *train.notes, *_doubts(data, train)))


def _doubts(data: LabeledData, train: LabeledData) -> list[str]:
    """Say what of the training rows makes a classification score doubtful."""
    notes = []
    if isinstance(data.labels[0], str):
        counts = Counter(train.labels)
        if unseen := sorted(set(data.labels) - set(counts)):
            lost = sum(label in unseen for label in data.labels)
            notes.append(
                f"{len(unseen)} labels of {lost} test rows have no training row,"
                f" so these cannot be right: {listing(unseen)}"
            )
        if lonely := sorted(label for label, count in counts.items() if count == 1):
            notes.append(f"{len(lonely)} labels have one training row only: {listing(lonely)}")
    known = {_plain(text) for text in train.texts}
    if both := sum(_plain(text) in known for text in data.texts):
        notes.append(f"{both} of {len(data.texts)} test texts are training texts of this set too")
    return notes


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def training_rows_by_language(data: LabeledData) -> dict[str, list[int]]:
    """Return the training rows for the test rows of each language.

    They are the language's where these have two labels; otherwise, and where all test rows have one
    language, all of them.
    """
    assert data.train is not None
    labels, languages = data.train.labels, data.train.languages
    everything = list(range(len(labels)))
    by_language = {}
    for each in dict.fromkeys(data.languages):
        rows_of = [i for i in everything if languages[i] == each]
        varied = len({str(labels[i]) for i in rows_of}) > 1
        by_language[each] = rows_of if varied else everything
    return by_language if len(by_language) > 1 else dict.fromkeys(by_language, everything)
