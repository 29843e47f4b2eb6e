"""One model on one set: its score, and where wanted compression, lengths and prompts."""

from __future__ import annotations

from dataclasses import dataclass

from taskdistill.evaluate.breakdowns import by_length, prompt_spread
from taskdistill.evaluate.compression import compression_matrix
from taskdistill.evaluate.encode import EncodedSet, ShareDone, encode_set
from taskdistill.evaluate.protocol import Embedder, binary_offsets_of, int8_ranges_of
from taskdistill.evaluate.records import Record
from taskdistill.evaluate.result_cache import ResultCache
from taskdistill.evaluate.results import to_record
from taskdistill.evaluate.score import evaluate_encoded
from taskdistill.evaluate.set_data import SetData
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.quantization import ranges_to_json


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What changes a score beside model and set, and what is measured beside the score.

    Attributes:
        max_queries: Sets are cut to this many queries, pairs or test rows; None takes all.
        full_train: Whether classification also reports a linear probe on all training rows.
        dims: Truncations whose scores are measured, beside the full dimension.
        precisions: Precisions whose scores are measured; empty measures no compression.
        languages: Whether retrieval sets of one family are also searched crosswise and in one pool.
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
    """Scores one set with several models; data are read at the first score that is not cached."""

    def __init__(
        self, eval_set: EvalSet, options: EvalOptions, scores: ResultCache, calibration: ResultCache
    ) -> None:
        """Begin with a set; `scores` takes records, `calibration` int8 ranges."""
        self.eval_set, self.options = eval_set, options
        self.digest = eval_set.digest()
        self._scores, self._calibration = scores, calibration
        self._data: SetData | None = None
        self._compressed = bool(options.precisions) and eval_set.task.compressible
        self._prompts = options.prompts if eval_set.task.takes_prompts else ()

    def keys(self, fingerprint: str) -> tuple[str, str | None]:
        """Return the cache's keys of a model's record, and of its prompt spread where measured."""
        options = self.options
        cut = [options.max_queries, options.seed]
        also: list[object] = [options.full_train]
        if self._compressed:
            also += [options.dims, options.precisions, options.rescore]
        record = self._scores.key("score", fingerprint, self.digest, cut, also)
        if not self._prompts:
            return record, None
        return record, self._scores.key("prompts", fingerprint, self.digest, cut, self._prompts)

    def missing(self, fingerprint: str) -> bool:
        """Tell whether something has to be computed for a model."""
        keys = self.keys(fingerprint)
        return any(key is not None and self._scores.read(key) is None for key in keys)

    def record(
        self, model: Embedder, fingerprint: str, progress: ShareDone | None = None
    ) -> Record:
        """Return the record of a model, cached or anew; `prompts` where a spread is measured."""
        key, spread_key = self.keys(fingerprint)
        task, name = self.eval_set.task, self.eval_set.name
        encoded: EncodedSet | None = None
        record: Record | None = self._scores.read(key)
        if record is None:
            encoded = encode_set(model, task, self.data, progress=progress)
            record = self._score(model, encoded, key)
            self._scores.write(key, record, model=model.name, set=name)
        if spread_key is not None:
            spread = self._scores.read(spread_key)
            if spread is None:
                spread = dict(
                    prompt_spread(model, name, task, self.data, self._prompts, encoded).scores
                )
                self._scores.write(spread_key, spread, model=model.name, set=name)
            record = {**record, "prompts": spread}
        return record

    @property
    def data(self) -> SetData:
        """The set's data, read once."""
        if self._data is None:
            options = self.options
            self._data = self.eval_set.load(
                options.max_queries, options.seed, full_train=options.full_train
            )
        return self._data

    def forget(self) -> None:
        """Let go of the set's data."""
        self._data = None

    def _score(self, model: Embedder, encoded: EncodedSet, key: str) -> Record:
        task, name = self.eval_set.task, self.eval_set.name
        score = evaluate_encoded(name, task, self.data, encoded)
        record = to_record(score)
        record["lengths"] = [bucket.to_json() for bucket in by_length(task, self.data, score.score)]
        if self._compressed:
            dims = [encoded.dim, *(dim for dim in self.options.dims if dim < encoded.dim)]
            stored = int8_ranges_of(model, task.adapter)
            model_ranges = {dim: stored[dim] for dim in stored if dim in dims}
            matrix = compression_matrix(
                task,
                self.data,
                encoded,
                dims,
                self.options.precisions,
                ranges=model_ranges,
                rescore=self.options.rescore,
                offsets=binary_offsets_of(model, task.adapter),
            )
            record["compression"] = [cell.to_json() for cell in matrix.cells]
            record["calibration"] = {
                "model": sorted(model_ranges),
                "set": sorted(matrix.ranges.keys() - model_ranges.keys()),
            }
            ranges = ranges_to_json(matrix.ranges)
            self._calibration.write(key, ranges, model=model.name, set=name)
        return record
