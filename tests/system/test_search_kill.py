"""Kill -9 at every system call of a write: acknowledged rows stay, the rest is all or nothing."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest
from helpers.search_fakes import DIM, FakeEncoder, settings, word_vector
from helpers.trees import same, tree

from taskdistill.errors import WorkFailed
from taskdistill.io import folders
from taskdistill.quantization import normalize
from taskdistill.search import build, ingest
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.storage import commit

SETTINGS = replace(settings("float32"), task=None)
State = dict[str, int]


def plan(step: int) -> tuple[str, list[str]]:
    """Return what step number `step` does: a pure function, so that parent and child agree."""
    rng = random.Random(step)
    kind = rng.choices(["add", "delete", "compact"], [6, 3, 1])[0]
    return kind, sorted(f"d{i}" for i in rng.sample(range(40), rng.randint(1, 5)))


def vector(name: str, step: int) -> np.ndarray:
    return normalize(word_vector(f"{name}@{step}")[None])[0]


def perform(index: Index, step: int) -> None:
    kind, names = plan(step)
    if kind == "add":
        documents = [Document(name, f"text of {name} at {step}", {"step": step}) for name in names]
        index.add_vectors(documents, np.array([vector(name, step) for name in names]), space_id="s")
    elif kind == "delete":
        index.delete(names)
    else:
        index.compact()


def after(state: State, step: int) -> State:
    kind, names = plan(step)
    if kind == "add":
        return {**state, **dict.fromkeys(names, step)}
    return (
        state
        if kind == "compact"
        else {name: at for name, at in state.items() if name not in names}
    )


def observed(index: Index) -> State:
    state_on_disk = index.search(vector("probe", 0)[None], 1000)[0]
    for hit in state_on_disk:
        assert hit.text == f"text of {hit.id} at {hit.metadata['step']}"
    return {hit.id: hit.metadata["step"] for hit in state_on_disk}


def check_search(index: Index, state: State) -> None:
    names = sorted(state)
    assert index.documents == len(names)
    if names:
        query, vectors = vector("query", 1), np.array([vector(name, state[name]) for name in names])
        hits = index.search(query[None], 5)[0]
        np.testing.assert_allclose(
            [hit.score for hit in hits], np.sort(vectors @ query)[::-1][:5], atol=1e-6
        )
        assert [hit.id for hit in hits] == [names[i] for i in np.argsort(-(vectors @ query))[:5]]


@contextlib.contextmanager
def forked(work):
    """Run `work(acknowledge)` in a child that never returns; yield its pid and a pipe to read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            work(lambda step: os.write(writing, f"{step}\n".encode()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    try:
        yield pid, reading
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def drained(reading: int, text: bytes = b"") -> list[int]:
    while part := os.read(reading, 65536):
        text += part
    return [int(line) for line in text.split()]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """A kill, unlike a power cut, loses nothing that was written: syncing would only wait."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_kill_9_at_random_moments(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "FANOUT", 3)
    Index.create(tmp_path / "i", SETTINGS)
    state, step, rng = {}, 0, random.Random(3)
    for _ in range(12):

        def work(acknowledge, begin=step):
            index = Index.open(tmp_path / "i")
            for each in range(begin, begin + 10_000):
                perform(index, each)
                acknowledge(each)

        with forked(work) as (pid, reading):
            first = os.read(reading, 4)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(pid, signal.SIGKILL)
            done = drained(reading, first)
        for each in done:
            state = after(state, each)
        step += len(done)
        index = Index.open(tmp_path / "i")
        state_on_disk = observed(index)
        assert state_on_disk in (state, after(state, step)), f"after step {step}"
        check_search(index, state_on_disk)
        if state_on_disk != state:
            state, step = state_on_disk, step + 1
    assert step >= 12, "every round has acknowledged something, however slow the machine"
    index.add_vectors([Document("last", "text")], vector("last", 0)[None], space_id="s")
    listed = set(index.snapshot.manifest.files)
    on_disk = {
        path.relative_to(tmp_path / "i").as_posix()
        for path in (tmp_path / "i").rglob("*")
        if path.is_file()
    }
    assert on_disk == listed | {"taskdistill.json"}


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_every_sync_and_rename(tmp_path, monkeypatch, stride):
    monkeypatch.setattr(commit, "FANOUT", 2)
    steps = [step for step in range(200) if plan(step)[0] == "add"][:2]
    steps += [
        next(s for s in range(200) if plan(s)[0] == "delete"),
        next(s for s in range(200) if plan(s)[0] == "compact"),
    ]
    start = tmp_path / "start" / "i"
    Index.create(start, SETTINGS)
    for part in ("segments", "deletes", "bm25"):
        (start / part / "20240115").mkdir(parents=True)
        (start / part / ".notes.0a1b2c3d").write_text("mine")
        (start / part / "20240115" / "codes.npy").write_text("mine")
    before = tree(start.parent)
    for point in range(1, 500, stride):
        path = tmp_path / f"i{point}" / "i"
        shutil.copytree(start, path, symlinks=True)

        def work(acknowledge, path=path, point=point):
            left = point

            def dying(call):
                def wrapped(*args, **kwargs):
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os._exit(9)
                    return call(*args, **kwargs)

                return wrapped

            index = Index.open(path)
            for module, name in (
                (os, "fsync"),
                (os, "replace"),
                (os, "unlink"),
                (os, "rename"),
                (os, "mkdir"),
                (os, "rmdir"),
                (os, "link"),
            ):
                setattr(module, name, dying(getattr(module, name)))
            for step in steps:
                perform(index, step)
                acknowledge(step)

        with forked(work) as (_, reading):
            done = drained(reading)
        state = {}
        for each in done:
            state = after(state, each)
        index = Index.open(path)
        state_on_disk = observed(index)
        assert state_on_disk == state or state_on_disk == after(state, steps[len(done)]), (
            f"killed at call {point}"
        )
        check_search(index, state_on_disk)
        index.delete(["nothing of this name"])
        now, listed = tree(path.parent), {f"i/{name}" for name in index.snapshot.manifest.files}
        assert same(before, now, before.keys() - {"i/taskdistill.json"}), f"killed at call {point}"
        assert {
            name for name in now.keys() - before.keys() if now[name][1] is not None
        } == listed, f"killed at call {point}"
        assert {name for name in now.keys() - before.keys() if now[name][1] is None} == {
            name.rpartition("/")[0] for name in listed
        } - {"i/deletes"}
        shutil.rmtree(path.parent)
        if len(done) == len(steps):
            break
    assert 40 < point < 499


def test_opening_while_another_process_writes_always_sees_one_generation(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "FANOUT", 2)
    Index.create(tmp_path / "i", SETTINGS).add_vectors(
        [Document("d", "text of d at 0", {"step": 0})], vector("d", 0)[None], space_id="s"
    )

    def work(acknowledge):
        index = Index.open(tmp_path / "i")
        for each in range(100_000):
            perform(index, each)
            acknowledge(each)

    state: State = {"d": 0}
    states = [state] + [state := after(state, step) for step in range(2000)]
    with forked(work):
        generations = set()
        end = time.monotonic() + 2
        while time.monotonic() < end or (
            len(generations) <= 3 and time.monotonic() < end + 60
        ):  # the writer may be slow
            index = Index.open(tmp_path / "i")
            assert observed(index) in states
            generations.add(index.snapshot.manifest.generation)
    assert len(generations) > 3


def test_a_build_that_was_killed_continues_where_it_was_acknowledged(tmp_path):
    documents = [Document(f"d{i}", f"word{i} text number {i}") for i in range(60)]

    def work(acknowledge):
        def slowly():
            for at, document in enumerate(documents):
                if at == 45:
                    os._exit(9)
                yield document

        build.build_index(FakeEncoder(), slowly(), tmp_path / "i", batch=10)

    with forked(work) as (_, reading):
        drained(reading)
    assert Index.open(tmp_path / "i").describe()["building"]
    assert Index.open(tmp_path / "i").documents == 40
    encoder = FakeEncoder()
    index, report = build.build_index(encoder, documents, tmp_path / "i", batch=10)
    assert (report.unchanged, report.added, len(encoder.texts_seen)) == (40, 20, 20)
    assert not index.describe()["building"]
    assert [
        hits[0].id for hits in index.search([each.text for each in documents], 1, encoder=encoder)
    ] == [each.id for each in documents]


def test_a_full_disk_fails_the_work_and_keeps_the_index(tmp_path):
    index = Index.create(tmp_path / "i", SETTINGS)
    vectors = normalize(np.random.default_rng(0).standard_normal((3000, DIM)))
    index.add_vectors([Document("kept", "text", {"step": 0})], vectors[:1], space_id="s")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(WorkFailed, match=r"cannot be written.*can be searched"):
            index.add_vectors(
                [Document(f"d{i}", "text") for i in range(3000)], vectors, space_id="s"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for each in (index, Index.open(tmp_path / "i")):
        assert [hit.id for hit in each.search(vectors[:1], 5)[0]] == ["kept"]
    index.add_vectors([Document(f"d{i}", "text") for i in range(3000)], vectors, space_id="s")
    assert index.documents == 3001


def test_a_read_only_index_is_searched_without_writing_and_refuses_changes(tmp_path, monkeypatch):
    index = Index.create(tmp_path / "i", SETTINGS)
    index.add_vectors([Document("a", "text")], vector("a", 0)[None], space_id="s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")}
    assert len(Index.open(tmp_path / "i").search(vector("a", 0)[None], 3)[0]) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")} == before

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("taskdistill.io.lock.os.open", refused)
    with pytest.raises(WorkFailed, match="Permission denied"):
        index.delete(["a"])


assert folders and commit and ingest  # the modules whose calls are cut off above
