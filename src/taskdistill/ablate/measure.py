"""Scores of one model: every query's result, uncompressed, as sign bits and truncated, on the sets
of the experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.ablate.settings import Experiment
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.compression import decoded
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.encode import EncodedSet, encode_set
from taskdistill.evaluate.exact_search import ndcg_by_query
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.quantization import Int8Ranges, truncate
from taskdistill.types import Precision

WHOLE, BINARY = "float", "binary"
"""Variants of a set's vectors: as they are, and one sign bit a dimension; `dim-64` and the like are
truncations.
"""

_DIGITS = 6


@dataclass(kw_only=True)
class ExperimentSets:
    """The evaluation sets of an experiment, each read once."""

    primary: list[EvalSet]
    """Test sets of retrieval: the claim is about their nDCG@10."""
    secondary: list[EvalSet]
    """Test sets of other kinds: exploratory."""
    dev: list[EvalSet]
    max_queries: int | None
    max_dev_queries: int | None
    seed: int
    _read: dict[str, SetData] = field(default_factory=dict)

    def data(self, each: EvalSet) -> SetData:
        """Read a set, or return what was read before.

        `each`: one of the sets. Returns its data, cut to the queries that the recipe allows.
        """
        key = f"{each.split} {each.name}"
        if key not in self._read:
            limit = self.max_dev_queries if each in self.dev else self.max_queries
            self._read[key] = each.load(limit, self.seed)
        return self._read[key]

    def digests(self) -> dict[str, str]:
        """Hash every set."""
        return {each.name: each.digest() for each in (*self.primary, *self.secondary, *self.dev)}


class TokenEmbedder:
    """A student as evaluation sees it; the tokens of a text are made once, however many students
    encode it.
    """

    def __init__(
        self, encoder: Encoder, known: dict[tuple[str, str], NDArray[np.int32]], *, name: str
    ) -> None:
        """Wrap an encoder.

        `known`: prompt and text to token ids; filled here, for students of the same tokenizer and
        length.
        """
        self.encoder, self.known, self.name = encoder, known, name

    def encode(
        self, texts: Sequence[str], *, task: str | None, prompt_name: str
    ) -> NDArray[np.float32]:
        """Encode texts.

        `task`: ignored: a student of the ablation has no adapters. Returns float32 `(n, D)`, unit
        rows.
        """
        prompt = self.encoder.prompt_text(prompt_name)
        if new := list(dict.fromkeys(text for text in texts if (prompt, text) not in self.known)):
            tokenized = self.encoder.model.tokenizer.ids(
                new, prompt=prompt, max_length=self.encoder.max_length
            ).ids
            self.known.update(
                {
                    (prompt, text): row.astype(np.int32)
                    for text, row in zip(new, tokenized, strict=True)
                }
            )
        return self.encoder.encode_ids([self.known[prompt, text] for text in texts])

    def fingerprint(self) -> str:
        """Hash what decides the vectors."""
        return self.encoder.model_hash


def open_sets(experiment: Experiment, root: Path) -> ExperimentSets:
    """Find the sets that the recipe's evaluation names.

    `root`: the data folder, unless `evaluation.root` names another. Raises BadInput if no test set
    is for retrieval, no dev set is, or a dev set is a test set too.
    """
    requested = experiment.recipe.evaluation
    folder = Path(requested.root or root)
    test = find_eval_sets(folder, requested.sets)
    dev = [_dev_set(folder, name) for name in requested.dev]
    if both := {each.files for each in test} & {each.files for each in dev}:
        names = [each.name for each in dev if each.files in both]
        raise BadInput(
            f"evaluation.dev and evaluation.sets share {names}; tuning on a test set spoils it:"
            " name other dev sets"
        )
    primary = [each for each in test if each.kind == "retrieval"]
    if not primary:
        raise BadInput(
            "evaluation.sets has no retrieval set; the claim is about nDCG@10: name one such as"
            " retrieval/scifact"
        )
    if not any(each.kind == "retrieval" for each in dev):
        raise BadInput("evaluation.dev has no retrieval set; arms are tuned for nDCG@10: name one")
    secondary = [each for each in test if each not in primary]
    return ExperimentSets(
        primary=primary,
        secondary=secondary,
        dev=dev,
        max_queries=requested.max_queries,
        max_dev_queries=experiment.ablation.max_dev_queries,
        seed=experiment.recipe.seed,
    )


def _dev_set(folder: Path, name: str) -> EvalSet:
    for split in ("dev", "test"):
        try:
            return find_eval_sets(folder, [name], split)[0]
        except BadInput:
            if split == "test":
                raise
    raise AssertionError


def dev_scores(embedder: Embedder, sets: ExperimentSets) -> dict[str, float]:
    """Score a model on the dev sets."""
    result = {}
    for each in sets.dev:
        data = sets.data(each)
        encoded = encode_set(embedder, each.task, data)
        if isinstance(data, RankingData) and each.kind == "retrieval":
            result[each.name] = float(
                ndcg_by_query(data, encoded.sides["queries"], encoded.sides["documents"]).mean()
            )
        else:
            result[each.name] = each.task.score(data, encoded.sides).score
    return result


def macro(scores: Mapping[str, float], sets: Sequence[EvalSet]) -> float:
    """Average the retrieval sets among some scores, each counting equally: the primary metric."""
    return float(np.mean([scores[each.name] for each in sets if each.kind == "retrieval"]))


def test_scores(
    embedder: Embedder, sets: ExperimentSets, dims: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Score a model on the test sets.

    Returns set to `kind`, `metric`, `n`, `score`, `scores` (further metrics) and, for retrieval,
    `units`: variant to one nDCG@10 a query.
    """
    result: dict[str, dict[str, Any]] = {}
    for each in (*sets.primary, *sets.secondary):
        data = sets.data(each)
        encoded = encode_set(embedder, each.task, data)
        full = each.task.score(data, encoded.sides)
        record: dict[str, Any] = {
            "kind": each.kind,
            "metric": each.task.metric,
            "n": sum(len(units) for units in full.units.values()),
            "score": full.score,
            "scores": full.scores,
        }
        if each.kind == "retrieval" and isinstance(data, RankingData):
            units = {WHOLE: full.units[""]}
            for name, changed in variants(encoded, dims).items():
                units[name] = ndcg_by_query(
                    data, changed.sides["queries"], changed.sides["documents"]
                )
            record["units"] = {
                name: np.round(values, _DIGITS).tolist() for name, values in units.items()
            }
        result[each.name] = record
    return result


def variants(encoded: EncodedSet, dims: Sequence[int]) -> dict[str, EncodedSet]:
    """Compress the vectors of a set in every way that is compared."""
    ranges = Int8Ranges.fit(encoded.sides["documents"])
    result = {BINARY: _each(encoded, lambda x: decoded(x, Precision.BINARY, ranges))}
    for dim in sorted({dim for dim in dims if dim < encoded.dim}, reverse=True):
        result[f"dim-{dim}"] = _each(encoded, lambda x, dim=dim: truncate(x, dim))  # type: ignore[misc]
    return result


def _each(
    encoded: EncodedSet, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> EncodedSet:
    return replace(encoded, sides={side: change(x) for side, x in encoded.sides.items()})
