"""Where a score comes from: texts by length, and how much it moves with the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import EncodedSet, encode_set
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.records import LengthRow
from taskdistill.evaluate.set_data import LabeledData, PairData, RankingData, SetData, SummaryData
from taskdistill.evaluate.task_type import AnyTask, Score, unit_score

EDGES = (100, 400, 1600, 6400)
"""Ends of the buckets in characters, not words, since not every script has spaces."""


@dataclass(frozen=True)
class LengthBucket:
    """The score of the queries, pairs or texts of one range of lengths."""

    label: str
    n: int
    score: float

    def to_json(self) -> LengthRow:
        """Return plain data."""
        return {"label": self.label, "n": self.n, "score": self.score}


@dataclass(frozen=True)
class PromptSpread:
    """The score of one set under each of a declared set of prompts."""

    scores: Mapping[str, float]

    def summary(self) -> tuple[float, float, float]:
        """Return lowest, median and highest score."""
        values = list(self.scores.values())
        return min(values), float(np.median(values)), max(values)


def by_length(
    task: AnyTask, data: SetData, score: Score, edges: Sequence[int] = EDGES
) -> list[LengthBucket]:
    """Split a score by the length of what was judged: a query's relevant document, a pair, a text.

    Returns the buckets that are not empty, shortest first; their units keep the ranks of the whole
    set. None at all for a type without a unit a text.
    """
    if not task.by_length:
        return []
    assert not isinstance(data, SummaryData)
    lengths = np.array(data.lengths())
    units = np.concatenate(list(score.units.values()))
    if len(score.units) > 1:
        # Units stand language by language, lengths in the order of the data.
        first_seen = {language: i for i, language in enumerate(score.units)}
        assert isinstance(data, PairData | LabeledData)
        places = [first_seen[language] for language in data.languages]
        lengths = lengths[np.argsort(places, kind="stable")]
    bucket = np.searchsorted(edges, lengths, side="right")
    labels = [
        f"up to {edges[0]:,}",
        *(f"{a:,} to {b:,}" for a, b in pairwise(edges)),
        f"{edges[-1]:,} or more",
    ]
    return [
        LengthBucket(label, int((bucket == i).sum()), unit_score(units[bucket == i]))
        for i, label in enumerate(labels)
        if (bucket == i).any()
    ]


def prompt_spread(
    embedder: Embedder,
    name: str,
    task: AnyTask,
    data: SetData,
    prompts: Sequence[str],
    encoded: EncodedSet | None = None,
) -> PromptSpread:
    """Score a set under several prompts, put where the data want them (`prompted`).

    The model's own prompt, if it has one, stays in front. Texts that no prompt changes are encoded
    once; `encoded` are the set's vectors without any prompt, if they are there already. Raises
    BadInput if there is no prompt, or the type takes none.
    """
    if not prompts:
        raise BadInput("a spread over prompts needs at least one prompt")
    if not task.takes_prompts:
        raise BadInput(
            f"{name}: a spread over prompts is for sets of queries or pairs, not for {task.name}"
        )
    assert isinstance(data, RankingData | PairData)
    plain = data.sides()
    known = dict(encoded.sides) if encoded is not None else {}
    scores = {}
    for prompt in prompts:
        changed = data.prompted(prompt)
        unchanged = {side for side, texts in changed.sides().items() if texts == plain[side]}
        reused = {side: known[side] for side in unchanged & known.keys()}
        sides = encode_set(embedder, task, changed, known=reused).sides
        known |= {side: sides[side] for side in unchanged}
        scores[prompt] = task.score(changed, sides).score
    return PromptSpread(scores)
