"""A writer killed between any two system calls leaves the old folder or the new one, whole, and
everybody else's files as they were.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskdistill.errors import BadInput
from taskdistill.io import atomic, folders
from taskdistill.io.atomic import remove_stale, remove_stale_within, replacing, restore, write_file
from taskdistill.io.folders import check_folder, read_manifest, remove_folder, write_folder
from taskdistill.types import MANIFEST

CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.utime",
    "fcntl.flock",
    "counted",
}
"""Audit events that stand for system calls that change something; a kill between two others is a
kill before the next of these.
"""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """What is synced matters when the power fails, not when a process is killed; that it is synced
    has a test of its own.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(path: Path, name: str, *, replace: bool = True) -> None:
    with write_folder(path, "thing", meta={"name": name}, replace=replace) as folder:
        (folder / "a.txt").write_text(name)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(name.encode() * 3)


def read(path: Path) -> str | None:
    """The name that a whole folder was written with; None where there is none."""
    if not restore(path):
        return None
    manifest = read_manifest(path, "thing")
    assert check_folder(path, manifest) == []
    name: str = manifest["name"]
    assert (path / "a.txt").read_text() == name and (
        path / "sub" / "b.bin"
    ).read_bytes() == name.encode() * 3
    return name


def lay_out(parent: Path) -> dict[str, str]:
    """Put files of others around and inside a folder, and return what must stay: path to
    content.
    """
    files = {
        ".bashrc.20240115": "a dated backup",
        ".x.0123abcd.old": "a backup too",
        ".y.taskdistill-0123abcd": "another target's",
        "x.taskdistill-0123abcd": "no hidden name",
        ".x.taskdistill-0123abcd.txt": "another ending",
        "x/notes.txt": "of the owner",
        "x/.hidden/deep/one": "of the owner, deep down",
        "x/sub/two": "beside a file of ours",
    }
    for name, text in files.items():
        (parent / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / name).write_text(text)
    (parent / "x" / "empty").mkdir(exist_ok=True)
    (parent / "x" / "link").symlink_to("/nowhere")
    (parent / ".x.taskdistill-abcdef01").symlink_to(parent / ".bashrc.20240115")
    return files


def intact(parent: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        assert (parent / name).read_text() == text, name
    assert (parent / ".x.taskdistill-abcdef01").readlink() == parent / ".bashrc.20240115"
    if (parent / "x").is_dir():
        assert (parent / "x" / "empty").is_dir() and (parent / "x" / "link").readlink() == Path(
            "/nowhere"
        )


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Run something in a child that is killed as it begins its system call of this number; say
    whether it was.
    """
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    left = call

    def step(event: str, given: tuple[Any, ...] = ()) -> None:
        nonlocal left
        if event in CHANGES or (
            event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (step("counted"), call(*args))[1]

    try:
        # Calls of which Python raises no event.
        os.fsync, atomic.exchange = counted(os.fsync), counted(atomic.exchange)
        sys.addaudithook(step)
        work()
        os._exit(0)
    finally:
        os._exit(3)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "renames"])
def test_a_kill_at_every_system_call_of_a_replacing_write(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(atomic, "exchange", lambda one, two: False)
    seen, call, target = [], 0, tmp_path / "x"
    write(target, "old")
    files = lay_out(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    while killed_at(call, lambda: write(target, "new")):
        seen.append(read(target))
        intact(tmp_path, files)
        write(target, "old")
        assert read(target) == "old"
        intact(tmp_path, files)
        assert sorted(path.name for path in tmp_path.iterdir()) == names, "every leftover is gone"
        call += 1
    assert call > 25 and set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True), (
        "old first, then new"
    )
    assert read(target) == "new"


def test_a_kill_at_every_system_call_of_a_first_write(tmp_path):
    seen, call, target = [], 0, tmp_path / "x"
    while killed_at(call, lambda: write(target, "new", replace=False)):
        seen.append(read(target))
        shutil.rmtree(target, ignore_errors=True)
        write(target, "other", replace=False)
        assert read(target) == "other" and [path.name for path in tmp_path.iterdir()] == ["x"]
        shutil.rmtree(target)
        call += 1
    assert call > 10 and set(seen) == {None, "new"}


def test_a_kill_at_every_system_call_of_a_file(tmp_path):
    target, seen, call = tmp_path / "a.json", [], 0
    target.write_text("old")
    while killed_at(call, lambda: write_file(target, "new")):
        seen.append(target.read_text())
        remove_stale(target)
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
        write_file(target, "old")
        call += 1
    assert set(seen) == {"old", "new"} and target.read_text() == "new"


def test_a_kill_at_every_system_call_of_putting_back_and_removing(tmp_path):
    """The last copy survives those who clean up, too."""
    target, call = tmp_path / "x", 0
    while True:
        write(target, "old")
        target.rename(tmp_path / ".x.taskdistill-00000001.old")
        write(tmp_path / "new", "new")
        (tmp_path / "new").rename(tmp_path / ".x.taskdistill-00000001")
        killed = killed_at(call, lambda: remove_stale(target) and None)
        assert read(target) == "old"
        remove_stale(target)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        shutil.rmtree(target)
        if not killed:
            break
        call += 1
    assert call > 5


def test_an_interrupt_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    target, rename = tmp_path / "x", Path.rename
    write(target, "old")
    monkeypatch.setattr(atomic, "exchange", lambda one, two: False)

    def interrupted(path: Path, to: Path) -> Path:
        if to == target and not path.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(target, "new")
    assert read(target) == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_living_writer_holds_is_left_alone(tmp_path):
    target = tmp_path / "x"
    with write_folder(target, "thing") as folder, replacing(tmp_path / "a.json") as file:
        (folder / "a.txt").write_text("one")
        assert remove_stale(target, tmp_path / "a.json") == remove_stale_within(tmp_path) == []
        assert (folder / "a.txt").read_text() == "one" and file.exists()
    assert read_manifest(target, "thing")["files"].keys() == {"a.txt"}


def test_of_two_writers_of_a_new_folder_the_second_is_refused(tmp_path, monkeypatch):
    """Whether it comes before or after the last look at the target."""
    target, swap_in = tmp_path / "x", folders.swap_in
    with (
        pytest.raises(BadInput, match="already exists; give another folder"),
        write_folder(target, "thing"),
    ):
        write(target, "one", replace=False)
    shutil.rmtree(target)

    def late(beside: Path, path: Path, *, replace: bool) -> None:
        monkeypatch.setattr(folders, "swap_in", swap_in)
        write(target, "one")
        swap_in(beside, path, replace=replace)

    for replace in (False, True):
        monkeypatch.setattr(folders, "swap_in", late)
        with pytest.raises(BadInput, match="was made by another process meanwhile"):
            write(target, "two", replace=replace)
        assert read(target) == "one" and [path.name for path in tmp_path.iterdir()] == ["x"]
        shutil.rmtree(target)


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    (tmp_path / ".x.taskdistill-01234567").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "x", "one")
    write(tmp_path / "x", "two")
    assert remove_stale(tmp_path / "x") == [] and read(tmp_path / "x") == "two"
    (tmp_path / "x").rename(tmp_path / ".x.taskdistill-01234567.old")
    monkeypatch.setattr(atomic, "_PATIENCE", 0.0)
    assert read(tmp_path / "x") == "two", "putting back removes nothing, so it needs no proof"


def test_a_target_that_is_no_folder_of_this_kind_is_not_replaced(tmp_path):
    target = tmp_path / "x"
    target.mkdir()
    write(target, "an empty folder is nobody's")
    for lay, match in (
        (lambda: (target / MANIFEST).unlink(), "has no taskdistill.json, so it is not replaced"),
        (
            lambda: shutil.rmtree(target) or target.write_text("mine"),
            "is no folder, which is not replaced",
        ),
        (
            lambda: target.unlink() or target.symlink_to(tmp_path / "elsewhere"),
            "is a link to .*elsewhere",
        ),
    ):
        lay()
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(BadInput, match=match):
            write(target, "new")
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    target.unlink()
    write(target, "old")
    with (
        pytest.raises(BadInput, match="is a 'thing' folder, but a 'model' folder is needed here"),
        write_folder(target, "model", replace=True),
    ):
        pass
    assert read(target) == "old"


def test_an_owners_file_in_the_way_of_a_new_one_is_named(tmp_path):
    target = tmp_path / "x"
    write(target, "old")
    (target / "c.txt").write_text("mine")
    with (
        pytest.raises(
            BadInput,
            match=r"x/c.txt is not of this folder, and a new file takes its name; move it away",
        ),
        write_folder(target, "thing", replace=True) as folder,
    ):
        (folder / "c.txt").write_text("ours")
    assert read(target) == "old" and (target / "c.txt").read_text() == "mine"


def test_removing_a_folder_leaves_what_its_manifest_does_not_list(tmp_path):
    target = tmp_path / "x"
    write(target, "old")
    files = lay_out(tmp_path)
    remove_folder(target)
    intact(tmp_path, files)
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == [
        "notes.txt",
        "one",
        "two",
    ]
    remove_folder(target)
    shutil.rmtree(target)
    write(target, "new")
    remove_folder(target)
    assert not target.exists()


def test_files_have_the_mode_of_their_folder(tmp_path):
    with write_folder(tmp_path / "x", "thing") as folder:
        (folder / "a").write_text("1")
        (folder / "a").chmod(0o600)
    assert (tmp_path / "x" / "a").stat().st_mode & 0o666 == (tmp_path / "x").stat().st_mode & 0o666


SCRIPT = """
import sys
from pathlib import Path
from taskdistill.io.folders import write_folder
if sys.argv[2] == "renames":
    from taskdistill import atomic
    atomic.exchange = lambda one, two: False
with write_folder(Path(sys.argv[1]), "thing", meta={"name": "new"}, replace=True) as folder:
    (folder / "a.txt").write_text("new")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bin").write_bytes(b"newnewnew")
"""
CHANGING = (
    *(
        "mkdir",
        "mkdirat",
        "rename",
        "renameat",
        "renameat2",
        "unlink",
        "unlinkat",
        "rmdir",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
    ),
    *("flock", "fsync", "write", "chmod", "fchmod", "fchmodat", "utimensat"),
)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
)
@pytest.mark.parametrize("mode", ["exchange", "renames"])
def test_a_kill_by_the_tracer_at_every_changing_system_call(tmp_path, mode):
    """The same as above, seen from outside: no call that Python hides is left out."""
    target, seen = tmp_path / "x", []
    write(target, "old")
    files = lay_out(tmp_path)
    for name in CHANGING:
        for call in range(1, 1000):  # the tracer counts each kind of call by itself
            trace = [
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                f"trace=?{name}",
                "-e",
                f"inject=?{name}:signal=KILL:when={call}",
            ]
            done = subprocess.run(
                [*trace, sys.executable, "-B", "-c", SCRIPT, str(target), mode],
                capture_output=True,
                text=True,
                timeout=120,
            )
            found = read(target)
            intact(tmp_path, files)
            write(target, "old")
            if done.returncode == 0:
                assert found == "new"
                break
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
            seen.append(found)
    assert len(seen) > 20 and set(seen) == {"old", "new"}
