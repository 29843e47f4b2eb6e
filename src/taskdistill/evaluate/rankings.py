"""Read and score what ranks documents for queries: shared by retrieval, reranking and pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from taskdistill import metrics
from taskdistill.errors import BadInput
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.task_type import Score, plain_or_gzip
from taskdistill.io.beir import judgments, listing, sample, texts_by_id

MAX_UNKNOWN = 0.5
"""Share of judgments with unknown ids above which a set is refused: its files belong to others."""

METRICS = ("nDCG@10", "nDCG@1", "MAP@1000", "Recall@100", "MRR@10")


def ranking_folders(folder: Path, split: str) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yield name and files of the sets of three files; dev where the name ends in `-dev`."""
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = [
            file
            for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
            if (file := plain_or_gzip(path, name))
        ]
        if len(files) == 3 and (split == "dev") == path.name.endswith("-dev"):
            yield path.name, tuple(files)


def read_ranking(
    name: str, files: tuple[Path, ...], max_queries: int | None, seed: int
) -> RankingData:
    """Read corpus, queries and judgments; what cannot be matched is left out and noted.

    Of the queries at most `max_queries` stay, of the documents all.
    """
    corpus, query_file, qrels_file = files
    notes: list[str] = []
    documents = texts_by_id(corpus, notes)
    queries = texts_by_id(query_file, notes)
    qrels: dict[str, dict[str, int]] = {}
    unknown: dict[str, None] = {}
    count = 0
    for line, query, document, relevance in judgments(qrels_file):
        count += 1
        if query not in queries or document not in documents:
            unknown[f"{query} {document} (line {line})"] = None
        else:
            qrels.setdefault(query, {})[document] = relevance
    if len(unknown) > MAX_UNKNOWN * count and qrels:
        raise BadInput(
            f"{name}: {len(unknown)} of {count} judgments of {qrels_file} name an unknown query or"
            f" document ({listing(unknown)}); these files do not belong together"
        )
    if unknown:
        notes.append(
            f"{len(unknown)} judgments name an unknown query or document and are left out:"
            f" {listing(unknown)}"
        )
    if unjudged := [query for query in queries if query not in qrels]:
        notes.append(
            f"{len(unjudged)} of {len(queries)} queries have no judgment and are left out:"
            f" {listing(unjudged)}"
        )
    query_ids = sample([query for query in queries if query in qrels], max_queries, seed)
    if not query_ids:
        raise BadInput(
            f"{name}: no query has a judged document, so nothing can be scored;"
            f" {qrels_file} must use the ids of corpus and queries"
        )
    return RankingData(
        documents=documents,
        queries={query: queries[query] for query in query_ids},
        qrels={query: qrels[query] for query in query_ids},
        notes=tuple(notes),
    )


def score_ranking(
    data: RankingData, ranking: Mapping[str, Mapping[str, float]], metric: str = "nDCG@10"
) -> Score:
    """Score rankings, with one unit a query."""
    by_query = metrics.retrieval_scores(data.qrels, ranking, list(data.queries))
    scores = {name: float(values.mean()) for name, values in by_query.items()}
    return Score(scores[metric], scores, {"": by_query[metric]}, data.notes)
