"""Needle and passkey: retrieval by one sentence hidden in a made document of a given length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, TypedDict

import numpy as np

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate.protocol import Embedder
from taskdistill.metrics import retrieval_scores
from taskdistill.stats.intervals import interval
from taskdistill.tasks import Role, Task

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
"""Tokens of a document; the eight lengths of the public task of this kind (section 8.3)."""

KINDS = ("needle", "passkey")
METRIC: Final = "nDCG@1"
TOKENS_PER_WORD = 1.3
"""Estimate used where no tokenizer is given."""

_FIRST = (
    "Ada",
    "Boris",
    "Chen",
    "Dara",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jun",
    "Kofi",
    "Lena",
    "Musa",
    "Nadia",
    "Omar",
    "Petra",
)
_LAST = (
    "Abel",
    "Brandt",
    "Costa",
    "Duarte",
    "Eriksen",
    "Fontaine",
    "Green",
    "Haddad",
    "Ito",
    "Jansen",
    "Keller",
    "Lopez",
    "Moreau",
    "Novak",
)
_THINGS = ("colour", "fruit", "instrument", "city", "season", "tool")
_VALUES = (
    "amber",
    "cello",
    "harvest",
    "Lisbon",
    "walnut",
    "violet",
    "Kyoto",
    "chisel",
    "quince",
    "winter",
    "Oslo",
    "trumpet",
)
_SUBJECTS = (
    "The old mill",
    "A narrow path",
    "The evening train",
    "Our neighbour's garden",
    "The town council",
    "A grey heron",
    "The bakery",
)
_VERBS = (
    "stood beside",
    "led away from",
    "was seen near",
    "had long been known to",
    "was painted for",
    "returned to",
    "was named after",
)
_OBJECTS = (
    "the stone bridge",
    "a row of poplars",
    "the lower market",
    "the school yard",
    "an empty warehouse",
    "the river bend",
)
_ENDS = (
    "before the rain came",
    "in the last week of March",
    "without anyone noticing",
    "as it did every year",
    "for reasons nobody recalls",
)


@dataclass(frozen=True)
class NeedleOptions:
    """Which sets are made."""

    kinds: Sequence[str] = KINDS
    lengths: Sequence[int] = LENGTHS
    """Tokens of a document."""
    documents: int = 50
    """Of each length."""
    seed: int = 17


@dataclass(frozen=True, kw_only=True)
class NeedleSet:
    """Documents of one length, one hidden sentence each, and a query for every sentence."""

    kind: str
    length: int
    """Tokens aimed at."""
    documents: list[str]
    queries: list[str]
    """Query i is answered by document i."""
    depths: list[float]
    """Where each sentence stands, as a share of its document's sentences."""


NeedleScore = TypedDict(
    "NeedleScore",
    {
        "kind": str,
        "length": int,
        "documents": int,
        "nDCG@1": float,
        "interval": list[float],
        "first_half": float,
        "second_half": float,
        "cut": int,
    },
)
"""One model on one set, as results hold it: nDCG@1 with its bootstrap interval and over documents
whose sentence stands in either half, and how many documents are longer than the model reads.
"""


def needle_set(
    kind: str,
    length: int,
    *,
    documents: int = 50,
    seed: int = 17,
    tokens: Callable[[str], int] | None = None,
) -> NeedleSet:
    """Make a set whose hidden sentences lie evenly from beginning to end of the documents.

    `kind`: `needle` hides a fact about a person, `passkey` a number that belongs to a person.
    `length`: tokens of a document, at least 64. `documents`: at most the 224 persons there are.
    `tokens`: counts the tokens of a sentence; None estimates them from its words. Raises BadInput
    if an argument is not one that a set can be made for.
    """
    persons = [f"{first} {last}" for first, last in product(_FIRST, _LAST)]
    if kind not in KINDS:
        raise BadInput(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    if length < 64 or not 2 <= documents <= len(persons):
        raise BadInput(
            f"length {length} must be at least 64 tokens, and documents {documents} between 2"
            f" and {len(persons)}"
        )
    draw = random.Random(f"{seed} {kind} {length}")
    draw.shuffle(persons)
    counted = tokens or (lambda text: round(TOKENS_PER_WORD * len(text.split())))

    def count(sentence: str) -> int:
        return counted(
            f" {sentence}"
        )  # as it stands in the document, since some tokenizers count the space

    filler = _Filler(draw, count)
    needles = NeedleSet(kind=kind, length=length, documents=[], queries=[], depths=[])
    depths = [i / (documents - 1) for i in range(documents)]
    draw.shuffle(depths)
    for person, depth in zip(persons[:documents], depths, strict=True):
        sentence, query = _fact(kind, person, draw)
        lines = filler.lines(length - count(sentence))
        place = round(depth * len(lines))
        needles.documents.append(" ".join([*lines[:place], sentence, *lines[place:]]))
        needles.queries.append(query)
        needles.depths.append(depth)
    return needles


def score_needles(
    embedder: Embedder, needles: NeedleSet, *, task: str | None = Task.RETRIEVAL.value
) -> NeedleScore:
    """Score a model on one set.

    `task`: adapter; None for a model without adapters.
    """
    queries = embedder.encode(needles.queries, task=task, prompt_name=Role.QUERY.value)
    before = getattr(embedder, "cut", 0)
    vectors = embedder.encode(needles.documents, task=task, prompt_name=Role.DOCUMENT.value)
    cut = getattr(embedder, "cut", 0) - before
    units = _ndcg_at_1(np.asarray(queries, np.float32) @ np.asarray(vectors, np.float32).T)
    early, estimate = np.array(needles.depths) < 0.5, interval({"": units})
    return {
        "kind": needles.kind,
        "length": needles.length,
        "documents": len(needles.documents),
        METRIC: float(units.mean()),
        "interval": [estimate.low, estimate.high],
        "first_half": float(units[early].mean()),
        "second_half": float(units[~early].mean()),
        "cut": cut,
    }


def _ndcg_at_1(similarities: np.ndarray) -> np.ndarray:
    names = [f"{i:03d}" for i in range(len(similarities))]
    ranking = {
        name: dict(zip(names, map(float, row), strict=True))
        for name, row in zip(names, similarities, strict=True)
    }
    return retrieval_scores({name: {name: 1} for name in names}, ranking, names)[METRIC]


def _fact(kind: str, person: str, draw: random.Random) -> tuple[str, str]:
    if kind == "passkey":
        return (
            f"The pass key of {person} is {draw.randint(10_000, 99_999)}; remember it.",
            f"What is the pass key of {person}?",
        )
    thing = draw.choice(_THINGS)
    return (
        f"The favourite {thing} of {person} is {draw.choice(_VALUES)}.",
        f"What is the favourite {thing} of {person}?",
    )


class _Filler:
    """Sentences without meaning for any query, drawn until a number of tokens is reached."""

    def __init__(self, draw: random.Random, count: Callable[[str], int]) -> None:
        self._draw = draw
        self._sentences = [
            f"{s} {v} {o} {e}." for s, v, o, e in product(_SUBJECTS, _VERBS, _OBJECTS, _ENDS)
        ]
        draw.shuffle(self._sentences)
        self._sentences = self._sentences[:400]
        self._sizes = [max(1, count(sentence)) for sentence in self._sentences]

    def lines(self, tokens: int) -> list[str]:
        lines: list[str] = []
        total = 0
        while True:
            chosen = self._draw.randrange(len(self._sentences))
            if total + self._sizes[chosen] > tokens:
                return lines
            lines.append(self._sentences[chosen])
            total += self._sizes[chosen]
