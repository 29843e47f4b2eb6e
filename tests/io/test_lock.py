"""The writer's lock: one holder, released by death, and never written through or over somebody's
own file.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

import pytest

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.lock import writer_lock

HOST = socket.gethostname()


def test_it_holds_process_and_host_and_leaves_nothing(tmp_path):
    with writer_lock(tmp_path / "lock") as notes:
        assert notes == []
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {HOST}"
        assert [each.name for each in tmp_path.iterdir()] == ["lock"]
        with (
            pytest.raises(WorkFailed, match=f"is held by process {os.getpid()} on host {HOST}"),
            writer_lock(tmp_path / "lock"),
        ):
            pass
    assert not any(tmp_path.iterdir())
    with pytest.raises(KeyError), writer_lock(tmp_path / "lock"):
        raise KeyError
    assert not any(tmp_path.iterdir())


def test_a_dead_writers_lock_is_taken_over_and_anothers_host_is_respected(tmp_path):
    (tmp_path / "lock").write_text(f"7 {HOST}")
    with writer_lock(tmp_path / "lock") as notes:
        assert notes == [
            f"took over the lock of process 7 on host {HOST}, which ended without removing it"
        ]
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {HOST}"
    (tmp_path / "lock").write_text("7 elsewhere")
    with (
        pytest.raises(WorkFailed, match="left by process 7 on host elsewhere"),
        writer_lock(tmp_path / "lock"),
    ):
        pass
    assert (tmp_path / "lock").read_text() == "7 elsewhere"


def somebodys(path, kind):
    other = path.with_name("other")
    match kind:
        case "link":
            other.write_text("thesis")
            path.symlink_to(other)
        case "link to a lock":
            other.write_text(f"7 {HOST}")
            path.symlink_to(other)
        case "link to nothing":
            path.symlink_to(other)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            made = socket.socket(socket.AF_UNIX)
            made.bind(str(path))
            made.close()
        case "empty":
            path.touch()
        case "bytes":
            path.write_bytes(b"\xff\xfe\x00")
        case "long":
            path.write_bytes(b"7 " + b"x" * 10_000)
        case _:
            path.write_text(kind)


def seen(folder):
    found = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        link = path.readlink() if path.is_symlink() else None
        found[path.name] = (
            stat.S_IFMT(status.st_mode),
            status.st_mtime_ns,
            link,
            path.read_bytes() if stat.S_ISREG(status.st_mode) else None,
        )
    return found


@pytest.mark.parametrize(
    "kind",
    [
        "link",
        "link to a lock",
        "link to nothing",
        "folder",
        "pipe",
        "socket",
        "empty",
        "bytes",
        "long",
        "my notes",
        "7",
        "7 two words",
        "x host",
        "٣ host",
    ],
)
def test_somebodys_own_file_is_refused_and_left_as_it_is(tmp_path, kind):
    somebodys(tmp_path / "lock", kind)
    before = seen(tmp_path)
    with pytest.raises(BadInput, match="is no lock of a writer"), writer_lock(tmp_path / "lock"):
        pass
    assert seen(tmp_path) == before


def test_what_is_put_in_its_place_meanwhile_stays(tmp_path):
    with writer_lock(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("mine")
    assert (tmp_path / "lock").read_text() == "mine"


@pytest.mark.parametrize("unnamed", [True, False], ids=["made before it is named", "named at once"])
def test_a_kill_at_any_call_leaves_a_lock_that_the_next_writer_takes(
    tmp_path, monkeypatch, unnamed
):
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    for left in (None, f"7 {HOST}"):
        for point in range(1, 60):
            path = tmp_path / f"{left}-{point}"
            if left:
                path.write_text(left)
            pid = os.fork()
            if pid == 0:
                die_at(point)
                with writer_lock(path):
                    pass
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if unnamed:
                assert not path.exists() or path.read_text() in (left, f"{pid} {HOST}")
            elif path.exists() and not path.read_bytes():
                # the one moment that is left where a file cannot be made before it is named
                path.unlink()
            with writer_lock(path):
                assert path.read_text() == f"{os.getpid()} {HOST}"
            assert not path.exists()
            if code == 0:
                break
        assert code == 0 and point > 4


def die_at(point):
    left = point

    def dying(call):
        def wrapped(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return call(*arguments, **options)

        return wrapped

    for module, names in (
        (os, ("open", "link", "pwrite", "pread", "unlink", "close", "fstat", "lstat")),
        (fcntl, ("flock",)),
    ):
        for name in names:
            setattr(module, name, dying(getattr(module, name)))
