"""The score of one model on one set, with what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from taskdistill.errors import BadInput
from taskdistill.evaluate.encode import EncodedSet, encode_set
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.set_data import SetData
from taskdistill.evaluate.task_type import AnyTask, Score


@dataclass(frozen=True, eq=False, kw_only=True)
class SetScore:
    """The score of one model on one set, with what it cost."""

    set: str
    kind: str
    metric: str
    score: Score
    n: int
    dim: int
    texts: int
    encode_seconds: float
    score_seconds: float
    cut: int = 0


def evaluate_set(embedder: Embedder, name: str, task: AnyTask, data: SetData) -> SetScore:
    """Encode a set with a model and score it.

    Raises BadInput if the data are of another type, or the model returns what cannot be scored.
    """
    if not isinstance(data, task.data_type):
        raise BadInput(
            f"{name}: data of type {type(data).__name__} cannot be scored as {task.name};"
            " load the set with its own kind"
        )
    return evaluate_encoded(name, task, data, encode_set(embedder, task, data))


def evaluate_encoded(name: str, task: AnyTask, data: SetData, encoded: EncodedSet) -> SetScore:
    """Score a set whose vectors are there."""
    start = time.perf_counter()
    score = task.score(data, encoded.sides)
    seconds = time.perf_counter() - start
    if encoded.cut:
        note = (
            f"{encoded.cut:,} of {encoded.texts:,} texts are longer than this model reads;"
            " their ends were cut"
        )
        score = replace(score, notes=(*score.notes, note))
    return SetScore(
        set=name,
        kind=task.name,
        metric=task.metric,
        score=score,
        n=task.count(data, score),
        dim=encoded.dim,
        texts=encoded.texts,
        encode_seconds=encoded.seconds,
        score_seconds=seconds,
        cut=encoded.cut,
    )
