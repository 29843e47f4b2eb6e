"""Where a score comes from: texts by length, and how much it moves with the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import EncodedSet, check_vectors, encode_set, encode_texts
from taskdistill.evaluate.kinds import QUERY_ROLE, TASK, Embedder, Kind
from taskdistill.evaluate.reading import LabeledData, PairData, RankingData, SetData
from taskdistill.evaluate.score import Score, score_vectors, unit_score

LENGTH_KINDS = (
    Kind.RETRIEVAL,
    Kind.RERANKING,
    Kind.STS,
    Kind.BITEXT,
    Kind.CLASSIFICATION,
    Kind.MULTILABEL,
)
"""Kinds with one result a query, pair or text."""

PROMPT_KINDS = (Kind.RETRIEVAL, Kind.RERANKING, Kind.STS, Kind.PAIR_CLASSIFICATION, Kind.BITEXT)
"""Kinds that a spread over prompts is measured on."""

EDGES = (100, 400, 1600, 6400)
"""Characters at which one bucket of lengths ends and the next begins; characters, since not every script has spaces."""


@dataclass(frozen=True)
class LengthBucket:
    """The score of the queries, pairs or texts of one range of lengths."""

    label: str
    n: int
    score: float


@dataclass(frozen=True)
class PromptSpread:
    """The score of one set under each of a declared set of prompts."""

    scores: Mapping[str, float]

    def summary(self) -> tuple[float, float, float]:
        """Return the range."""
        values = list(self.scores.values())
        return min(values), float(np.median(values)), max(values)


def by_length(
    kind: Kind, data: SetData, score: Score, edges: Sequence[int] = EDGES
) -> list[LengthBucket]:
    """Split a score by the length of what was judged: the relevant document of a query, both texts of a pair, a text.

    Args:
        kind: What the set asks: retrieval, reranking, STS, bitext mining, classification or multilabel.
        score: Its score, with one unit a query, pair or text.

    Returns:
        The buckets that are not empty, shortest first; their units keep the ranks of the whole set.

    Raises:
        BadInput: If the kind has no unit for each text.
    """
    lengths = np.array(_lengths(kind, data))
    units = np.concatenate(list(score.units.values()))
    if len(score.units) > 1:
        assert isinstance(data, PairData | LabeledData)
        first_seen = {language: i for i, language in enumerate(score.units)}
        lengths = lengths[
            np.argsort([first_seen[language] for language in data.languages], kind="stable")
        ]
    place = np.searchsorted(edges, lengths, side="right")
    labels = [
        f"up to {edges[0]:,}",
        *(f"{a:,} to {b:,}" for a, b in pairwise(edges)),
        f"{edges[-1]:,} or more",
    ]
    return [
        LengthBucket(labels[i], int((place == i).sum()), unit_score(units[place == i]))
        for i in range(len(labels))
        if (place == i).any()
    ]


def prompt_spread(
    embedder: Embedder,
    name: str,
    kind: Kind,
    data: SetData,
    prompts: Sequence[str],
    encoded: EncodedSet | None = None,
) -> PromptSpread:
    """Score a set under several prompts, put before the queries (or, where both sides are alike, before every text).

    The model's own prompt, if it has one, stays in front. Documents of retrieval sets are encoded once.

    Args:
        kind: What the set asks: retrieval, reranking, STS, pair classification or bitext mining.
        prompts: What is put before; an empty one leaves texts as they are.
        encoded: The set's vectors without any of the prompts, if they are there already.

    Raises:
        BadInput: If there is no prompt, or the kind is another.
    """
    if not prompts:
        raise BadInput("a spread over prompts needs at least one prompt")
    if isinstance(data, RankingData):
        known = encoded or encode_set(embedder, kind, data)
        return PromptSpread(
            {
                prompt: score_vectors(
                    name, kind, data, _asked(embedder, kind, data, known, prompt)
                ).score
                for prompt in prompts
            }
        )
    if isinstance(data, PairData):
        result = {}
        for prompt in prompts:
            each = replace(
                data,
                first=[prompt + text for text in data.first],
                second=[prompt + text for text in data.second],
            )
            known = (
                encoded if encoded is not None and not prompt else encode_set(embedder, kind, each)
            )
            result[prompt] = score_vectors(name, kind, each, known).score
        return PromptSpread(result)
    raise BadInput(f"{name}: a spread over prompts is for sets of queries or pairs, not for {kind}")


def _asked(
    embedder: Embedder, kind: Kind, data: RankingData, encoded: EncodedSet, prompt: str
) -> EncodedSet:
    if not prompt:
        return encoded
    texts = [prompt + text for text in data.queries.values()]
    vectors = encode_texts(embedder, texts, TASK[kind], QUERY_ROLE[kind])
    check_vectors(embedder.name, texts, vectors, encoded.dim)
    return replace(encoded, sides={**encoded.sides, "queries": vectors})


def _lengths(kind: Kind, data: SetData) -> list[int]:
    match kind, data:
        case ((Kind.RETRIEVAL | Kind.RERANKING), RankingData()):
            relevant = [
                max(judged, key=lambda document: judged[document]) for judged in data.qrels.values()
            ]
            return [len(data.documents[document]) for document in relevant]
        case ((Kind.STS | Kind.BITEXT), PairData()):
            return [len(a) + len(b) for a, b in zip(data.first, data.second, strict=True)]
        case ((Kind.CLASSIFICATION | Kind.MULTILABEL), LabeledData()):
            return [len(text) for text in data.texts]
    raise BadInput(
        f"a score by length is for sets with one result a query, pair or text, not for {kind}"
    )
