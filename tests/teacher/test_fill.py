"""Filling: kills, broken teachers, full disks and second writers leave a store that is right and
can go on.
"""

import errno
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.forked import Forked
from helpers.teacher_fakes import DIM, FakeTeacher, stored

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.lock import writer_lock
from taskdistill.teacher import fill, shards
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.protocol import TeacherIdentity
from taskdistill.teacher.store import describe, open_store

TEXTS = [f"text number {i}" for i in range(300)]


def contents(store):
    return {path.name: path.read_bytes() for path in (store.folder / "shards").iterdir()}


class Slow(FakeTeacher):
    """Notes what it embeds, and takes its time."""

    log: Path

    def embed(self, texts):
        with self.log.open("a") as out:
            out.write("".join(text + "\n" for text in texts))
        time.sleep(0.02)
        return super().embed(texts)


def fill_slowly(folder: Path, log: Path) -> None:
    teacher = Slow()
    teacher.log = log
    fill_store(open_store(folder, teacher.identity, None), TEXTS, teacher, shard_rows=16)


def test_killed_at_random_moments_it_resumes_to_an_uninterrupted_store(tmp_path):
    log = tmp_path / "embedded.txt"
    rng, kills = random.Random(3), 0
    log.touch()
    for _ in range(4):
        before = log.stat().st_size
        with Forked(fill_slowly, tmp_path / "killed", log) as child:
            while log.stat().st_size == before and child.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.12))
            child.kill()
            kills += child.wait() == -signal.SIGKILL
    assert kills >= 3
    with Forked(fill_slowly, tmp_path / "killed", log) as child:
        assert child.wait() == 0
    killed, whole = (
        open_store(tmp_path / name, FakeTeacher().identity, None) for name in ("killed", "whole")
    )
    fill_store(whole, TEXTS, FakeTeacher(), shard_rows=16)
    assert contents(killed) == contents(whole)
    assert np.array_equal(killed.get(TEXTS), stored(TEXTS)) and killed.check() == []
    times = Counter(log.read_text().splitlines())
    assert set(times) == set(TEXTS)
    assert sum(times.values()) <= len(TEXTS) + kills * 16


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(9))
def test_killed_around_any_rename_it_resumes(tmp_path, call, after):
    """Renames of a fill with two shards: manifest, folder, then vectors, keys and JSON of each
    shard.
    """
    teacher = FakeTeacher()
    if pid := os.fork():
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    else:
        try:
            _die_around_rename(call, after)
            fill_store(
                open_store(tmp_path / "killed", teacher.identity, None),
                TEXTS[:40],
                teacher,
                shard_rows=20,
            )
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    killed, whole = (
        open_store(tmp_path / name, teacher.identity, None) for name in ("killed", "whole")
    )
    held = len(killed)
    report = fill_store(killed, TEXTS[:40], teacher, shard_rows=20)
    fill_store(whole, TEXTS[:40], teacher, shard_rows=20)
    assert contents(killed) == contents(whole)
    assert (report.found, report.embedded) == (held, 40 - held)
    if report.embedded:
        assert any("took over the lock of process" in note for note in report.notes)
        assert [path.name for path in (tmp_path / "killed").iterdir()] == [killed.folder.name]


def _die_around_rename(call, after):
    count = 0

    def dying(original):
        def rename(*paths):
            nonlocal count
            count += 1
            if count == call + 1 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*paths)
            if count == call + 1:
                os.kill(os.getpid(), signal.SIGKILL)

        return rename

    os.replace, os.rename = dying(os.replace), dying(os.rename)


class Sick(FakeTeacher):
    """Gives NaN, infinity and zero for some texts."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def embed(self, texts):
        rows = super().embed(texts)
        for i, text in enumerate(texts):
            if text in self.bad:
                rows[i] = self.bad[text]
        return rows


def test_unusable_vectors_go_to_quarantine_and_the_rest_is_stored(tmp_path):
    teacher = Sick({TEXTS[3]: np.nan, TEXTS[40]: np.inf, TEXTS[41]: 0})
    store = open_store(tmp_path, teacher.identity, None)
    report = fill_store(store, TEXTS, teacher, shard_rows=50)
    assert (report.embedded, len(report.quarantined), report.distinct) == (297, 3, 300)
    assert sum("NaN or infinity" in line for line in report.quarantined) == 2
    assert sum("zero vector" in line for line in report.quarantined) == 1
    assert any(
        "'text number 41'" in line and line.startswith("text ") for line in report.quarantined
    )
    assert store.missing(TEXTS) == [TEXTS[3], TEXTS[40], TEXTS[41]]
    again = fill_store(store, TEXTS, teacher)
    assert (again.found, again.embedded, len(again.quarantined)) == (297, 0, 3)
    healed = fill_store(store, TEXTS, FakeTeacher())
    assert healed.embedded == 3 and np.array_equal(store.get(TEXTS), stored(TEXTS))


def test_too_many_unusable_vectors_stop_the_work(tmp_path):
    teacher = Sick(dict.fromkeys(TEXTS[100:111], np.nan))
    store = open_store(tmp_path, teacher.identity, None)
    with pytest.raises(
        WorkFailed,
        match=r"gave 11 unusable vectors among 150 texts, above 0.1%.*100 of 300 texts are safe",
    ):
        fill_store(store, TEXTS, teacher, shard_rows=50)
    assert len(open_store(tmp_path, teacher.identity, None)) == 100


def test_ten_unusable_vectors_of_the_same_few_are_no_reason_to_stop(tmp_path):
    teacher = Sick(dict.fromkeys(TEXTS[:10], np.nan))
    store = open_store(tmp_path, teacher.identity, None)
    assert (
        len(fill_store(store, TEXTS, teacher).quarantined)
        == len(fill_store(store, TEXTS, teacher).quarantined)
        == 10
    )


def test_of_many_texts_one_in_a_thousand_may_be_unusable(tmp_path):
    texts = [f"{i}" for i in range(12_000)]
    store = open_store(tmp_path, FakeTeacher().identity, None)
    assert len(fill_store(store, texts, Sick(dict.fromkeys(texts[:12], np.nan))).quarantined) == 12
    store = open_store(tmp_path, FakeTeacher().identity, "Q: {text}")
    with pytest.raises(WorkFailed, match="13 unusable vectors"):
        fill_store(store, texts, Sick({f"Q: {text}": np.nan for text in texts[:13]}))


class Changing(FakeTeacher):
    """Its n-th reply is spoilt."""

    def __init__(self, at, spoil):
        super().__init__()
        self.calls, self.at, self.spoil = 0, at, spoil

    def embed(self, texts):
        self.calls += 1
        return self.spoil(super().embed(texts)) if self.calls == self.at else super().embed(texts)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:, :5], rf"vectors of 5 values.*embedding_dim {DIM}"),
        (lambda rows: rows[:-1], r"shape \(255, 8\) for 256 texts"),
        (lambda rows: rows.ravel(), "one row a text"),
    ],
)
def test_a_reply_of_another_shape_leaves_the_store_as_it_was(tmp_path, monkeypatch, spoil, message):
    teacher = Changing(2, spoil)
    store = open_store(tmp_path, teacher.identity, None)
    fill_store(store, TEXTS[:20], FakeTeacher())
    before = contents(store)
    with pytest.raises(BadInput, match=message):
        fill_store(store, [f"more {i}" for i in range(600)], teacher)
    assert contents(store) == before and not store.lock_path.exists()


def test_an_identity_with_a_known_other_size_is_refused_before_any_work(tmp_path):
    teacher = FakeTeacher()
    store = open_store(tmp_path, teacher.identity, None, embedding_dim=16)
    teacher.embedding_dim = 8
    with pytest.raises(BadInput, match=r"has embedding_dim 8, but the store .* has 16"):
        fill_store(store, ["a"], teacher)
    assert not teacher.seen and not store.folder.exists()


def test_what_a_failing_teacher_already_gave_is_kept(tmp_path):
    def fail(rows):
        raise WorkFailed("the endpoint is down")

    teacher = Changing(3, fail)
    store = open_store(tmp_path, teacher.identity, None)
    texts = [f"{i}" for i in range(1000)]
    with pytest.raises(
        WorkFailed,
        match=(
            r"the endpoint is down; 512 of 1000 texts are safe in the store .*run the same command"
            r" again"
        ),
    ):
        fill_store(store, texts, teacher)
    assert len(store) == 512
    with pytest.raises(WorkFailed, match="down; 768 of 1000 texts are safe"):
        fill_store(store, texts, Changing(2, fail))
    assert fill_store(store, texts, teacher).embedded == 232
    assert np.array_equal(store.get(texts), stored(texts))


def test_interrupted_by_hand_it_keeps_what_it_has(tmp_path):
    def interrupt(rows):
        raise KeyboardInterrupt

    teacher = Changing(2, interrupt)
    store = open_store(tmp_path, teacher.identity, None)
    with pytest.raises(KeyboardInterrupt):
        fill_store(store, TEXTS, teacher)
    assert len(store) == 256 and not store.lock_path.exists()


def test_a_full_disk_says_how_much_is_needed_and_keeps_earlier_shards(tmp_path, monkeypatch):
    teacher = FakeTeacher()
    store = open_store(tmp_path, teacher.identity, None)
    original, writes = shards.write_file, 0

    def full(path, data):
        nonlocal writes
        writes += 1
        if writes == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr(shards, "write_file", full)
    needed = (300 - 200) * (2 * DIM + 16)
    with pytest.raises(
        WorkFailed,
        match=(
            rf"is full: the texts still to store need {needed} bytes, \d+ are free; 200 of 300"
            r" texts are safe"
        ),
    ):
        fill_store(store, TEXTS, teacher, shard_rows=100)
    monkeypatch.undo()
    assert len(store) == 200 and describe(store.folder)["whole"]
    report = fill_store(store, TEXTS, teacher)
    assert report.embedded == 100 and report.notes == [
        "removed 00002.npy, left by an interrupted run"
    ]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    def denied(path, data):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shards, "write_file", denied)
    store = open_store(tmp_path, FakeTeacher().identity, None)
    with pytest.raises(WorkFailed, match="cannot write the teacher store"):
        fill_store(store, ["a"], FakeTeacher())


def test_a_second_writer_is_turned_away_and_readers_are_not(tmp_path):
    teacher = FakeTeacher()
    store = open_store(tmp_path, teacher.identity, None)
    fill_store(store, ["a"], teacher)
    with writer_lock(store.lock_path):
        assert fill_store(store, ["a"], teacher).found == 1
        with pytest.raises(WorkFailed, match=rf"held by process {os.getpid()} on host"):
            fill_store(store, ["b"], teacher)
    assert fill_store(store, ["b"], teacher).embedded == 1


def test_a_lock_from_another_host_is_respected(tmp_path):
    teacher = FakeTeacher()
    store = open_store(tmp_path, teacher.identity, None)
    store.lock_path.write_text("12 elsewhere")
    with pytest.raises(WorkFailed, match=r"left by process 12 on host elsewhere.*remove the file"):
        fill_store(store, ["a"], teacher)
    assert store.lock_path.read_text() == "12 elsewhere"
    store.lock_path.unlink()
    assert fill_store(store, ["a"], teacher).notes == []


def test_progress_ends_at_the_number_of_missing_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "PIECE_ROWS", 64)
    teacher = FakeTeacher()
    store = open_store(tmp_path, teacher.identity, None)
    fill_store(store, TEXTS[:100], teacher)
    said = []
    fill_store(store, TEXTS, teacher, progress=lambda done, total: said.append((done, total)))
    assert said == [(64, 200), (128, 200), (192, 200), (200, 200)]


def test_a_model_that_changed_behind_its_name_is_refused(tmp_path):
    class Nameless(FakeTeacher):
        def __init__(self, sign):
            super().__init__(TeacherIdentity(kind="http", model="served"))
            self.sign = sign

        def embed(self, texts):
            return self.sign * super().embed(texts)

    store = open_store(tmp_path, TeacherIdentity(kind="http", model="served"), None)
    fill_store(store, ["a"], Nameless(1))
    fill_store(store, ["a", "b"], Nameless(1))
    with pytest.raises(BadInput, match=r"the cosine for text 'a' is -1.000; .*teacher.revision"):
        fill_store(store, ["a", "c"], Nameless(-1))
    assert store.missing(["a", "b", "c"]) == ["c"]
