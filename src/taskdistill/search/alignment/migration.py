"""From an old index to a new model: a fitted map, search over both spaces while documents are embedded again, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.io.folders import check_folder, read_manifest, write_folder
from taskdistill.search.alignment.fit import KINDS, FittedMap, fit_maps
from taskdistill.search.alignment.maps import AlignedEncoder, AlignmentMap, Floats, load_map
from taskdistill.search.devset import CUTOFF
from taskdistill.search.index import Index
from taskdistill.search.intervals import share_interval
from taskdistill.search.protocol import SearchEncoder
from taskdistill.search.query import query_vectors, rank_queries
from taskdistill.search.storage.segment import titled
from taskdistill.search.storage.snapshot import Hit, Snapshot

KIND = "migration"
STATES = ("old", "both", "new")
"""What answers: the old index with its own model, both, or the new index alone."""
DEPTH = 50
"""Passages ranked to find the documents of a query."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RecallRetention:
    """Recall@10 on a dev set: of the old model, of the new one through the map, and the share kept with its 95 % interval."""

    old: float
    mapped: float
    share: float
    low: float
    high: float
    queries: int


def sample_pairs(
    index: Index,
    encoder: SearchEncoder,
    task: str | None,
    count: int,
    seed: int,
    progress: Progress,
) -> tuple[Floats, Floats]:
    """Embed some of an index's passages with the new model, beside the vectors that the index keeps.

    Args:
        index: The old index.
        encoder: The new model.
        task: Its adapter; None for the base.
        count: Passages, at most.
        seed: Of the draw.
        progress: Told passages done.

    Returns:
        New vectors `(n, d)` and old vectors `(n, e)`, unit rows.
    """
    snapshot = index.snapshot
    live = snapshot.rows()
    rows = np.sort(np.random.default_rng(seed).permutation(live)[:count])
    new, texts = (
        [],
        [
            titled(hit.text, hit.metadata.get("title"))
            for hit in snapshot.hits(rows, np.zeros(len(rows), np.float32))
        ],
    )
    for at in range(0, len(texts), 512):
        new.append(encoder.encode(texts[at : at + 512], task=task, prompt_name="document"))
        progress(min(at + 512, len(texts)), len(texts))
    return np.concatenate(new), stored_vectors(snapshot, rows)


def stored_vectors(snapshot: Snapshot, rows: NDArray[np.int64]) -> Floats:
    """Return what an index keeps of passages, as unit vectors.

    Args:
        snapshot: Of the index.
        rows: Rows of the snapshot.

    Returns:
        `(n, dim)` float32.

    Raises:
        BadInput: If the index keeps binary codes only.
    """
    found, ranges = snapshot.vectors(rows), snapshot.manifest.ranges
    vectors = found.astype(np.float32) if ranges is None else ranges.decode(found)
    unit: Floats = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    return unit


def recalls(
    index: Index,
    encoder: SearchEncoder,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
) -> NDArray[np.float64]:
    """Return recall@10 of each query: the share of its relevant documents among the first ten.

    Args:
        index: What is searched.
        encoder: What embeds queries.
        queries: Id to text, all of them judged.
        qrels: Query id to document id to relevance.

    Returns:
        `(q,)` shares; the order is that of `queries`.
    """
    snapshot = index.snapshot
    vectors = query_vectors(index.settings, encoder, list(queries.values()))
    ranked = rank_queries(snapshot, vectors, DEPTH, allowed=snapshot.allowed(None))
    found = []
    for name, (rows, scores) in zip(queries, ranked, strict=True):
        first = list(dict.fromkeys(hit.id for hit in snapshot.hits(rows, scores)))[:CUTOFF]
        relevant = {document for document, relevance in qrels[name].items() if relevance > 0}
        found.append(len(relevant & set(first)) / min(CUTOFF, len(relevant)))
    return np.array(found)


def recall_kept(
    old: NDArray[np.float64], mapped: NDArray[np.float64], seed: int = 17
) -> RecallRetention:
    """Compare two rankings of the same queries.

    Args:
        old: Recall of each query with the old model.
        mapped: Recall of each with the new one through the map.
        seed: Of the bootstrap.

    Returns:
        The share of the old recall that is kept; its interval draws queries with replacement.
    """
    share = share_interval(mapped, old, seed=seed)
    return RecallRetention(
        float(old.mean()), float(mapped.mean()), share.value, share.low, share.high, len(old)
    )


def fit(new: Floats, old: Floats, kind: str, seed: int) -> list[FittedMap]:
    """Fit the maps that are asked for.

    Args:
        new: New vectors of the sample.
        old: Old vectors of the same texts.
        kind: A kind, or `best`.
        seed: See `fit_maps`.

    Returns:
        Maps, best on held-out texts first.

    Raises:
        BadInput: If the kind is unknown.
    """
    if kind not in (*KINDS, "best"):
        raise BadInput(f"unknown map {kind!r}{did_you_mean(kind, (*KINDS, 'best'))}")
    return fit_maps(new, old, kinds=KINDS if kind == "best" else (kind,), seed=seed)


@dataclass(frozen=True, eq=False)
class Migration:
    """A migration folder, read.

    Attributes:
        path: The folder.
        meta: Its manifest: state, indexes, models, task, calibration, what was measured.
        map: From the new space to the old one.
    """

    path: Path
    meta: Mapping[str, Any]
    map: AlignmentMap

    @property
    def state(self) -> str:
        """What answers queries now."""
        return str(self.meta["state"])

    def mapped(self, encoder: SearchEncoder) -> AlignedEncoder:
        """Return the new model as one that asks the old index."""
        m = self.meta
        return AlignedEncoder(
            encoder, self.map, space_id=m["old_space"], model_hash=m["model_hash"], task=m["task"]
        )

    def search(
        self, old: Index | None, new: Index | None, encoder: SearchEncoder, query: str, top_k: int
    ) -> list[Hit]:
        """Search by the state of the migration.

        Args:
            old: The old index; needed but for the state `new`.
            new: The new index; needed but for the state `old`.
            encoder: The old model in the state `old`, otherwise the new one.
            query: What to look for.
            top_k: Passages wanted.

        Returns:
            Hits, best first. Over both, scores of the old space are carried to the new one's scale by the line fitted on the sample.
        """
        if self.state == "new":
            assert new is not None
            return new.search([query], top_k, encoder=encoder)[0]
        assert old is not None
        if self.state == "old":
            return old.search([query], top_k, encoder=encoder)[0]
        left = remaining(old, new)
        vectors = query_vectors(old.settings, self.mapped(encoder), [query])
        rows, scores = rank_queries(old.snapshot, vectors, top_k, allowed=left)[0]
        slope, intercept = self.meta["calibration"]
        hits = old.snapshot.hits(rows, (slope * scores + intercept).astype(np.float32))
        if new is not None and new.documents:
            hits += new.search([query], top_k, encoder=encoder)[0]
        return sorted(hits, key=lambda hit: -hit.score)[:top_k]


def remaining(old: Index, new: Index | None) -> list[NDArray[np.int64] | None]:
    """Find the passages of the old index whose documents the new one does not hold yet.

    Args:
        old: The old index.
        new: The new one, or None.

    Returns:
        For each segment of the old index its rows, as `rank_queries` takes them.
    """
    allowed = old.snapshot.allowed(None)
    if new is None:
        return allowed
    out: list[NDArray[np.int64] | None] = []
    for segment in old.snapshot.segments:
        ids = segment.ids()
        there = new.snapshot.find(ids)
        missing = np.array([name not in there for name in ids], dtype=bool) & segment.live_documents
        out.append(np.flatnonzero(missing[segment.places[:, 0]]))
    return out


def calibrate(
    mapping: AlignmentMap, new: Floats, old: Floats, seed: int = 17
) -> tuple[float, float]:
    """Fit the line from cosines of mapped vectors in the old space to cosines in the new space, on near pairs of the sample.

    Args:
        mapping: The map.
        new: New vectors of the sample.
        old: Old vectors of the sample.
        seed: Of the texts that act as queries.

    Returns:
        Slope and intercept.
    """
    chosen = np.random.default_rng(seed).permutation(len(new))[:200]
    ours = new[chosen] @ new.T
    ours[np.arange(len(chosen)), chosen] = -2.0  # not a text with itself
    near = np.argsort(-ours, axis=1)[:, : min(20, len(new) - 1)]
    y = np.take_along_axis(ours, near, 1).ravel()
    x = np.take_along_axis(mapping(new[chosen]) @ old.T, near, 1).ravel()
    slope, intercept = np.polyfit(x, y, 1)
    return float(max(slope, 1e-3)), float(intercept)


def write_migration(
    path: Path, mapping: AlignmentMap, meta: Mapping[str, Any], *, replace: bool = False
) -> None:
    """Write a migration folder, whole or not at all.

    Args:
        path: Where.
        mapping: The map.
        meta: What `Migration.meta` holds.
        replace: Whether a folder there is replaced.
    """
    with write_folder(path, KIND, meta={**meta, "map": mapping.kind}, replace=replace) as folder:
        mapping.save(folder)


def read_migration(path: Path) -> Migration:
    """Read a migration folder.

    Args:
        path: The folder.

    Returns:
        The migration.

    Raises:
        BadInput: If it is none, or damaged.
    """
    manifest = read_manifest(path, KIND)
    if faults := check_folder(path, manifest):
        raise BadInput(f"{path} is damaged: {faults[0]}; run `taskdistill migrate` again")
    known = {"kind", "format_version", "inputs", "created_by", "files"}
    meta = {key: value for key, value in manifest.items() if key not in known}
    return Migration(path, meta, load_map(path, str(manifest["map"])))


def move_to(migration: Migration, state: str, old: Index, new: Index | None) -> None:
    """Change what answers; the old index is never touched, so every step can be taken back.

    Args:
        migration: The migration.
        state: `old`, `both` or `new`.
        old: The old index.
        new: The new index, if there is one.

    Raises:
        BadInput: If the state is unknown.
        WorkFailed: If the new index does not hold every document of the old one yet.
    """
    if state not in STATES:
        raise BadInput(f"unknown state {state!r}{did_you_mean(state, STATES)}")
    if state == "new":
        left = documents_left(old, new)
        if left:
            raise WorkFailed(
                f"{left:,} of {old.documents:,} documents of {migration.meta['old_index']} are not in the new index yet; go on with "
                f"`taskdistill index`, and search the migration folder meanwhile"
            )
    write_migration(migration.path, migration.map, {**migration.meta, "state": state}, replace=True)


def documents_left(old: Index, new: Index | None) -> int:
    """Count the documents of the old index that the new one does not hold.

    Args:
        old: The old index.
        new: The new one, or None.

    Returns:
        Their number.
    """
    left = 0
    for segment in old.snapshot.segments:
        there = {} if new is None else new.snapshot.find(segment.ids())
        left += sum(
            live and name not in there
            for name, live in zip(segment.ids(), segment.live_documents.tolist(), strict=True)
        )
    return left


def judged(
    index: Index, queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, str]:
    """Choose the queries of a dev set that an index can answer.

    Args:
        index: The index.
        queries: Id to text.
        qrels: Query id to document id to relevance.

    Returns:
        Queries all of whose relevant documents are in the index.

    Raises:
        BadInput: If there is none.
    """
    wanted = {
        document
        for found in qrels.values()
        for document, relevance in found.items()
        if relevance > 0
    }
    here = index.snapshot.find(sorted(wanted)).keys()
    found = {}
    for name, text in queries.items():
        relevant = [
            document for document, relevance in qrels.get(name, {}).items() if relevance > 0
        ]
        if relevant and all(document in here for document in relevant):
            found[name] = text
    if not found:
        raise BadInput(
            f"no query of the dev set has its relevant documents in {index.path}; give a dev set over the documents of this index"
        )
    return found


def names(sequence: Sequence[FittedMap]) -> list[str]:
    """Write fitted maps as lines.

    Args:
        sequence: The maps.

    Returns:
        A line a map.
    """
    return [
        f"{each.map.kind:<11} cosine {each.cosine:.4f} on held-out texts  {each.chosen}".rstrip()
        for each in sequence
    ]
