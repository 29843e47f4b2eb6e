"""Judge rankings of a dev set by nDCG@10, document by document, and embed its texts once for many measurements."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import truncate
from taskdistill.search.corpus import Corpus, Document
from taskdistill.search.protocol import SearchEncoder, former_ids
from taskdistill.search.ranking import Ranked
from taskdistill.search.storage.snapshot import Snapshot

CUTOFF = 10


@dataclass(frozen=True)
class DevSet:
    """Documents, queries and which of them belong together.

    Attributes:
        documents: What is searched.
        queries: Query id to text.
        qrels: Query id to document id to relevance; queries without a relevant document are left out of every mean.
    """

    documents: Sequence[Document]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    def judged(self) -> list[str]:
        """Return the ids of queries that can be judged.

        Returns:
            Ids in the order of `queries`.

        Raises:
            BadInput: If there is none, or the qrels name no document that is here.
        """
        here = {document.id for document in self.documents}
        found = [
            each
            for each in self.queries
            if any(each > 0 and name in here for name, each in self.qrels.get(each, {}).items())
        ]
        if not found:
            raise BadInput(
                f"none of {len(self.queries)} queries has a relevant document among {len(here)}; check that queries, qrels and documents share ids"
            )
        return found


def read_dev_set(folder: str | Path) -> DevSet:
    """Read a retrieval set in the BEIR layout.

    Args:
        folder: With corpus.jsonl, queries.jsonl and qrels.tsv (columns query-id, corpus-id, score), each also as .gz.

    Returns:
        The set.

    Raises:
        BadInput: If a file is missing or a row of one cannot be used.
    """
    paths = {}
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
        paths[name] = next(
            (path for path in (Path(folder) / name, Path(folder) / f"{name}.gz") if path.is_file()),
            None,
        )
        if paths[name] is None:
            raise BadInput(
                f"{folder} has no {name} or {name}.gz; give a folder with corpus, queries and qrels in the BEIR layout"
            )
    corpus, queries = (
        Corpus(cast(Path, paths["corpus.jsonl"])),
        Corpus(cast(Path, paths["queries.jsonl"])),
    )
    dev = DevSet(
        list(corpus),
        {each.id: each.text for each in queries},
        _qrels(cast(Path, paths["qrels.tsv"])),
    )
    for each in (corpus, queries):
        if each.report.faults:
            raise BadInput(
                f"{each.path} has {each.report.rejected} rows that cannot be used, the first: {each.report.faults[0]}; correct them"
            )
    return dev


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(
        path, "rt", encoding="utf-8", newline=""
    ) as stream:
        for number, line in enumerate(stream, 1):
            fields = line.rstrip("\r\n").split("\t")
            try:
                query, document, relevance = fields
                if number > 1:
                    found.setdefault(query, {})[document] = int(relevance)
            except ValueError:
                raise BadInput(
                    f"{path}:{number} is not query-id, corpus-id and a whole number, with tabs between; correct it"
                ) from None
    return found


class CachedEncoder:
    """An encoder that embeds each text once, at full dimension, and cuts what it remembers."""

    def __init__(self, encoder: SearchEncoder) -> None:
        """Wrap an encoder.

        Args:
            encoder: What embeds.
        """
        self._encoder = encoder
        self._known: dict[tuple[str | None, str, str], NDArray[Any]] = {}
        self.name, self.embedding_dim = encoder.name, encoder.embedding_dim
        self.space_id, self.model_hash, self.former_space_ids = (
            encoder.space_id,
            encoder.model_hash,
            former_ids(encoder),
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = "document",
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[Any]:
        """Return vectors, embedding only what is new.

        Args:
            texts: The texts.
            task: Task of the embeddings.
            prompt_name: Name of the prompt.
            truncate_dim: Dimensions to keep.
            precision: float32; nothing else is remembered.

        Returns:
            (n, dim) float32 unit vectors.
        """
        new = [
            text for text in dict.fromkeys(texts) if (task, prompt_name, text) not in self._known
        ]
        if new:
            vectors = self._encoder.encode(new, task=task, prompt_name=prompt_name)
            self._known.update(
                {
                    (task, prompt_name, text): vector
                    for text, vector in zip(new, vectors, strict=True)
                }
            )
        return truncate(
            np.array([self._known[task, prompt_name, text] for text in texts]),
            truncate_dim or self.embedding_dim,
        )


def ndcg(
    snapshot: Snapshot,
    ranked: Sequence[Ranked],
    query_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
) -> NDArray[np.float64]:
    """Return nDCG@10 of each query by trec_eval's definition; a document counts with its best passage.

    Args:
        snapshot: Where the rows are from.
        ranked: (q,) rows, best first.
        query_ids: (q,) ids.
        qrels: Query id to document id to relevance.

    Returns:
        (q,) scores from 0 to 1.
    """
    import pytrec_eval

    runs: dict[str, dict[str, float]] = {}
    for name, (rows, _) in zip(query_ids, ranked, strict=True):
        documents = dict.fromkeys(
            hit.id for hit in snapshot.hits(rows, np.zeros(len(rows), np.float32))
        )
        runs[name] = {document: 1.0 / (1 + place) for place, document in enumerate(documents)}
    judge = pytrec_eval.RelevanceEvaluator(
        {name: dict(qrels[name]) for name in query_ids}, {f"ndcg_cut.{CUTOFF}"}
    )
    scores = judge.evaluate(runs)
    return np.array(
        [scores[name][f"ndcg_cut_{CUTOFF}"] if name in scores else 0.0 for name in query_ids]
    )
