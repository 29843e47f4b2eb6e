"""From an old index to a new model: a fitted map, search over both spaces, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.io.folders import check_folder, read_manifest, write_folder
from taskdistill.search.alignment.maps import AlignedEncoder, AlignmentMap, load_map
from taskdistill.search.candidates import Rows
from taskdistill.search.devset import Qrels, recall
from taskdistill.search.index import Index
from taskdistill.search.prf import Floats
from taskdistill.search.query import SearchOptions, query_vectors, rank_queries
from taskdistill.search.settings import SearchEncoder
from taskdistill.search.storage.segment import titled
from taskdistill.search.storage.snapshot import Hit, Snapshot
from taskdistill.stats.intervals import share_interval

KIND = "migration"
STATES = ("old", "both", "new")
"""What answers: the old index with its own model, both, or the new index alone."""

DEPTH = 50
"""Passages ranked to judge the documents of a query."""

BATCH = 512
"""Passages embedded between two calls of `progress`."""

CALIBRATION_QUERIES, CALIBRATION_NEIGHBORS = 200, 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRetention:
    """Recall@10 of the old model and of the new one through the map, and the share of it.

    `low` and `high` are the 95 % interval of the share.
    """

    old: float
    mapped: float
    share: float
    low: float
    high: float
    queries: int


def sample_pairs(
    index: Index,
    encoder: SearchEncoder,
    *,
    task: str | None,
    count: int,
    seed: int,
    progress: Progress,
) -> tuple[Floats, Floats]:
    """Embed some of an index's passages with the new model, beside the vectors that it keeps.

    `index`: the old index. `task`: the new model's adapter; None for its base. `count`: passages,
    at most. Returns new vectors `(n, d)` and old vectors `(n, e)`, unit rows.
    """
    snapshot = index.snapshot
    rows = np.sort(np.random.default_rng(seed).permutation(snapshot.rows())[:count])
    texts = [titled(hit.text, hit.metadata.get("title")) for hit in snapshot.hits(rows)]
    new = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        new.append(encoder.encode(batch, task=task, prompt_name="document"))
        progress(start + len(batch), len(texts))
    return np.concatenate(new), unit_stored_vectors(snapshot, rows)


def unit_stored_vectors(snapshot: Snapshot, rows: Rows) -> Floats:
    """Return what an index keeps of passages as unit rows `(n, dim)`."""
    vectors = snapshot.float_vectors(rows)
    # In float32, unlike `quantization.normalize`: maps that were fitted before had these bits.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def recalls(
    index: Index, encoder: SearchEncoder, queries: Mapping[str, str], qrels: Qrels
) -> NDArray[np.float64]:
    """Return recall@10 of each query, all of which are judged, in their order."""
    vectors = query_vectors(index.settings, encoder, list(queries.values()))
    ranked = rank_queries(index.snapshot, vectors, DEPTH, SearchOptions())
    return recall(index.snapshot, ranked, queries, qrels)


def recall_retention(
    old: NDArray[np.float64], mapped: NDArray[np.float64], seed: int = 17
) -> RecallRetention:
    """Compare recalls of the same queries by the old model and by the new one through the map."""
    share = share_interval(mapped, old, seed=seed)
    return RecallRetention(
        old=float(old.mean()),
        mapped=float(mapped.mean()),
        share=share.value,
        low=share.low,
        high=share.high,
        queries=len(old),
    )


@dataclass(frozen=True, eq=False)
class Migration:
    """A migration folder, read."""

    path: Path
    meta: Mapping[str, Any]
    """Its manifest: state, indexes, models, task, calibration, what was measured."""
    map: AlignmentMap
    """From the new space to the old one."""

    @property
    def state(self) -> str:
        """What answers queries now."""
        return str(self.meta["state"])

    def mapped(self, encoder: SearchEncoder) -> AlignedEncoder:
        """Return the new model as one that queries the old index."""
        meta = self.meta
        return AlignedEncoder(
            encoder,
            self.map,
            space_id=meta["old_space"],
            model_hash=meta["model_hash"],
            task=meta["task"],
        )

    def search(
        self,
        query: str,
        top_k: int,
        *,
        old: Index | None,
        new: Index | None,
        encoder: SearchEncoder,
    ) -> list[Hit]:
        """Search by the state of the migration.

        `old`: the old index; needed but for the state `new`. `new`: the new index; needed for the
        state `new`. `encoder`: the old model in the state `old`, otherwise the new one. Returns
        hits, best first. Over both, scores of the old space are carried to the new one's scale by
        the line fitted on the sample.
        """
        if self.state == "new":
            assert new is not None
            return new.search([query], top_k, encoder=encoder)[0]
        assert old is not None
        if self.state == "old":
            return old.search([query], top_k, encoder=encoder)[0]
        vectors = query_vectors(old.settings, self.mapped(encoder), [query])
        allowed = rows_to_migrate(old, new)
        options = SearchOptions()
        rows, scores = rank_queries(old.snapshot, vectors, top_k, options, allowed=allowed)[0]
        slope, intercept = self.meta["calibration"]
        # A document is in one of the two: what the new index holds was left out above.
        hits = old.snapshot.hits(rows, (slope * scores + intercept).astype(np.float32))
        if new is not None and new.documents:
            hits += new.search([query], top_k, encoder=encoder)[0]
        return sorted(hits, key=lambda hit: -hit.score)[:top_k]


def _documents_to_migrate(old: Index, new: Index | None) -> list[NDArray[np.bool_]]:
    """Give for each segment of the old index whether a document lives and is not in the new one."""
    missing = []
    for segment in old.snapshot.segments:
        ids = segment.ids()
        migrated = {} if new is None else new.snapshot.find(ids)
        absent = np.array([name not in migrated for name in ids], dtype=bool)
        missing.append(absent & segment.live_documents)
    return missing


def rows_to_migrate(old: Index, new: Index | None) -> list[Rows | None]:
    """Return for each segment of the old index the rows of documents that the new one lacks."""
    if new is None:
        return old.snapshot.allowed(None)
    return [
        np.flatnonzero(missing[segment.spans[:, 0]])
        for segment, missing in zip(
            old.snapshot.segments, _documents_to_migrate(old, new), strict=True
        )
    ]


def count_to_migrate(old: Index, new: Index | None) -> int:
    """Count the documents of the old index that the new one does not hold yet."""
    return sum(int(missing.sum()) for missing in _documents_to_migrate(old, new))


def calibrate(
    mapping: AlignmentMap, new: Floats, old: Floats, seed: int = 17
) -> tuple[float, float]:
    """Fit the line from cosines of mapped vectors in the old space to cosines in the new one.

    It is fitted on near pairs of the sample, which are what a search compares. `new`: new vectors
    of the sample. `old`: old vectors of the sample. `seed`: of the texts that act as queries.
    Returns slope and intercept.
    """
    queries = np.random.default_rng(seed).permutation(len(new))[:CALIBRATION_QUERIES]
    cosines = new[queries] @ new.T
    cosines[np.arange(len(queries)), queries] = -2.0  # not a text with itself
    neighbors = np.argsort(-cosines, axis=1)[:, : min(CALIBRATION_NEIGHBORS, len(new) - 1)]
    y = np.take_along_axis(cosines, neighbors, 1).ravel()
    x = np.take_along_axis(mapping(new[queries]) @ old.T, neighbors, 1).ravel()
    slope, intercept = np.polyfit(x, y, 1)
    # A line that falls would turn the ranking of the old index around.
    return float(max(slope, 1e-3)), float(intercept)


def write_migration(
    path: Path, mapping: AlignmentMap, meta: Mapping[str, Any], *, replace: bool = False
) -> None:
    """Write a migration folder, whole or not at all; `meta` as `Migration.meta` holds it."""
    with write_folder(path, KIND, meta={**meta, "map": mapping.kind}, replace=replace) as folder:
        mapping.save(folder)


def read_migration(path: Path) -> Migration:
    """Read a migration folder."""
    manifest = read_manifest(path, KIND)
    if faults := check_folder(path, manifest):
        raise BadInput(f"{path} is damaged: {faults[0]}; run `taskdistill migrate` again")
    of_every_folder = {"kind", "format_version", "inputs", "created_by", "files"}
    meta = {key: value for key, value in manifest.items() if key not in of_every_folder}
    return Migration(path, meta, load_map(path, str(manifest["map"])))


def set_state(migration: Migration, state: str, old: Index, new: Index | None) -> None:
    """Change what answers; the old index is never touched, so every step can be taken back.

    Raises BadInput if the state is unknown. Raises WorkFailed if the new index does not hold every
    document of the old one yet.
    """
    if state not in STATES:
        raise BadInput(f"unknown state {state!r}{did_you_mean(state, STATES)}")
    count = count_to_migrate(old, new) if state == "new" else 0
    if count:
        raise WorkFailed(
            f"{count:,} of {old.documents:,} documents of {migration.meta['old_index']} are not in "
            "the new index yet; go on with `taskdistill index`, and search the migration folder "
            "meanwhile"
        )
    write_migration(migration.path, migration.map, {**migration.meta, "state": state}, replace=True)
