"""Search in several languages: each by itself, each against each other, and all in one pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.encode import encode_set
from taskdistill.evaluate.exact_search import rank, top_documents
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.rankings import score_ranking
from taskdistill.evaluate.records import PoolLanguage, PoolScores
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.quantization import normalize

CUTOFF = 10

_CANDIDATES = 200
"""Documents of the pool ranked for each query, at least; enough for ten of different content."""


@dataclass(frozen=True, kw_only=True)
class LanguageScores:
    """How queries of one language fare; the last two are None unless corpora are translations.

    Attributes:
        same_language: nDCG@10 on the corpus of their own language.
        pooled: nDCG@10 on all corpora together, where only the document in the query's language
            counts.
        same_language_share: Share of the first ten results that are in the query's language.
        any_language: nDCG@10 on all corpora together, where a translation of the document counts as
            well.
        same_language_first: Share of queries whose first relevant result, in whatever language, is
            in the query's.
    """

    queries: int
    same_language: float
    pooled: float
    any_language: float | None
    same_language_share: float
    same_language_first: float | None


@dataclass(frozen=True, eq=False)
class PooledScores:
    """Scores by query language, and nDCG@10 of each query language (row) on each corpus (column).

    `cross` is empty where texts are not parallel.
    """

    by_language: Mapping[str, LanguageScores]
    cross: Mapping[str, Mapping[str, float]]

    def to_json(self) -> PoolScores:
        """Return plain data, in which `own` is the language of the queries."""
        by_language: dict[str, PoolLanguage] = {
            language: {
                "queries": each.queries,
                "own": each.same_language,
                "pooled": each.pooled,
                "any_language": each.any_language,
                "own_share": each.same_language_share,
                "first_own": each.same_language_first,
            }
            for language, each in self.by_language.items()
        }
        return {
            "by_language": by_language,
            "cross": {language: dict(scores) for language, scores in self.cross.items()},
        }

    @classmethod
    def from_json(cls, pool: PoolScores) -> PooledScores:
        """Read what `to_json` returned."""
        by_language = {
            language: LanguageScores(
                queries=each["queries"],
                same_language=each["own"],
                pooled=each["pooled"],
                any_language=each["any_language"],
                same_language_share=each["own_share"],
                same_language_first=each["first_own"],
            )
            for language, each in pool["by_language"].items()
        }
        return cls(by_language, pool["cross"])


def name_and_language(name: str) -> tuple[str, str]:
    """Split the name of a set of one language, such as `sts/stsb-de`.

    The language is two or three letters, empty where the name has none.
    """
    family, _, language = name.rpartition("-")
    named = (
        bool(family)
        and language.isascii()
        and language.isalpha()
        and language.islower()
        and len(language) in (2, 3)
    )
    return (family, language) if named else (name, "")


def families(sets: Sequence[EvalSet]) -> dict[str, dict[str, EvalSet]]:
    """Group retrieval sets that differ only in their language, such as `xquad-de` and `xquad-en`.

    Returns the name without the language to language to set, for two languages or more.
    """
    result: dict[str, dict[str, EvalSet]] = {}
    for each in sets:
        family, language = name_and_language(each.name)
        if each.kind == "retrieval" and language:
            result.setdefault(family, {})[language] = each
    return {family: members for family, members in result.items() if len(members) > 1}


def pooled_retrieval(embedder: Embedder, sets: Mapping[str, RankingData]) -> PooledScores:
    """Search the corpora of several languages apart, crosswise and together.

    nDCG alone hides whether results come back in the language of the query; the shares tell.
    Corpora are taken as translations of each other if they have the same document ids. Raises
    BadInput if there are fewer than two languages, or the model returns what cannot be scored.
    """
    if len(sets) < 2:
        raise BadInput(f"a pool of languages needs at least two; got {', '.join(sets) or 'none'}")
    encoded = {
        language: encode_set(embedder, TASK_TYPES["retrieval"], data).sides
        for language, data in sets.items()
    }
    parallel = len({frozenset(data.documents) for data in sets.values()}) == 1
    pool = normalize(np.concatenate([encoded[language]["documents"] for language in sets]))
    places = [
        (language, document) for language, data in sets.items() for document in data.documents
    ]
    result, cross = {}, {}
    for language, data in sets.items():
        queries = normalize(encoded[language]["queries"])
        on = {
            other: (
                score_ranking(
                    data,
                    rank(
                        RankingData(
                            documents=sets[other].documents, queries=data.queries, qrels=data.qrels
                        ),
                        queries,
                        encoded[other]["documents"],
                    ),
                ).score
            )
            for other in (sets if parallel else [language])
        }
        hits = _sorted_hits(queries, pool, places)
        result[language] = _language_scores(language, data, hits, on[language], parallel)
        if parallel:
            cross[language] = on
    return PooledScores(result, cross)


def _sorted_hits(
    queries: NDArray[np.float32], pool: NDArray[np.float32], places: Sequence[tuple[str, str]]
) -> list[list[tuple[str, str]]]:
    depth = max(_CANDIDATES, 2 * CUTOFF * len({language for language, _ in places}))
    indices, scores = top_documents(queries, pool, depth)
    order = np.argsort(-scores, axis=1, kind="stable")
    return [[places[i] for i in row] for row in np.take_along_axis(indices, order, 1).tolist()]


def _language_scores(
    language: str,
    data: RankingData,
    hits: Sequence[Sequence[tuple[str, str]]],
    same_language: float,
    parallel: bool,
) -> LanguageScores:
    pooled_ranking: dict[str, dict[str, float]] = {}
    content_ranking: dict[str, dict[str, float]] = {}
    shares, same_language_first = [], []
    for query, row in zip(data.queries, hits, strict=True):
        # a document of another language keeps its place but can never be the relevant one
        pooled_ranking[query] = {
            (d if lang == language else f"{lang}:{d}"): -float(i) for i, (lang, d) in enumerate(row)
        }
        content_ranking[query] = {
            d: -float(i) for i, d in enumerate(dict.fromkeys(d for _, d in row))
        }
        shares.append(np.mean([lang == language for lang, _ in row[:CUTOFF]]))
        relevant = next((lang for lang, d in row if data.qrels[query].get(d, 0) > 0), None)
        same_language_first.append(relevant == language)
    prefixed = RankingData(documents=data.documents, queries=data.queries, qrels=data.qrels)
    return LanguageScores(
        queries=len(data.queries),
        same_language=same_language,
        pooled=score_ranking(prefixed, pooled_ranking).score,
        any_language=score_ranking(prefixed, content_ranking).score if parallel else None,
        same_language_share=float(np.mean(shares)),
        same_language_first=float(np.mean(same_language_first)) if parallel else None,
    )
