"""One model on one set: the record of its score, with compression, lengths and prompts where they are asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from taskdistill.evaluate.breakdowns import LENGTH_KINDS, PROMPT_KINDS, by_length, prompt_spread
from taskdistill.evaluate.compression import compression_matrix
from taskdistill.evaluate.datasets import EvalSet
from taskdistill.evaluate.encode import EncodedSet, Tell, encode_set
from taskdistill.evaluate.kinds import TASK, Embedder, Kind, binary_offsets_of, int8_ranges_of
from taskdistill.evaluate.reading import SetData
from taskdistill.evaluate.result_cache import ResultCache
from taskdistill.evaluate.results import Record, to_record
from taskdistill.evaluate.score import SetScore, evaluate_encoded
from taskdistill.quantization import ranges_to_json

COMPRESSED = (Kind.RETRIEVAL, Kind.STS, Kind.PAIR_CLASSIFICATION, Kind.BITEXT)
"""Kinds whose compression is measured: those whose score costs little once vectors are there."""


@dataclass(frozen=True)
class EvalOptions:
    """What changes a score beside model and set, and what is measured beside the score.

    Attributes:
        max_queries: Sets are cut to this many queries, pairs or test rows; None keeps all.
        full_train: Whether classification also reports a linear probe on the whole training split.
        precisions: Its precisions; empty measures no compression.
        languages: Whether retrieval sets of one family are also searched across languages and in one pool.
        prompts: Prompts whose spread is measured; empty measures none.
    """

    max_queries: int | None = None
    seed: int = 17
    full_train: bool = False
    dims: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    rescore: bool = True
    languages: bool = False
    prompts: tuple[str, ...] = ()


class SetRunner:
    """Scores one set with several models; its data are read at the first score that is not kept."""

    def __init__(
        self,
        each: EvalSet,
        digest: str,
        options: EvalOptions,
        scores: ResultCache,
        calibration: ResultCache,
    ) -> None:
        """Begin with a set.

        Args:
            scores: Where records are kept.
            calibration: Where int8 ranges are kept.
        """
        self.each, self.options = each, options
        self._digest, self._scores, self._calibration = digest, scores, calibration
        self._data: SetData | None = None

    def keys(self, fingerprint: str) -> tuple[str, str | None]:
        """Return under which names this set's record and prompt spread of a model are kept.

        Returns:
            Key of the record, and of the spread or None where none is measured.
        """
        cut = [self.options.max_queries, self.options.seed]
        also = [
            self.options.full_train,
            *(
                [self.options.dims, self.options.precisions, self.options.rescore]
                if self._compressed
                else []
            ),
        ]
        spread = self.options.prompts if self.each.kind in PROMPT_KINDS else ()
        return (
            self._scores.key("score", fingerprint, self._digest, cut, also),
            self._scores.key("prompts", fingerprint, self._digest, cut, spread) if spread else None,
        )

    def missing(self, fingerprint: str) -> bool:
        """Tell whether something has to be computed for a model.

        Returns:
            Whether a score or spread is not kept.
        """
        return any(
            key is not None and self._scores.read(key) is None for key in self.keys(fingerprint)
        )

    def record(self, model: Embedder, fingerprint: str, tell: Tell | None = None) -> Record:
        """Return the record of a model, from what is kept or anew.

        Returns:
            The record; `prompts` (prompt to score) is there where a spread is measured.
        """
        key, spread_key = self.keys(fingerprint)
        encoded: EncodedSet | None = None
        record: Record | None = self._scores.read(key)
        if record is None:
            encoded = encode_set(
                model, self.each.kind, self.data, full_train=self.options.full_train, tell=tell
            )
            record = self._scored(model, encoded, key)
            self._scores.write(key, record, model=model.name, set=self.each.name)
        if spread_key is not None:
            spread = self._scores.read(spread_key)
            if spread is None:
                result = prompt_spread(
                    model, self.each.name, self.each.kind, self.data, self.options.prompts, encoded
                )
                spread = dict(result.scores)
                self._scores.write(spread_key, spread, model=model.name, set=self.each.name)
            record = {**record, "prompts": spread}
        return record

    @property
    def data(self) -> SetData:
        """The set's data, read once."""
        if self._data is None:
            self._data = self.each.load(self.options.max_queries, self.options.seed)
        return self._data

    def forget(self) -> None:
        """Let go of the set's data."""
        self._data = None

    @property
    def _compressed(self) -> bool:
        return bool(self.options.precisions) and self.each.kind in COMPRESSED

    def _scored(self, model: Embedder, encoded: EncodedSet, key: str) -> Record:
        each, data = self.each, self.data
        result = evaluate_encoded(
            each.name, each.kind, data, encoded, full_train=self.options.full_train
        )
        record = to_record(result) | {"lengths": self._lengths(result)}
        if self._compressed:
            dims = [dim for dim in self.options.dims if dim < encoded.dim]
            set_offsets = {
                dim: ranges
                for dim, ranges in int8_ranges_of(model, TASK[each.kind]).items()
                if dim in {encoded.dim, *dims}
            }
            matrix = compression_matrix(
                each.name,
                each.kind,
                data,
                encoded,
                [encoded.dim, *dims],
                self.options.precisions,
                ranges=set_offsets,
                rescore=self.options.rescore,
                offsets=binary_offsets_of(model, TASK[each.kind]),
            )
            record["compression"] = [cell.to_json() for cell in matrix.cells]
            record["calibration"] = {
                "model": sorted(set_offsets),
                "set": sorted(matrix.ranges.keys() - set_offsets.keys()),
            }
            self._calibration.write(
                key, ranges_to_json(matrix.ranges), model=model.name, set=each.name
            )
        return record

    def _lengths(self, result: SetScore) -> list[Record]:
        if self.each.kind not in LENGTH_KINDS:
            return []
        return [asdict(bucket) for bucket in by_length(self.each.kind, self.data, result.score)]
