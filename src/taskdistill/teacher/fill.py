"""Filling a teacher store: embed what is missing, shard by shard, with everything bad kept out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.atomic import check_place, remove_stale
from taskdistill.io.folders import first_difference
from taskdistill.io.lock import writer_lock
from taskdistill.io.protection import check_writable
from taskdistill.teacher.keys import KEY_BYTES, Keys, first_seen, key_name, text_keys
from taskdistill.teacher.protocol import (
    FLOAT32,
    LookupTeacher,
    Teacher,
    apply_template,
    unit_rows,
)
from taskdistill.teacher.recheck import (
    SAME_MODEL_COSINE,
    SAMPLES,
    Disagreement,
    Recheck,
    embed_rows,
    refuse_equal,
)
from taskdistill.teacher.shards import leftovers
from taskdistill.teacher.store import TeacherStore

SHARD_ROWS = 2048
PIECE_ROWS = 256
"""Texts handed to the teacher at once, of about equal length; progress is said after each."""

QUARANTINE_ROWS = 10
QUARANTINE_SHARE = 0.001
"""Bad rows are tolerated up to this many, or up to this share of the texts asked for, whichever is
more.
"""


@dataclass(frozen=True, kw_only=True)
class TeacherFillReport:
    """What a fill did: `distinct == found + embedded + len(quarantined)`."""

    asked: int
    distinct: int
    found: int
    embedded: int = 0
    quarantined: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked_again: int = 0
    """Texts that were sent a second time, to compare the answers."""


def fill_store(
    store: TeacherStore,
    texts: Sequence[str],
    teacher: Teacher,
    *,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherFillReport:
    """Embed the distinct texts that a store lacks, shard by shard; safe to kill and run again.

    `texts`: raw texts, without instruction; the store puts them into their form. `shard_rows`:
    texts a shard; what a kill can lose. `progress`: called with (embedded, to embed). Raises
    BadInput if the teacher is not the store's, or texts are missing in a store that is
    write-protected.
    """
    _same_teacher(store, teacher)
    keys = text_keys(texts)
    distinct = first_seen(keys)
    if (store.locate_keys(keys[distinct]) >= 0).all():
        return TeacherFillReport(asked=len(texts), distinct=len(distinct), found=len(distinct))
    check_place(store.folder)
    check_writable(store.folder.parent, purpose=store.lock_path)
    check_writable(store.folder, store.folder / "shards")
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(store.lock_path) as notes:
        notes += _clean(store)
        store.refresh()  # another process may have filled it while this one waited for the lock
        requested = distinct[store.locate_keys(keys[distinct]) < 0]
        known = distinct[store.locate_keys(keys[distinct]) >= 0]
        recheck = _before(
            store, teacher, [texts[i] for i in known[:1]], [texts[i] for i in requested]
        )
        filling = _Filling(
            store=store,
            teacher=teacher,
            texts=texts,
            keys=keys,
            distinct=len(distinct),
            total=len(requested),
            progress=progress,
            recheck=recheck,
        )
        try:
            for start in range(0, len(requested), shard_rows):
                filling.add(requested[start : start + shard_rows])
        finally:
            store.refresh()
    asked_again = 0 if recheck is None else recheck.repeated
    if asked_again:
        notes.append(f"{asked_again:,} texts asked for a second time, to compare the answers")
    return TeacherFillReport(
        asked=len(texts),
        distinct=len(distinct),
        found=len(distinct) - len(requested),
        embedded=filling.stored,
        quarantined=filling.quarantined,
        notes=notes,
        asked_again=asked_again,
    )


@dataclass(kw_only=True)
class _Filling:
    store: TeacherStore
    teacher: Teacher
    texts: Sequence[str]
    keys: Keys
    distinct: int
    total: int
    progress: Callable[[int, int], None] | None
    recheck: Recheck | None
    done: int = 0
    stored: int = 0
    quarantined: list[str] = field(default_factory=list)

    def add(self, places: npt.NDArray[np.int64]) -> None:
        """Embed one shard's texts and write it; what a failing teacher already gave is kept."""
        # Texts of like length stand together, so that a teacher that pads computes little in vain;
        # the longest first, so that memory runs out at once or not at all.
        by_length = places[np.argsort([-len(self.texts[i]) for i in places], kind="stable")]
        size = PIECE_ROWS if self.recheck is None else PIECE_ROWS - SAMPLES
        pieces: list[npt.NDArray[np.float32]] = []
        confirmed = 0
        try:
            for start in range(0, len(by_length), size):
                pieces.append(self._embed(by_length[start : start + size]))
                self._refuse_equal(by_length, pieces)
                # A piece is asked about again along with the next one, so the last is not yet sure.
                confirmed = len(pieces) if self.recheck is None else len(pieces) - 1
            self._confirm(retry=True)
        except (WorkFailed, KeyboardInterrupt) as error:
            confirmed = min(confirmed, len(pieces))  # none are left if all vectors were one
            if not isinstance(error, Disagreement) and confirmed < len(pieces):
                with suppress(WorkFailed, BadInput):
                    self._confirm(retry=False)
                    confirmed = len(pieces)
            self._write(by_length, pieces[:confirmed])
            if isinstance(error, KeyboardInterrupt):
                raise
            raise WorkFailed(
                f"{error}; {self._progress_so_far()}; run the same command again to continue"
            ) from None
        self._write(by_length, pieces)

    def _refuse_equal(
        self, places: npt.NDArray[np.int64], pieces: list[npt.NDArray[np.float32]]
    ) -> None:
        vectors = np.concatenate(pieces)
        try:
            refuse_equal(
                self.teacher.identity.model,
                [self.texts[i] for i in places[: len(vectors)]],
                vectors,
            )
        except WorkFailed:
            pieces.clear()
            raise

    def _confirm(self, *, retry: bool) -> None:
        if self.recheck is not None:
            self.recheck.confirm(retry=retry)

    def _embed(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        texts = [apply_template(self.store.instruction, self.texts[i]) for i in places]
        recheck = self.recheck
        vectors = embed_rows(self.teacher, texts) if recheck is None else recheck.embed(texts)
        self.store.embedding_dim = self.store.embedding_dim or vectors.shape[1]
        if vectors.shape[1] != self.store.embedding_dim:
            raise BadInput(
                f"the teacher {self.teacher.identity.model!r} returned vectors of"
                f" {vectors.shape[1]} values, but the store {self.store.folder} has embedding_dim"
                f" {self.store.embedding_dim}; nothing of this batch was stored; give the teacher's"
                " present model another revision in the recipe"
            )
        self.done += len(places)
        if self.progress is not None:
            self.progress(self.done, self.total)
        return unit_rows(vectors)

    def _write(self, places: npt.NDArray[np.int64], pieces: list[npt.NDArray[np.float32]]) -> None:
        if not pieces:
            return
        vectors = np.concatenate(pieces)
        places = places[: len(vectors)]
        good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        for place, row in zip(places[~good], vectors[~good], strict=True):
            fault = "zero vector" if np.isfinite(row).all() else "NaN or infinity"
            self.quarantined.append(
                f"text {key_name(self.keys[place])}: {fault}: {self.texts[place][:40]!r}"
            )
        if len(self.quarantined) > max(QUARANTINE_ROWS, QUARANTINE_SHARE * self.distinct):
            raise WorkFailed(
                f"the teacher {self.teacher.identity.model!r} gave {len(self.quarantined)} unusable"
                f" vectors among {self.done} texts, above {QUARANTINE_SHARE:.1%}; first:"
                f" {self.quarantined[0]}; {self._progress_so_far()}; look at the teacher before"
                " running again"
            )
        if good.any():
            self._append(self.keys[places[good]], vectors[good].astype(np.float16))

    def _append(self, keys: Keys, vectors: npt.NDArray[np.float16]) -> None:
        try:
            self.store.append(keys, vectors)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise WorkFailed(
                    f"cannot write the teacher store {self.store.folder}: {error};"
                    f" {self._progress_so_far()}"
                ) from None
            needed = (self.total - self.stored) * (2 * vectors.shape[1] + KEY_BYTES)
            free = shutil.disk_usage(self.store.folder.parent).free
            raise WorkFailed(
                f"the disk of {self.store.folder} is full: the texts still to store need {needed}"
                f" bytes, {free} are free; {self._progress_so_far()}; free some space and run the"
                " same command again"
            ) from None
        self.stored += len(keys)

    def _progress_so_far(self) -> str:
        return (
            f"{self.distinct - self.total + self.stored} of {self.distinct} texts are safe in the"
            f" store {self.store.folder}"
        )


def _same_teacher(store: TeacherStore, teacher: Teacher) -> None:
    if difference := first_difference(
        {**FLOAT32, **store.identity.fields()}, {**FLOAT32, **teacher.identity.fields()}
    ):
        raise BadInput(
            f"the teacher store {store.folder} takes no vectors of this teacher: {difference}; open"
            " the store of this teacher"
        )
    if store.embedding_dim is not None and teacher.embedding_dim not in (None, store.embedding_dim):
        raise BadInput(
            f"the teacher {teacher.identity.model!r} has embedding_dim {teacher.embedding_dim}, but"
            f" the store {store.folder} has {store.embedding_dim}; correct teacher.embedding_dim or"
            " give another revision"
        )


def _before(
    store: TeacherStore, teacher: Teacher, known: list[str], requested: list[str]
) -> Recheck | None:
    """Ask what can be asked before the first row: has it all texts, and is it still the model that
    made the store's vectors?
    """
    if isinstance(teacher, LookupTeacher):
        teacher.require([apply_template(store.instruction, text) for text in requested])
    if teacher.identity.weights is not None:
        return None
    recheck = Recheck(teacher, len(requested))
    if known:
        text = apply_template(store.instruction, known[0])
        now = unit_rows(teacher.embed([text]))
        then = store.get(known).astype(np.float32)
        recheck.anchor(text, then[0])
        if (
            now.shape == then.shape
            and not (cosine := float((now * then).sum())) >= SAME_MODEL_COSINE
        ):
            raise BadInput(
                f"the teacher {teacher.identity.model!r} no longer gives the vectors of the store"
                f" {store.folder}: the cosine for text {known[0][:40]!r} is {cosine:.3f}; the model"
                " behind the endpoint has changed: give teacher.revision another value"
            )
    return recheck


def _clean(store: TeacherStore) -> list[str]:
    """Remove what a killed writer left: unfinished shards, and a folder that was never moved into
    place.
    """
    parts = []
    for path in leftovers(store.folder / "shards"):
        path.unlink()
        parts.append(f"removed {path.name}, left by an interrupted run")
    return parts + [
        f"removed {name}, left by an interrupted run" for name in remove_stale(store.folder)
    ]
