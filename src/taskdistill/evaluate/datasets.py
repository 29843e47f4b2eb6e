"""Find evaluation sets in a data folder, and read them when they are wanted."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate import reading
from taskdistill.evaluate.kinds import Kind
from taskdistill.evaluate.reading import SetData
from taskdistill.io.atomic import sha256_file
from taskdistill.io.folders import check_listed

PROTOCOL = 1
"""Raised when a protocol changes what score the same data gives, so that cached scores are not reused."""

_RETRIEVAL_FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set: a name, what it asks, and its files; nothing is read before `load`."""

    name: str
    kind: Kind
    split: str
    files: tuple[Path, ...]

    def digest(self) -> str:
        """Return a hash of the files and of the protocol that scores them.

        Returns:
            64 hexadecimal digits.
        """
        parts = [f"{PROTOCOL}", self.kind.value, *(sha256_file(path) for path in self.files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(self, max_queries: int | None = None, seed: int = 17) -> SetData:
        """Read the set.

        Args:
            max_queries: Keep at most this many queries, pairs or test rows, drawn by the seed; None keeps all.

        Raises:
            BadInput: If a file cannot be read or the set cannot be scored.
        """
        for path in self.files:
            check_listed(path)
        reader = _READERS[self.kind]
        return reader(self.name, self.files, max_queries, seed)


_READERS: dict[Kind, Callable[[str, tuple[Path, ...], int | None, int], SetData]] = {
    Kind.RETRIEVAL: reading.read_retrieval,
    Kind.RERANKING: reading.read_reranking,
    Kind.STS: reading.read_scored,
    Kind.PAIR_CLASSIFICATION: reading.read_scored,
    Kind.BITEXT: reading.read_bitext,
    Kind.SUMMARISATION: reading.read_summaries,
    Kind.CLUSTERING: reading.read_clustering,
    Kind.CLASSIFICATION: reading.read_classification,
    Kind.MULTILABEL: reading.read_classification,
}


def find_eval_sets(
    root: Path, names: Sequence[str] | None = None, split: str = "test"
) -> list[EvalSet]:
    """List the evaluation sets of a data folder; of the files only a few first rows are read.

    What is found where: `retrieval/<name>/` (dev where the name ends in `-dev`, otherwise test), `reranking/<name>/`
    (the same files; a query's judged documents are its candidates), `scored/` (pair classification where every score
    is 0 or 1, otherwise STS), `pairs/` (bitext mining, or reranking where rows have negatives), `labelled/`
    (classification with a train split, multilabel where labels are lists; clustering for `clu-*` and without a train
    split), `summaries/`. A labelled set also clusters, where `clustering/<name>` is asked for by name.

    Args:
        names: Names such as `retrieval/scifact` or `sts/*`, in the order wanted; None takes every set.

    Returns:
        The sets, by kind and name, or in the order of `names`.

    Raises:
        BadInput: If the folder has no such sets or a name is unknown.
    """
    if not root.is_dir():
        raise BadInput(
            f"{root} is not a folder; give a folder with retrieval/, scored/, labelled/ or pairs/ in it"
        )
    order = list(Kind)
    result = sorted(
        {each.name: each for each in _listed(root, split)}.values(),
        key=lambda each: (order.index(each.kind), each.name),
    )
    if not result:
        raise BadInput(
            f"{root} has no evaluation sets for split {split!r}; it needs files such as labelled/NAME.{split}.jsonl.gz or retrieval/NAME/"
        )
    if names is None:
        return result
    known = {each.name: each for each in [*_also_clustering(root, split), *result]}
    chosen: dict[str, EvalSet] = {}
    for name in names:
        matches = (
            [known[name]]
            if name in known
            else [each for each in result if fnmatch.fnmatchcase(each.name, name)]
        )
        if not matches:
            raise BadInput(
                f"no evaluation set {name!r} for split {split!r} in {root}{did_you_mean(name, known)}"
            )
        chosen.update({each.name: each for each in matches})
    return list(chosen.values())


def _listed(root: Path, split: str) -> Iterator[EvalSet]:
    for kind in (Kind.RETRIEVAL, Kind.RERANKING):
        for folder in sorted(path for path in (root / kind.value).glob("*") if path.is_dir()):
            files = [_either(folder, name) for name in _RETRIEVAL_FILES]
            if None not in files and (split == "dev") == folder.name.endswith("-dev"):
                yield EvalSet(
                    f"{kind}/{folder.name}", kind, split, tuple(path for path in files if path)
                )
    for name, path in _files(root / "scored", split):
        kind = Kind.PAIR_CLASSIFICATION if reading.is_binary(path) else Kind.STS
        yield EvalSet(f"{kind}/{name}", kind, split, (path,))
    for name, path in _files(root / "pairs", split):
        kind = Kind.RERANKING if reading.first_row(path).get("negatives") else Kind.BITEXT
        yield EvalSet(f"{kind}/{name}", kind, split, (path,))
    for name, path in _files(root / "summaries", split):
        yield EvalSet(f"{Kind.SUMMARISATION}/{name}", Kind.SUMMARISATION, split, (path,))
    for name, path in _files(root / "labelled", split):
        train = _either(path.parent, f"{name}.train.jsonl")
        if name.startswith("clu-") or train is None:
            yield EvalSet(f"{Kind.CLUSTERING}/{name}", Kind.CLUSTERING, split, (path,))
        else:
            kind = (
                Kind.MULTILABEL
                if isinstance(reading.first_row(path).get("label"), list)
                else Kind.CLASSIFICATION
            )
            yield EvalSet(f"{kind}/{name}", kind, split, (path, train))


def _also_clustering(root: Path, split: str) -> Iterator[EvalSet]:
    for name, path in _files(root / "labelled", split):
        yield EvalSet(f"{Kind.CLUSTERING}/{name}", Kind.CLUSTERING, split, (path,))


def _files(folder: Path, split: str) -> Iterator[tuple[str, Path]]:
    names = {
        path.name.removesuffix(".gz").removesuffix(f".{split}.jsonl")
        for path in folder.glob(f"*.{split}.jsonl*")
    }
    for name in sorted(names):
        path = _either(folder, f"{name}.{split}.jsonl")
        if path is not None:
            check_listed(path)  # its first row is read now
            yield name, path


def _either(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
