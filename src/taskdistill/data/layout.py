"""What lies in a data folder: training files and evaluation sets by name, kind and split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.records import SUFFIXES
from taskdistill.types import RowKind

RETRIEVAL = "retrieval"
SPLITS = ("train", "dev", "test")
RETRIEVAL_FILES = ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz")


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """One named set of a data folder.

    `kind` is pairs, scored, labelled, texts or retrieval. `splits` maps train, dev and test to
    their files, relative to the folder; texts have a train file only, a retrieval set has a folder
    under test.
    """

    name: str
    kind: str
    splits: dict[str, str]

    @property
    def key(self) -> str:
        """Kind and name, such as `pairs/docs`."""
        return f"{self.kind}/{self.name}"


def list_sets(root: Path) -> dict[str, DatasetFiles]:
    """List the sets of a folder in the shared layout.

    Returns `kind/name` to set, sorted. Raises BadInput if the folder is missing or holds no set.
    """
    if not root.is_dir():
        raise BadInput(
            f"no data folder at {root}; give a folder with {', '.join(RowKind)} or {RETRIEVAL}"
            " inside"
        )
    result: dict[str, DatasetFiles] = {}
    for kind in RowKind:
        for path in sorted((root / kind.value).glob("*")):
            suffix = next(
                (
                    suffix
                    for suffix in sorted(SUFFIXES, key=len, reverse=True)
                    if path.name.endswith(suffix)
                ),
                None,
            )
            if suffix is None or not path.is_file():
                continue
            stem = path.name.removesuffix(suffix)
            name, _, split = stem.rpartition(".")
            if split not in SPLITS or not name:
                name, split = stem, "train"
            entry = result.setdefault(f"{kind.value}/{name}", DatasetFiles(name, kind.value, {}))
            entry.splits[split] = path.relative_to(root).as_posix()
    for folder in sorted((root / RETRIEVAL).glob("*")):
        if all((folder / name).is_file() for name in RETRIEVAL_FILES):
            result[f"{RETRIEVAL}/{folder.name}"] = DatasetFiles(
                folder.name, RETRIEVAL, {"test": folder.relative_to(root).as_posix()}
            )
    if not result:
        raise BadInput(
            f"{root} holds no data set; it needs files such as pairs/<name>.train.jsonl.gz or"
            " retrieval/<name>/corpus.jsonl.gz"
        )
    return dict(sorted(result.items()))


def find_set(sets: dict[str, DatasetFiles], name: str) -> DatasetFiles:
    """Find a set by its key, or by its name alone where one set has it.

    Raises BadInput if there is none, or several of that name.
    """
    if name in sets:
        return sets[name]
    same = [entry for entry in sets.values() if entry.name == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise BadInput(
            f"{name!r} names several data sets; say which: {', '.join(entry.key for entry in same)}"
        )
    raise BadInput(f"no data set {name!r}{did_you_mean(name, _names(sets.values()))}")


def _names(sets: Iterable[DatasetFiles]) -> list[str]:
    entries = list(sets)
    return sorted({entry.key for entry in entries} | {entry.name for entry in entries})
