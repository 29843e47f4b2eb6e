"""What an evaluation task type is: which sets it finds, reads and encodes, and how it scores them.

Each type is a module of `tasks/`; adapters and prompts follow section 8.1 of the paper, metrics
8.2.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from taskdistill.evaluate.set_data import LabeledData, SetData, Sides
from taskdistill.io.atomic import sha256_file
from taskdistill.io.folders import check_listed
from taskdistill.tasks import Role, Task

PROTOCOL = 1
"""Raised when a protocol changes what score the same data gives, so that no cached score is reused.
"""

Vectors = Mapping[str, NDArray[np.float32]]
"""Side to (n, dim) vectors, in the order of the data."""
D = TypeVar("D", bound=SetData)


@dataclass(frozen=True, eq=False)
class Score:
    """What one set gives.

    `units` holds, for each language, one number per query, pair or experiment, whose mean is the
    language's main score; for STS two columns of ranks, whose Pearson correlation is. The main
    score is the mean over languages (section 8.3).
    """

    score: float
    scores: dict[str, float]
    units: dict[str, NDArray[np.float64]]
    notes: tuple[str, ...] = ()

    def by_language(self) -> dict[str, float]:
        """Return the main score of each language, empty where the set has one only."""
        if len(self.units) == 1:
            return {}
        return {language: unit_score(units) for language, units in self.units.items()}


class EvaluationTask(ABC, Generic[D]):
    """A way to measure a model; a plug-in is an instance named TASK in its module."""

    name: ClassVar[str]
    title: ClassVar[str]
    """How reports head its scores."""
    order: ClassVar[int]
    """Its place in reports."""
    metric: ClassVar[str]
    """The main one of `metrics`."""
    metrics: ClassVar[tuple[str, ...]]
    adapter: ClassVar[Task]
    mteb_type: ClassVar[str]
    """mteb's word for this type."""
    data_type: ClassVar[type]
    query_role: ClassVar[Role] = Role.DOCUMENT
    """The prompt of the first side; the other side is always a document."""
    compressible: ClassVar[bool] = False
    """Whether its score costs little once vectors are there, so that compression is measured."""
    takes_prompts: ClassVar[bool] = False
    """Whether the spread of its score over prompts is measured; its data must be `prompted`."""
    by_length: ClassVar[bool] = True
    """Whether it has one unit for each of its data's `lengths`."""

    @abstractmethod
    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield its sets in a data folder; of files only first rows are read."""

    def find_by_name(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield sets that are taken only where somebody names them."""
        return iter(())

    @abstractmethod
    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> D:
        """Read at most `limit` queries, pairs or test rows, refusing what cannot be scored."""

    def sides(self, data: D) -> Sides:
        """Return what is encoded; sides of one role are encoded together."""
        return data.sides()

    @abstractmethod
    def score(self, data: D, vectors: Vectors) -> Score:
        """Score vectors of `sides`, or what truncation and rounding left of them."""

    def count(self, data: D, score: Score) -> int:
        """Return how many queries, pairs or texts a score rests on."""
        return sum(len(units) for units in score.units.values())

    def eval_set(self, name: str, split: str, *files: Path) -> EvalSet:
        """Describe a set of this type."""
        return EvalSet(f"{self.name}/{name}", self, split, files)


AnyTask = EvaluationTask[Any]
"""Of data that only the type itself knows: it scores what it has loaded."""


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set: a name, its type, and its files; nothing is read before `load`."""

    name: str
    task: AnyTask
    split: str
    files: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """Name of its type, as results write it."""
        return self.task.name

    def digest(self) -> str:
        """Return a hash of the files and of the protocol that scores them."""
        parts = [f"{PROTOCOL}", self.kind, *(sha256_file(path) for path in self.files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(
        self, max_queries: int | None = None, seed: int = 17, *, full_train: bool = False
    ) -> SetData:
        """Read the set, at most `max_queries` queries, pairs or test rows of it, drawn by the seed.

        Raises BadInput if a file cannot be read or the set cannot be scored.
        """
        for path in self.files:
            check_listed(path)
        data: SetData = self.task.load(self.name, self.files, max_queries, seed)
        if full_train and isinstance(data, LabeledData):
            data = replace(data, full_train=True)
        return data

    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(path.stat().st_size for path in self.files)


def unit_score(units: NDArray[np.float64]) -> float:
    """Return what (n,) numbers or (n, 2) ranks stand for: their mean, or the correlation of ranks.

    A constant column of ranks gives 0.
    """
    if units.ndim == 1:
        return float(units.mean())
    if (np.ptp(units, axis=0) == 0).any():
        return 0.0
    return float(np.corrcoef(units[:, 0], units[:, 1]).item(1))


def score_by_language(
    languages: Sequence[str],
    score: Callable[[NDArray[np.int64]], tuple[dict[str, float], NDArray[np.float64]]],
    notes: Iterable[str],
) -> Score:
    """Score each language by itself and average; `score` maps row indices to scores and units."""
    rows: dict[str, list[int]] = {}
    for i, language in enumerate(languages):
        rows.setdefault(language, []).append(i)
    by_language = {language: score(np.array(indices)) for language, indices in rows.items()}
    names = next(iter(by_language.values()))[0]
    means = {
        name: float(np.mean([each[0][name] for each in by_language.values()])) for name in names
    }
    units = {language: each[1] for language, each in by_language.items()}
    main = float(np.mean([unit_score(each) for each in units.values()]))
    return Score(main, means, units, tuple(notes))


def split_files(folder: Path, split: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of `NAME.SPLIT.jsonl`, plain or gzip, in the order of names."""
    names = {
        path.name.removesuffix(".gz").removesuffix(f".{split}.jsonl")
        for path in folder.glob(f"*.{split}.jsonl*")
    }
    for name in sorted(names):
        path = plain_or_gzip(folder, f"{name}.{split}.jsonl")
        if path is not None:
            check_listed(path)  # its first row is read now
            yield name, path


def plain_or_gzip(folder: Path, name: str) -> Path | None:
    """Return the file of a name, or None; the compressed one where both are there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
