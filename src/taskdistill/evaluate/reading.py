"""Read evaluation sets whole: a row that cannot be scored is refused with its place, or left out and counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.beir import judgments, listing, refuse, rows, sample, texts_by_id

Paths = tuple[Path, ...]

MOST_UNKNOWN = 0.5
"""Share of judgments with unknown ids above which a retrieval set is refused."""


@dataclass(frozen=True, eq=False)
class RankingData:
    """Queries, documents and judgments; with `candidates` each query ranks only those."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PairData:
    """Pairs of texts with a score each, or parallel texts without."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64] | None
    languages: list[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabeledData:
    """Texts with labels, and the training rows of a classification set (none for clustering)."""

    texts: list[str]
    labels: list[Any]
    languages: list[str]
    train: LabeledData | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SummaryData:
    """For each text, human summaries, machine summaries, and a human score of each machine summary."""

    human: list[list[str]]
    machine: list[list[str]]
    scores: list[list[float]]
    notes: tuple[str, ...] = ()


SetData = RankingData | PairData | LabeledData | SummaryData


def read_retrieval(name: str, files: Paths, max_queries: int | None, seed: int) -> RankingData:
    """Read a retrieval folder; judgments with unknown ids and queries without judgments are left out and noted.

    Args:
        max_queries: Most queries kept; every document stays.

    Raises:
        BadInput: If a file is damaged, an id has two texts, or no query can be scored.
    """
    corpus, query_file, qrels_file = files
    notes: list[str] = []
    documents = texts_by_id(corpus, notes)
    queries = texts_by_id(query_file, notes)
    qrels: dict[str, dict[str, int]] = {}
    unknown: dict[str, None] = {}
    read = 0
    for line, query, document, relevance in judgments(qrels_file):
        read += 1
        if query not in queries or document not in documents:
            unknown[f"{query} {document} (line {line})"] = None
        else:
            qrels.setdefault(query, {})[document] = relevance
    if len(unknown) > MOST_UNKNOWN * read and qrels:
        raise BadInput(
            f"{name}: {len(unknown)} of {read} judgments of {qrels_file} name an unknown query or document ({listing(unknown)}); "
            "these files do not belong together"
        )
    if unknown:
        notes.append(
            f"{len(unknown)} judgments name an unknown query or document and are left out: {listing(unknown)}"
        )
    if lost := [query for query in queries if query not in qrels]:
        notes.append(
            f"{len(lost)} of {len(queries)} queries have no judgment and are left out: {listing(lost)}"
        )
    query_ids = sample([query for query in queries if query in qrels], max_queries, seed)
    if not query_ids:
        raise BadInput(
            f"{name}: no query has a judged document, so nothing can be scored; {qrels_file} must use the ids of corpus and queries"
        )
    return RankingData(
        documents,
        {query: queries[query] for query in query_ids},
        {query: qrels[query] for query in query_ids},
        notes=tuple(notes),
    )


def read_reranking(name: str, files: Paths, max_queries: int | None, seed: int) -> RankingData:
    """Read a reranking set: a folder whose judged documents are the candidates, or pairs with negatives.

    Args:
        files: Corpus, queries, qrels; or one file of pairs.

    Raises:
        BadInput: If a file is damaged or no query can be scored.
    """
    if len(files) > 1:
        data = read_retrieval(name, files, max_queries, seed)
    else:
        notes: list[str] = []
        result = [
            row for row in rows(files[0], ("query", "positive"), notes) if row.get("negatives")
        ]
        documents: dict[str, str] = {}
        queries: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        same = 0
        for i, row in enumerate(sample(result, max_queries, seed)):
            negatives = [text for text in row["negatives"] if text != row["positive"]]
            same += len(row["negatives"]) - len(negatives)
            if not negatives:
                continue
            queries[f"q{i}"] = row["query"]
            texts = [row["positive"], *negatives]
            documents.update({f"q{i}d{j}": text for j, text in enumerate(texts)})
            qrels[f"q{i}"] = {f"q{i}d{j}": int(j == 0) for j in range(len(texts))}
        if same:
            notes.append(f"{same} negatives equal their positive and are left out")
        data = RankingData(documents, queries, qrels, notes=tuple(notes))
    if not data.queries:
        raise BadInput(
            f"{name}: no row of {files[0]} has negatives to rank against; give rows with `negatives`"
        )
    return replace(data, candidates={query: list(judged) for query, judged in data.qrels.items()})


def read_scored(name: str, files: Paths, max_queries: int | None, seed: int) -> PairData:
    """Read pairs of texts with a score each.

    Raises:
        BadInput: If a row is damaged, a score is not a finite number, or all scores of a language are equal.
    """
    notes: list[str] = []
    result = sample(list(rows(files[0], ("text1", "text2"), notes)), max_queries, seed)
    for row in result:
        if not _is_number(row.get("score")):
            refuse(files[0], row["#"], f"score is {row.get('score')!r}; a finite number is needed")
    usable = [
        result[i]
        for i in _varied(
            name,
            [_language(row) for row in result],
            [row["score"] for row in result],
            "scores",
            notes,
        )
    ]
    if outside := sum(not 0 <= row["score"] <= 1 for row in usable):
        notes.append(
            f"{outside} of {len(usable)} scores lie outside 0 to 1; only their order counts"
        )
    scores = np.array([row["score"] for row in usable], dtype=np.float64)
    languages = [_language(row) for row in usable]
    return PairData(
        [row["text1"] for row in usable],
        [row["text2"] for row in usable],
        scores,
        languages,
        tuple(notes),
    )


def read_bitext(name: str, files: Paths, max_queries: int | None, seed: int) -> PairData:
    """Read parallel texts: row i of one side belongs to row i of the other.

    Returns:
        The data, without scores.

    Raises:
        BadInput: If a row is damaged or there is none.
    """
    notes: list[str] = []
    result = sample(list(rows(files[0], ("query", "positive"), notes)), max_queries, seed)
    languages = [_language(row) for row in result]
    return PairData(
        [row["query"] for row in result],
        [row["positive"] for row in result],
        None,
        languages,
        tuple(notes),
    )


def read_clustering(name: str, files: Paths, max_queries: int | None, seed: int) -> LabeledData:
    """Read labelled texts for clustering.

    Returns:
        The data, without training rows.

    Raises:
        BadInput: If a row is damaged or a language has one label only.
    """
    data = _labelled(files[0], max_queries, seed)
    notes = list(data.notes)
    keep = _varied(name, data.languages, [str(label) for label in data.labels], "labels", notes)
    texts, labels, languages = (
        [column[i] for i in keep] for column in (data.texts, data.labels, data.languages)
    )
    return LabeledData(texts, labels, languages, notes=tuple(notes))


def read_classification(name: str, files: Paths, max_queries: int | None, seed: int) -> LabeledData:
    """Read labelled texts with their training rows; a label that is a list makes the set multilabel.

    Args:
        max_queries: Most test rows kept.

    Raises:
        BadInput: If a row is damaged or the training rows have one label only.
    """
    data = _labelled(files[0], max_queries, seed)
    train = _labelled(files[1], None, seed)
    if len({str(label) for label in train.labels}) < 2:
        raise BadInput(
            f"{name}: every training row has the label {train.labels[0]!r}; a classifier needs at least two labels"
        )
    return replace(data, train=train, notes=(*data.notes, *train.notes, *_doubts(data, train)))


def read_summaries(name: str, files: Paths, max_queries: int | None, seed: int) -> SummaryData:
    """Read summaries: rows of `human` and `machine` (lists of texts) and `scores` (one for each machine summary).

    Raises:
        BadInput: If a row is damaged.
    """
    result = sample(list(rows(files[0], (), [])), max_queries, seed)
    for row in result:
        texts = [row.get("human"), row.get("machine")]
        if not all(
            isinstance(each, list)
            and each
            and all(isinstance(text, str) and text.strip() for text in each)
            for each in texts
        ):
            refuse(files[0], row["#"], "`human` and `machine` must be lists of texts")
        scores = row.get("scores")
        if (
            not isinstance(scores, list)
            or len(scores) != len(row["machine"])
            or not all(map(_is_number, scores))
        ):
            refuse(
                files[0], row["#"], "`scores` must hold one finite number for each machine summary"
            )
    return SummaryData(
        [row["human"] for row in result],
        [row["machine"] for row in result],
        [row["scores"] for row in result],
    )


def judged_texts(data: SetData) -> list[str]:
    """Return the texts a set judges a model by, to look for them in training texts; training rows are not among them.

    Returns:
        Queries and documents, both sides of pairs, texts, or summaries; each distinct text once.
    """
    if isinstance(data, RankingData):
        texts = [*data.queries.values(), *data.documents.values()]
    elif isinstance(data, PairData):
        texts = [*data.first, *data.second]
    elif isinstance(data, LabeledData):
        texts = data.texts
    else:
        texts = [text for rows in (data.human, data.machine) for row in rows for text in row]
    return list(dict.fromkeys(texts))


def is_binary(path: Path) -> bool:
    """Tell whether every score of a file is 0 or 1; reading stops at the first that is not.

    Returns:
        Whether it is a set of right and wrong pairs.
    """
    return all(row.get("score") in (0, 1) for row in rows(path, (), []))


def first_row(path: Path) -> dict[str, Any]:
    """Return the first row of a file.

    Returns:
        The row, with its line number under `#`.
    """
    return next(rows(path, (), []))


def _labelled(path: Path, max_queries: int | None, seed: int) -> LabeledData:
    notes: list[str] = []
    result = sample(list(rows(path, ("text",), notes)), max_queries, seed)
    for row in result:
        if row.get("label") is None:
            refuse(path, row["#"], "no label")
    labels = [
        [str(each) for each in row["label"]]
        if isinstance(row["label"], list)
        else str(row["label"])
        for row in result
    ]
    return LabeledData(
        [row["text"] for row in result],
        labels,
        [_language(row) for row in result],
        notes=tuple(notes),
    )


def _doubts(data: LabeledData, train: LabeledData) -> list[str]:
    """Say what of the training rows makes a classification score doubtful."""
    result = []
    if isinstance(data.labels[0], str):
        counts = Counter(train.labels)
        if unseen := sorted(set(data.labels) - set(counts)):
            lost = sum(label in unseen for label in data.labels)
            result.append(
                f"{len(unseen)} labels of {lost} test rows have no training row, so these cannot be right: {listing(unseen)}"
            )
        if lonely := sorted(label for label, count in counts.items() if count == 1):
            result.append(f"{len(lonely)} labels have one training row only: {listing(lonely)}")
    known = {_plain(text) for text in train.texts}
    if both := sum(_plain(text) in known for text in data.texts):
        result.append(f"{both} of {len(data.texts)} test texts are training texts of this set too")
    return result


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _language(row: dict[str, Any]) -> str:
    return str(row.get("lang") or "")


def _varied(
    name: str, languages: Sequence[str], values: Sequence[Any], word: str, notes: list[str]
) -> list[int]:
    """Return the rows of languages that have more than one gold value; without, no correlation or V-measure is defined."""
    distinct: dict[str, set[Any]] = {}
    for language, value in zip(languages, values, strict=True):
        distinct.setdefault(language, set()).add(value)
    constant = {language for language, result in distinct.items() if len(result) < 2}
    if constant == set(distinct):
        raise BadInput(
            f"{name}: all {word} are equal ({values[0]}), so nothing can be scored; at least two distinct {word} are needed"
        )
    if constant:
        notes.append(
            f"{len(constant)} languages have one value of {word} only and are left out: {listing(sorted(constant))}"
        )
    return [i for i, language in enumerate(languages) if language not in constant]
