"""Judge rankings of a dev set, and embed its texts once for many measurements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.io.beir import judgments
from taskdistill.metrics import ndcg
from taskdistill.quantization import truncate
from taskdistill.search.corpus import Corpus, Document
from taskdistill.search.passages import PassageSettings
from taskdistill.search.ranking import Ranked
from taskdistill.search.settings import SearchEncoder, former_ids
from taskdistill.search.storage.snapshot import Snapshot

CUTOFF = 10
"""Documents that nDCG and recall look at."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id to document id to relevance; above 0 is relevant."""


@dataclass(frozen=True)
class DevSet:
    """Documents, queries and which of them belong together."""

    documents: Sequence[Document]
    queries: Mapping[str, str]
    """Query id to text."""
    qrels: Qrels
    """Queries without a relevant document are left out of every mean."""

    def judged(self) -> list[str]:
        """Return the ids of queries with a relevant document, in the order of `queries`."""
        ids = {document.id for document in self.documents}
        judged = [query for query in self.queries if relevant_ids(self.qrels, query) & ids]
        if not judged:
            raise BadInput(
                f"none of {len(self.queries)} queries has a relevant document among {len(ids)}; "
                "check that queries, qrels and documents share ids"
            )
        return judged

    def judged_over(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the queries, id to text, all of whose relevant documents are in an index."""
        relevant = {query: relevant_ids(self.qrels, query) for query in self.queries}
        indexed = snapshot.find(sorted(set().union(*relevant.values()))).keys()
        queries = {
            query: self.queries[query] for query, ids in relevant.items() if ids and ids <= indexed
        }
        if not queries:
            raise BadInput(
                f"no query of the dev set has its relevant documents in {snapshot.path}; give a "
                "dev set over the documents of this index"
            )
        return queries


def relevant_ids(qrels: Qrels, query: str) -> set[str]:
    """Return the documents that are relevant to a query."""
    return {document for document, relevance in qrels.get(query, {}).items() if relevance > 0}


def read_dev_set(folder: str | Path) -> DevSet:
    """Read a retrieval set in the BEIR layout.

    `folder`: with corpus.jsonl, queries.jsonl and qrels.tsv (columns query-id, corpus-id, score),
    each also as .gz.
    """
    names = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
    corpus_file, queries_file, qrels_file = (_file_of(Path(folder), name) for name in names)
    corpus, queries = Corpus(corpus_file), Corpus(queries_file)
    texts = {query.id: query.text for query in queries}
    qrels: dict[str, dict[str, int]] = {}
    for _, query, document, relevance in judgments(qrels_file):
        qrels.setdefault(query, {})[document] = relevance
    dev = DevSet(list(corpus), texts, qrels)
    for each in (corpus, queries):
        if bad := each.stats.rejected.total():
            raise BadInput(
                f"{each.path} has {bad} rows that cannot be used, the first:"
                f" {each.stats.examples[0]}; correct them"
            )
    return dev


def _file_of(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise BadInput(
        f"{folder} has no {name} or {name}.gz; give a folder with corpus, queries and qrels in the "
        "BEIR layout"
    )


class CachedEncoder:
    """An encoder that embeds each text once, at full dimension, and cuts what it remembers."""

    def __init__(self, encoder: SearchEncoder) -> None:
        """Wrap an encoder."""
        self._encoder = encoder
        self._vectors: dict[tuple[str | None, str, str], NDArray[np.floating]] = {}
        self.name, self.embedding_dim = encoder.name, encoder.embedding_dim
        self.space_id, self.model_hash = encoder.space_id, encoder.model_hash
        self.former_space_ids = former_ids(encoder)

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = "document",
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.floating]:
        """Return float32 unit rows, embedding what is new; no other precision is remembered."""
        keys = [(task, prompt_name, text) for text in texts]
        new = list(dict.fromkeys(key for key in keys if key not in self._vectors))
        if new:
            vectors = self._encoder.encode(
                [text for _, _, text in new], task=task, prompt_name=prompt_name
            )
            self._vectors.update(zip(new, vectors, strict=True))
        return truncate(
            np.array([self._vectors[key] for key in keys]), truncate_dim or self.embedding_dim
        )


def passage_depth(passages: PassageSettings | None) -> int:
    """Return how many passages are ranked to judge `CUTOFF` documents, which may have several."""
    return CUTOFF if passages is None else 5 * CUTOFF


def ranked_documents(snapshot: Snapshot, ranked: Ranked) -> list[str]:
    """Return the documents of a query's rows, best first; each counts with its best passage."""
    return list(dict.fromkeys(hit.id for hit in snapshot.hits(*ranked)))


def ndcg_scores(
    snapshot: Snapshot, ranked: Sequence[Ranked], query_ids: Sequence[str], qrels: Qrels
) -> NDArray[np.float64]:
    """Return `(q,)` nDCG@10 of each query, 0 to 1."""
    scores = []
    for query, each in zip(query_ids, ranked, strict=True):
        top = ranked_documents(snapshot, each)[:CUTOFF]
        gains = [qrels[query].get(document, 0) for document in top]
        scores.append(ndcg(gains, qrels[query].values(), CUTOFF))
    return np.array(scores)


def recall(
    snapshot: Snapshot, ranked: Sequence[Ranked], query_ids: Collection[str], qrels: Qrels
) -> NDArray[np.float64]:
    """Return `(q,)` shares of the relevant documents, of at most ten, among the first ten."""
    shares = []
    for query, each in zip(query_ids, ranked, strict=True):
        relevant = relevant_ids(qrels, query)
        top = set(ranked_documents(snapshot, each)[:CUTOFF])
        shares.append(len(relevant & top) / min(CUTOFF, len(relevant)))
    return np.array(shares)
