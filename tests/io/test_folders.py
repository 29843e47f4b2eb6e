"""Folders and files are old or new, never half; and a reader says what is wrong with one."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from taskdistill.errors import BadInput, did_you_mean, require_extra
from taskdistill.io import folders
from taskdistill.io.atomic import remove_stale, remove_stale_within, sha256_file, write_file
from taskdistill.io.folders import check_folder, file_table, read_manifest, seal, write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.types import MANIFEST
from taskdistill.versions import versions


def make(path: Path, **options: object) -> Path:
    with write_folder(path, "thing", **options) as folder:
        (folder / "a.txt").write_text("one")
        (folder / "b").mkdir()
        (folder / "b" / "c.bin").write_bytes(b"\0\1")
    return path


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    folder = make(tmp_path / "deep" / "x", meta={"name": "n"}, inputs={"data": "d"})
    manifest = read_manifest(folder, "thing")
    assert (
        manifest["kind"] == "thing" and manifest["format_version"] == 2 and manifest["name"] == "n"
    )
    assert manifest["inputs"] == {"data": "d"} and manifest["created_by"] == versions()
    assert manifest["files"] == {
        "a.txt": {
            "bytes": 3,
            "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        },
        "b/c.bin": {"bytes": 2, "sha256": sha256_file(folder / "b" / "c.bin")},
    }
    assert check_folder(folder, manifest) == [] and list(tmp_path.rglob(".*")) == []


def test_nothing_appears_if_filling_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "x", "thing") as folder:
        (folder / "a.txt").write_text("one")
        1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_if_asked_and_stays_if_that_fails(tmp_path):
    folder = make(tmp_path / "x")
    with pytest.raises(BadInput, match="already exists; give another folder or remove it first"):
        make(folder)
    before = read_manifest(folder)
    with (
        pytest.raises(TypeError),
        write_folder(folder, "thing", replace=True, meta={"bad": object()}) as beside,
    ):
        (beside / "new.txt").write_text("two")
    assert read_manifest(folder) == before
    with write_folder(folder, "thing", replace=True) as beside:
        (beside / "new.txt").write_text("two")
    assert [path.name for path in sorted(folder.iterdir())] == ["new.txt", MANIFEST]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_everything_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: order.append(
            f"sync {Path(f'/proc/self/fd/{handle}').readlink().name.split('.')[0]}"
        ),
    )
    rename, replace = Path.rename, Path.replace
    monkeypatch.setattr(
        Path,
        "rename",
        lambda path, to: (order.append(f"rename {Path(to).name}"), rename(path, to))[1],
    )
    monkeypatch.setattr(
        Path,
        "replace",
        lambda path, to: (order.append(f"replace {Path(to).name}"), replace(path, to))[1],
    )
    make(tmp_path / "x")
    assert (
        order[:3] == ["sync a", "sync c", "sync b"]
        and order[5] == f"replace {MANIFEST}"
        and order[-2] == "rename x"
    )
    assert order[-1] == f"sync {tmp_path.name.split('.')[0]}" and len(order) == 9


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "a.json", "old")
    write_file(tmp_path / "b.bin", b"\0")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old" and sorted(
        path.name for path in tmp_path.iterdir()
    ) == ["a.json", "b.bin"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no JSON object"),
        ("\xff\xfe", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"kind": "thing"}', "format version None"),
        (
            '{"kind": "thing", "format_version": 3}',
            "format version 3, this version reads up to 2; upgrade taskdistill",
        ),
        ('{"kind": "thing", "format_version": 2}', "is damaged: it does not end with its SHA-256"),
        (
            '{"kind": "thing", "format_version": 1, "sha256": "0"}',
            "is damaged: it does not end with its SHA-256",
        ),
        ('{"kind": "thing", "format_version": 1}', "files is no table of names"),
        (
            '{"kind": "thing", "format_version": 1, "files": {}, "inputs": []}',
            "inputs is no table of names",
        ),
        (
            '{"kind": "other", "format_version": 1}',
            "is a 'other' folder, but a 'thing' folder is needed here",
        ),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, content, match):
    folder = make(tmp_path / "x")
    (folder / MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=match):
        read_manifest(folder, "thing")


def test_folders_without_manifest(tmp_path):
    with pytest.raises(BadInput, match=r"is not a folder; give the path of a thing folder"):
        read_manifest(tmp_path / "none", "thing")
    with pytest.raises(
        BadInput,
        match=(
            r"has no taskdistill.json: it is not a taskdistill folder, or it was only half copied"
        ),
    ):
        read_manifest(tmp_path)


def test_every_fault_is_named(tmp_path):
    folder = make(tmp_path / "x")
    manifest = read_manifest(folder)
    (folder / "a.txt").write_text("two")
    (folder / "b" / "c.bin").write_bytes(b"\0")
    (folder / "extra.txt").write_text("not listed, so no fault")
    assert check_folder(folder, manifest) == [
        "a.txt: content differs from its SHA-256",
        "b/c.bin: 1 bytes instead of 2",
    ]
    (folder / "a.txt").unlink()
    assert check_folder(folder, manifest)[0] == "a.txt: missing"
    entry = {"bytes": 1, "sha256": "0"}
    for name in ("../x", "/etc/passwd", "b/../../y"):
        assert check_folder(folder, {"files": {name: entry}}) == [
            f"{name}: the manifest names a path outside the folder"
        ]
    assert check_folder(folder, {"files": {"a": {"bytes": 1}}}) == [
        "a: the manifest does not say its size and SHA-256"
    ]
    assert check_folder(folder, {"files": 3}) == [f"{MANIFEST}: its table of files is no object"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    others = [
        ".x",
        ".x.0123abcd",
        ".y.taskdistill-0123abcd",
        ".x.taskdistill-0123abc",
        ".X.taskdistill-0123abcd",
        ".git",
        "x.taskdistill-0123abcd",
    ]
    stale = [".a.json.taskdistill-deadbeef", ".x.taskdistill-0123abcd"]
    for name in (*others, stale[1], "x"):
        (tmp_path / name).mkdir()
    (tmp_path / stale[0]).write_text("")
    assert remove_stale(tmp_path / "x", tmp_path / "a.json", tmp_path / "none" / "x") == stale
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "x"])
    assert remove_stale_within(tmp_path) == [".X.taskdistill-0123abcd", ".y.taskdistill-0123abcd"]
    assert remove_stale_within(tmp_path / "none") == []


def test_json_holds_no_nan_and_text_as_it_is():
    assert dump_json({"a": "é", "b": [1]}) == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            dump_json({"a": value})


def test_a_manifest_lists_every_file_but_itself(tmp_path):
    (tmp_path / "b").write_text("1")
    (tmp_path / "a").write_text("2")
    seal(tmp_path, "thing")
    assert list(file_table(tmp_path)) == ["a", "b"]
    assert json.loads((tmp_path / MANIFEST).read_text())["files"].keys() == {"a", "b"}
    assert folders.FORMAT_VERSION == 2


@pytest.mark.parametrize("kind", ["device", "pipe", "socket"])
def test_what_is_no_plain_file_is_never_written_over(tmp_path, kind):
    path = tmp_path / "here"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only an administrator makes devices")
    before = path.lstat()
    with pytest.raises(BadInput, match="here is no plain file"):
        write_file(path, "text")
    assert path.lstat() == before and sorted(each.name for each in tmp_path.iterdir()) == ["here"]


def test_names_are_suggested_and_packages_asked_for():
    assert did_you_mean("retreival", ["clustering", "retrieval"]) == "; did you mean 'retrieval'?"
    assert did_you_mean("xyz", ["clustering", "retrieval"]) == "; known: clustering, retrieval"
    require_extra("json", "x", "reading")
    with pytest.raises(
        BadInput,
        match=(
            r"reading needs the package 'no_such', which is not installed; run: pip install"
            r" 'taskdistill\[extra\]'"
        ),
    ):
        require_extra("no_such", "extra", "reading")
