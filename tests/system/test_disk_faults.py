"""A disk that takes nothing: what is write-protected is refused before any work, and one that fails
on the way leaves nothing half-written.

A command whose target is protected ends with exit code 2 and says which path, before it runs any
model. One whose disk becomes full or read-only in the middle ends with exit code 1 and one line;
what others have stays, and the same command succeeds once there is room again. A kill at any call
that changes something leaves as much.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.disk_child import ERRORS, KILLED, Fault, in_child, protected, with_limit
from helpers.write_cases import (
    CASES,
    box_of,
    command,
    filled,
    lay,
    state,
    tree,
    unchanged,
)
from helpers.write_cases import home as home
from safetensors.numpy import save_file

from taskdistill.errors import BadInput
from taskdistill.io.atomic import replacing
from taskdistill.io.folders import write_folder
from taskdistill.io.outputs import claim
from taskdistill.io.protection import check_replacing, check_writable, spell

FREE = [name for name, case in CASES.items() if not case.copies]
CHANGING = [name for name, case in CASES.items() if case.copies]


def refused(found: list[tuple[int, str]], lines: list[str], place: str) -> None:
    for line, (code, said) in zip(lines, found, strict=True):
        assert code == 2, (line, said)
        assert said.startswith("error: ") and said.count("\n") == 1, (line, said)
        assert place in said and "write-protected" in said and "give another path" in said, (
            line,
            said,
        )


def lock_up(*places: Path) -> None:
    for place in places:
        place.chmod(place.stat().st_mode & ~0o222)


def test_a_folder_that_takes_no_new_names_is_refused_before_any_work(home, tmp_path):
    """With the target missing: beside it, one and two levels above it."""
    box, inputs = tmp_path / "box", state(home)
    (box / "inner").mkdir(parents=True)
    lock_up(box, box / "inner")
    before = tree(tmp_path)
    lines = [
        CASES[name].argv.format(home=home, box=place)
        for name in FREE
        for place in (box, box / "inner")
    ]
    # A result as JSON and shards that are merged have a folder already; those of folders are made.
    lines += [
        CASES[name].argv.format(home=home, box=box / "new") for name in FREE if CASES[name].folder
    ]
    refused(protected(lines), lines, f"{box}")
    assert tree(tmp_path) == before and state(home) == inputs


def inner_folders(root: Path) -> list[Path]:
    return sorted(
        {
            parent
            for path in root.rglob("*")
            if path.is_file()
            for parent in path.parents
            if root in parent.parents
        }
    )


def test_what_a_command_changes_is_refused_where_it_is_write_protected(home, tmp_path):
    """The folder itself, those inside of it that a manifest lists files in, and the folder around
    it, where its successor is written.
    """
    for name in CHANGING:
        case, box = CASES[name], tmp_path / name.replace(" ", "-")
        box.mkdir()
        for part in case.copies:
            shutil.copytree(home / part, box / part)
        if case.setup is not None:
            assert command(case.setup.format(home=home, box=box)) == 0
        target, line = box / case.out, filled(case, home, box)
        beside = [box] if name in ("adapt", "migrate state", "repair") else []
        shards = (
            [target / "shards"] if name == "repair" else [target, *inner_folders(target), *beside]
        )
        for place in shards:
            mode = place.stat().st_mode
            lock_up(place)
            before = tree(box)
            refused(protected([line]), [line], f"{place}")
            assert tree(box) == before
            place.chmod(mode)


def test_results_that_are_write_protected_are_refused_before_any_work(home, tmp_path):
    """A file that would be replaced, and a folder of an earlier run or a folder in it that would
    take new names.
    """
    box = tmp_path / "box"
    box.mkdir()
    again = {name: filled(CASES[name], home, box / name.replace(" ", "-")) for name in AGAIN}
    for name, line in again.items():
        (box / name.replace(" ", "-")).mkdir()
        assert command(line) == 0
    for name, places in AGAIN.items():
        for each in places:
            place = box / name.replace(" ", "-") / each
            mode = place.stat().st_mode
            lock_up(place)
            before = tree(box)
            refused(protected([again[name]]), [again[name]], f"{place}")
            assert tree(box) == before
            place.chmod(mode)


AGAIN: dict[str, tuple[str, ...]] = {
    "info json": ("out.json",),
    "encode npy": ("out.npy",),
    "encode folder": ("out", "out/shards", "out/job.json"),
    "needle": ("out", "out/cache", "out/results.json", "out/report.html", "out/taskdistill.json"),
    "evaluate": ("out", "out/cache", "out/results.json"),
    "index": ("out", "out/segments", "out/bm25"),
}


def test_a_run_is_refused_where_it_is_write_protected(home, tmp_path):
    box = tmp_path / "box"
    shutil.copytree(home / "run", box / "out")
    lines = [filled(CASES["train"], home, box)]
    for each in ("", "log.jsonl", "metrics.json", "phases", "model", "checkpoints", "recipe.yaml"):
        place = box / "out" / each
        if each == "checkpoints":
            place.mkdir(exist_ok=True)
        mode = place.stat().st_mode
        lock_up(place)
        refused(protected(lines), lines, f"{place}")
        place.chmod(mode)


def test_a_folder_of_somebodys_that_is_write_protected_stays_as_it_is(home, tmp_path):
    """It is no part of what the command changes, so it is carried over as it is, by a user who may
    not write into it.
    """
    box = tmp_path / "box"
    shutil.copytree(home / "model", box / "model")
    mine = box / "model" / "mine"
    (mine / "inner").mkdir(parents=True)
    (mine / "inner" / "notes.txt").write_text("mine")
    (mine / "notes.txt").write_text("mine")
    lock_up(mine / "inner", mine)
    before = tree(mine)
    line = filled(CASES["adapt"], home, box)
    [(code, said)] = protected([line], computes=True)
    assert code == 0, said
    assert tree(mine) == before
    assert mine.stat().st_mode & 0o777 == 0o555
    assert [path.name for path in box.iterdir()] == ["model"]


def test_a_folder_of_somebodys_that_cannot_be_read_is_not_replaced(home, tmp_path):
    """What cannot be listed cannot be carried over, and what is not carried over would be lost."""
    box = tmp_path / "box"
    shutil.copytree(home / "model", box / "model")
    mine = box / "model" / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    before = tree(box)
    mine.chmod(0)
    line = filled(CASES["adapt"], home, box)
    [(code, said)] = protected([line])
    mine.chmod(0o755)
    assert code == 2 and f"{mine}" in said and said.count("\n") == 1, said
    assert tree(box) == before


def test_the_rule_says_what_protects_a_place(tmp_path, monkeypatch):
    place = tmp_path / "file"
    place.write_text("mine")
    check_writable(place, tmp_path, tmp_path / "missing")
    check_replacing(place)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "supports_effective_ids", {os.access})
    with pytest.raises(BadInput, match=r"file is write-protected \(mode -rw-.*see lsattr"):
        check_writable(place)
    flags = os.statvfs(place)
    monkeypatch.setattr(
        os, "statvfs", lambda _: type("Flags", (), {"f_flag": flags.f_flag | os.ST_RDONLY})
    )
    with pytest.raises(BadInput, match=r"mounted read-only.*so .*new cannot be made in it"):
        check_writable(tmp_path, purpose=tmp_path / "new")


def test_in_a_folder_for_all_only_the_owner_replaces(tmp_path, monkeypatch):
    place = tmp_path / "file"
    place.write_text("mine")
    tmp_path.chmod(0o1777)
    check_replacing(place)
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    check_writable(place)
    with pytest.raises(BadInput, match="only the owner"):
        check_replacing(place)


@pytest.fixture
def small_files():
    """No file of this process may grow above a few hundred bytes; as on a full disk, the call that
    writes fails, in any language.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


VALUES = np.zeros(30_000, np.float32)
WRITERS = {
    "safetensors": lambda path: save_file({"values": VALUES}, path),
    "numpy": lambda path: np.save(path.open("wb"), VALUES),
    "parquet": lambda path: pq.write_table(
        pa.table({"values": np.random.default_rng(0).random(30_000)}), path
    ),
    "text": lambda path: path.write_text("text" * 1_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, small_files, writer):
    with pytest.raises(OSError) as found, write_folder(tmp_path / "out", "model") as folder:
        WRITERS[writer](folder / "file")
    assert found.value.errno in (errno.EFBIG, errno.ENOSPC) and str(tmp_path / "out") in str(
        found.value
    )
    assert "run this command again" in spell(found.value) and "nothing is half-written" in spell(
        found.value
    )
    with pytest.raises(OSError) as found, replacing(tmp_path / "out.file") as beside:
        WRITERS[writer](beside)
    assert found.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["encode npy", "encode folder", "index", "adapt", "export", "info json"]
)
def test_a_disk_that_is_full_ends_a_command_with_one_line(home, tmp_path, name):
    """Where bytes are written, not where a file is made; the same command succeeds when there is
    room.
    """
    trial = Trial(home, tmp_path, name)
    with trial:
        ended = with_limit(trial.line, 300)
        assert ended.code == 1, ended.said
        assert ended.said.startswith("error: ") and ended.said.count("\n") == 1, ended.said


def test_a_claim_removes_what_a_killed_writer_left_of_its_own_names(tmp_path):
    """Of the manifest and the files that it names, not of others."""
    gone = [
        tmp_path / f".{name}.taskdistill-0a1b2c3d" for name in ("taskdistill.json", "results.json")
    ]
    stays = tmp_path / ".notes.txt.taskdistill-0a1b2c3d"
    claim(tmp_path, "needle", earlier=lambda _: True, files=("results.json",))
    for each in (*gone, stays):
        each.write_text("")
    claim(tmp_path, "needle", earlier=lambda _: False, files=("results.json",))
    assert stays.exists() and not any(each.exists() for each in gone)


class Trial:
    """A box with somebody's files around and in what a command writes, in which it is run with a
    fault and then without.
    """

    def __init__(self, home: Path, tmp_path: Path, name: str) -> None:
        self.home, self.case, self.top = home, CASES[name], tmp_path
        self.inputs, self.box = state(home), box_of(home, tmp_path, self.case)
        if self.case.setup is not None:
            assert command(self.case.setup.format(home=home, box=self.box)) == 0
        outer = lay(self.box, tmp_path / "outside", Path(self.case.out).name)
        inner = lay(self.box / self.case.out, tmp_path / "outside") if self.case.copies else set()
        self.before = tree(self.box)
        self.laid = outer | {f"{self.case.out}/{each}" for each in inner}
        self.box.rename(tmp_path / "start")

    @property
    def line(self) -> str:
        return filled(self.case, self.home, self.box)

    def calls(self) -> int:
        shutil.copytree(self.top / "start", self.box, symlinks=True, copy_function=keep)
        ended = in_child(self.line, Fault(self.box))
        assert ended.code == 0, ended.said
        shutil.rmtree(self.box)
        return ended.calls

    def __enter__(self) -> None:
        shutil.copytree(self.top / "start", self.box, symlinks=True, copy_function=keep)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        unchanged(self.before, tree(self.box), self.laid)
        again = command(self.line)
        assert again in (0, self.case.again)
        assert (self.box / self.case.out).exists()
        unchanged(self.before, tree(self.box), self.laid)
        assert [path.name for path in self.box.rglob("*") if ".taskdistill-" in path.name] == []
        assert state(self.home) == self.inputs
        shutil.rmtree(self.box)


def keep(source: str, target: str, **_: object) -> None:
    os.link(source, target, follow_symlinks=False)


def killed(home: Path, tmp_path: Path, name: str, points) -> None:
    trial = Trial(home, tmp_path, name)
    calls = trial.calls()
    for point in points(calls):
        print(f"killed at call {point} of {calls}", flush=True)
        with trial:
            assert in_child(trial.line, Fault(trial.box, point)).code == KILLED


def failed(home: Path, tmp_path: Path, name: str, points) -> None:
    trial = Trial(home, tmp_path, name)
    calls = trial.calls()
    for turn, point in enumerate(points(calls)):
        kind, lasting = list(ERRORS)[turn % 3], turn % 2 == 0
        print(f"{kind} {'from' if lasting else 'at'} call {point} of {calls}")
        with trial:
            ended = in_child(trial.line, Fault(trial.box, point, ERRORS[kind], lasting))
            assert ended.code in (0, 1, 2), ended.said
            if ended.code:
                assert ended.said.count("error: ") == 1 and "Traceback" not in ended.said, (
                    ended.said
                )
                assert os.strerror(ERRORS[kind]) in ended.said, ended.said


def part_of(number: int, parts: int):
    """Every call of a part of the sweep: the parts together are all of them."""
    return lambda calls: range(1 + number, calls + 1, parts)


SWEPT = {"search tune": 3, "compare-teachers": 2, "train": 0, "train profiled": 0}
"""Commands to the parts that the sweep over all calls is cut into, one where nothing is said; 0 for
every sixth call alone.
"""


def swept(name: str) -> list:
    if name not in SWEPT or SWEPT[name] == 1:
        return [pytest.param(name, part_of(0, 1), id=name)]
    if SWEPT[name] == 0:
        return [pytest.param(name, part_of(2, 6), id=f"{name}-every sixth")]
    return [
        pytest.param(name, part_of(each, SWEPT[name]), id=f"{name}-{each}")
        for each in range(SWEPT[name])
    ]


@pytest.mark.slow
@pytest.mark.timeout(590)
@pytest.mark.parametrize(("name", "points"), [each for name in CASES for each in swept(name)])
def test_a_kill_at_every_call(home, tmp_path, name, points):
    """Whatever the call that a process dies at, others' files are what they were, and the next run
    succeeds and cleans up.
    """
    killed(home, tmp_path, name, points)


@pytest.mark.slow
@pytest.mark.timeout(590)
@pytest.mark.parametrize(("name", "points"), [each for name in CASES for each in swept(name)])
def test_a_disk_that_fails_at_any_call(home, tmp_path, name, points):
    """One line and exit code 1, or a success where the call was needless; nothing half-written, and
    the next run succeeds.
    """
    failed(home, tmp_path, name, points)
