"""Needle and passkey for several models.

The same documents for all, each score kept on disk, one report by length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from taskdistill.device import dtype_name
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.needle import (
    METRIC,
    NeedleOptions,
    NeedleScore,
    needle_set,
    score_needles,
)
from taskdistill.io.atomic import remove_stale_within
from taskdistill.io.outputs import check_claim, claim, write_output
from taskdistill.io.sealed import dump_json, hash_json, read_sealed, write_sealed
from taskdistill.report.page import ReportData, render_report
from taskdistill.report.tables import Section, Table, Value
from taskdistill.versions import versions

ANY_LENGTH = 1 << 24
"""Tokens beyond any sentence that is counted."""

KIND = "needle"
_CLAIM: dict[str, Any] = {
    "earlier": lambda path: False,
    "files": ("results.json", "report.html"),
    "parts": ("cache",),
}
"""Of the folder that it writes."""

ABOUT = (
    "One sentence is hidden in every document, and every query asks for one of them; the figure "
    "is nDCG@1, how often the document with "
    "the answer comes first. Halves: documents whose sentence stands in the first or second "
    "half. Cut: documents longer than the model reads."
)


def check_needles(out: Path) -> None:
    """Refuse a folder that cannot take the results, before any model is loaded."""
    check_claim(out, KIND, **_CLAIM)


class NeedleRow(NeedleScore):
    """A score with its model."""

    model: str


class NeedleResults(TypedDict):
    """What results.json holds."""

    models: list[dict[str, str | int]]
    rows: list[NeedleRow]
    means: dict[str, dict[str, float]]
    """Model to kind to the mean over lengths."""
    options: dict[str, str | int]
    versions: dict[str, str]


def evaluate_needles(
    encoders: Mapping[str, Encoder],
    out: Path,
    options: NeedleOptions,
    *,
    commands: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> NeedleResults:
    """Score models at every length, and write results.json and report.html.

    Documents are as long as asked by the tokenizer of the first model, and the same for all models.
    `out`: folder for the results; finished scores are kept in its `cache` and never computed twice.
    `progress`: called with (sets done, sets in all). `note`: called with a line for each score.
    """
    claim(out, KIND, **_CLAIM)
    remove_stale_within(out / "cache")
    scorer = _CachedScorer(next(iter(encoders.values())), out / "cache", options)
    plan = [
        (name, kind, length)
        for kind in options.kinds
        for length in options.lengths
        for name in encoders
    ]
    rows: list[NeedleRow] = []
    for done, (name, kind, length) in enumerate(plan, 1):
        row = scorer(encoders[name], kind, length)
        rows.append({"model": name, **row})
        if note is not None:
            cut = f", {row['cut']} of {row['documents']} documents cut" if row["cut"] else ""
            note(f"{kind} {length:,}  {name}  {METRIC} {100 * row[METRIC]:.1f}{cut}")
        if progress is not None:
            progress(done, len(plan))
    results: NeedleResults = {
        "models": [
            {"name": name, "fingerprint": _print(encoder), "max_length": encoder.max_length}
            for name, encoder in encoders.items()
        ],
        "rows": rows,
        "means": {
            name: {kind: _mean(rows, name, kind) for kind in options.kinds} for name in encoders
        },
        "options": {
            "documents": options.documents,
            "seed": options.seed,
            "tokens counted by": next(iter(encoders)),
        },
        "versions": versions(),
    }
    write_output(out / "results.json", dump_json(results))
    page = ReportData(
        title="Needle and passkey by length",
        summary=ABOUT,
        sections=[Section("By length", tables=needle_tables(results))],
        commands=commands,
        versions=versions(),
    )
    write_output(out / "report.html", render_report(page))
    return results


class _CachedScorer:
    """Scores models on documents that `first` counts the tokens of; each score stays on disk."""

    def __init__(self, first: Encoder, cache: Path, options: NeedleOptions) -> None:
        self._count, self._cache, self._options = _Counter(first), cache, options
        self._tokenizer = hashlib.sha256(first.model.tokenizer.to_json().encode()).hexdigest()

    def __call__(self, encoder: Encoder, kind: str, length: int) -> NeedleScore:
        documents, seed = self._options.documents, self._options.seed
        model = [_print(encoder), encoder.max_length]
        key = hash_json(["needle", *model, self._tokenizer, kind, length, documents, seed])
        path = self._cache / f"{key[:32]}.json"
        if path.is_file():
            stored: NeedleScore = read_sealed(path, "remove it to score that set again")
            return stored
        needles = needle_set(kind, length, documents=documents, seed=seed, tokens=self._count)
        row = score_needles(EncoderEmbedder(encoder), needles)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, row)
        return row


def needle_tables(results: NeedleResults) -> list[Table]:
    """Lay results out: one table a kind and model.

    Returns a row a length, and the mean of all lengths below.
    """
    tables = []
    for name, means in results["means"].items():
        for kind, mean in means.items():
            rows: list[list[Value]] = [
                [
                    f"{row['length']:,}",
                    row[METRIC],
                    "{:.1f}–{:.1f}".format(*(100 * x for x in row["interval"])),
                    row["first_half"],
                    row["second_half"],
                    row["cut"],
                ]
                for row in results["rows"]
                if (row["model"], row["kind"]) == (name, kind)
            ]
            rows.append(["mean", mean, "", None, None, None])
            columns = ["tokens", METRIC, "95 % interval", "first half", "second half", "cut"]
            tables.append(Table(title=f"{kind}, {name}", columns=columns, rows=rows, totals=1))
    return tables


class _Counter:
    """Counts the tokens of a text without prompt and special tokens."""

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer = encoder.model.tokenizer

    def __call__(self, text: str) -> int:
        ids = self._tokenizer.ids([text], prompt="", max_length=ANY_LENGTH).ids[0]
        return len(ids) - self._tokenizer.own_tokens


def _print(encoder: Encoder) -> str:
    """Tell models apart by what decides their vectors."""
    return (
        encoder.model_hash
        if encoder.dtype is torch.float32
        else f"{encoder.model_hash} {dtype_name(encoder.dtype)}"
    )


def _mean(rows: Sequence[NeedleRow], name: str, kind: str) -> float:
    return float(
        np.mean([row[METRIC] for row in rows if (row["model"], row["kind"]) == (name, kind)])
    )
