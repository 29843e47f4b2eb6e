"""An index folder holds what the index wrote and what somebody else put there: only the former is
ever changed or removed.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.search_fakes import DIM, FakeEncoder
from helpers.trees import same, tree

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import SearchDefaults
from taskdistill.search.storage.commit import BM25_FILES
from taskdistill.search.storage.folder import JOURNAL, LOCK
from taskdistill.types import MANIFEST

TEXTS = [f"word{i} in text {i}" for i in range(12)]


def documents(start=0, stop=12):
    return [Document(f"d{i}", TEXTS[i], {"i": i}) for i in range(start, stop)]


def lay(folder, *, parts=("segments", "deletes", "bm25")):
    """Put a person's files of many kinds into a folder and the folders of an index in it; returns
    what was laid.
    """
    outside = folder.parent / "outside"
    (outside / "inner").mkdir(parents=True, exist_ok=True)
    (outside / "thesis.txt").write_text("years of work")
    before = set(folder.rglob("*")) if folder.exists() else set()
    for place in (folder, *(folder / part for part in parts)):
        place.mkdir(parents=True, exist_ok=True)
        for name in (
            "notes.txt",
            ".hidden",
            ".bashrc.20240115",
            ".00000003.keep",
            "backup.npy",
            "20240115.npy",
            "README.md",
        ):
            (place / name).write_text(f"mine: {name}")
        for name in ("20240115", ".20240115", "99999999", "day1", ".config.20231201", "empty"):
            (place / name).mkdir()
        for name in ("20240115", "99999999", "day1"):
            (place / name / "take1.mp4").write_text("video")
            (place / name / "codes.npy").write_text("somebody's codes")
        (place / "99999999-00000001.npy").write_text("mine")
        (place / "link").symlink_to(outside / "thesis.txt")
        (place / "folder-link").symlink_to(outside)
        (place / "dangling").symlink_to(outside / "nothing")
        (place / "read-only").write_text("mine")
        (place / "read-only").chmod(0o400)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path not in before}


CHANGES = {
    "add": lambda index: index.add(documents(4, 8), FakeEncoder()),
    "replace": lambda index: index.add([Document("d1", "another text")], FakeEncoder()),
    "delete": lambda index: index.delete(["d0", "d3"]),
    "compact": lambda index: index.compact(),
    "bm25": lambda index: index.build_bm25(),
    "bm25 again": lambda index: index.build_bm25(),
    "defaults": lambda index: index.set_defaults(SearchDefaults(oversample=3)),
    "shrink": lambda index: index.shrink(16, "int8"),
    "delete again": lambda index: index.delete(["d5"]),
    "compact again": lambda index: index.compact(),
}


def test_every_change_leaves_what_others_put_into_the_folder(tmp_path):
    index = build_index(FakeEncoder(), documents(0, 4), tmp_path / "i")[0]
    names = lay(tmp_path / "i")
    before = tree(tmp_path)
    laid = {name for name in before if name.startswith("outside")} | {f"i/{name}" for name in names}
    for name, change in CHANGES.items():
        change(index)
        assert same(before, tree(tmp_path), laid), name
    listed = {f"i/{name}" for name in index.snapshot.manifest.files}
    files = {name for name, (_, times, _) in tree(tmp_path).items() if times is not None}
    assert files == listed | {f"i/{MANIFEST}"} | {
        name for name in laid if before[name][1] is not None
    }
    assert [
        hits[0].id
        for hits in Index.open(tmp_path / "i").search(
            ["word6", "another text"], 1, encoder=FakeEncoder()
        )
    ] == ["d6", "d1"]


def test_names_that_the_index_would_take_next_are_passed_over_where_somebody_has_them(tmp_path):
    index = build_index(FakeEncoder(), documents(0, 4), tmp_path / "i")[0]
    generation = index.snapshot.manifest.generation
    laid = [f"segments/{number:08}" for number in (1, 2, 4)] + [
        f"bm25/{generation + number:08}" for number in range(1, 6)
    ]
    for name in laid:
        (tmp_path / "i" / name).mkdir(parents=True)
        (tmp_path / "i" / name / "mine.txt").write_text(name)
    (tmp_path / "i" / "deletes").mkdir()
    lists = [f"deletes/00000000-{generation + number:08}.npy" for number in range(1, 8)]
    for name in lists:
        (tmp_path / "i" / name).write_text(name)
    for change in CHANGES.values():
        change(index)
    assert all((tmp_path / "i" / name / "mine.txt").read_text() == name for name in laid)
    assert all((tmp_path / "i" / name).read_text() == name for name in lists)
    assert sorted(
        hit.id for hit in Index.open(tmp_path / "i").search(["word1"], 99, encoder=FakeEncoder())[0]
    ) == [
        "d1",
        "d2",
        "d4",
        "d6",
        "d7",
    ]


@pytest.mark.parametrize(
    "parts", [(), ("segments",), ("deletes",), ("bm25",), ("segments", "deletes", "bm25")], ids=str
)
def test_a_folder_with_somebodys_files_is_refused_before_anything_is_touched(tmp_path, parts):
    lay(tmp_path / "proj", parts=parts)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="is not empty"):
        build_index(FakeEncoder(), documents(), tmp_path / "proj")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        LOCK,
        JOURNAL,
        "segments",
        "deletes",
        "bm25",
        ".taskdistill.json.20240115",
        ".taskdistill.json.0a1b2c3d",
        "model",
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_single_file_is_enough(tmp_path, name, kind):
    (tmp_path / "proj").mkdir()
    path = tmp_path / "proj" / name
    (
        path.write_text("mine")
        if kind == "file"
        else path.mkdir()
        if kind == "folder"
        else path.symlink_to(tmp_path)
    )
    before = tree(tmp_path) if kind != "link" else path.readlink()
    with pytest.raises(BadInput):
        build_index(FakeEncoder(), documents(), tmp_path / "proj")
    assert (tree(tmp_path) if kind != "link" else path.readlink()) == before
    assert [each.name for each in (tmp_path / "proj").iterdir()] == [name]


def test_a_file_and_a_folder_of_another_kind_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST).write_text(
        '{"kind": "model", "format_version": 1, "files": {}}'
    )
    before = tree(tmp_path)
    for name in ("file", "model", "file/below"):
        with pytest.raises((BadInput, WorkFailed)):
            build_index(FakeEncoder(), documents(), tmp_path / name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "part",
    [
        "segments",
        "deletes",
        "bm25",
        MANIFEST,
        LOCK,
        JOURNAL,
        "segments/00000000",
        "segments/00000000/codes.npy",
    ],
)
def test_a_part_that_is_a_link_is_refused_and_what_it_points_to_is_left(tmp_path, change, part):
    index = build_index(FakeEncoder(), documents(0, 4), tmp_path / "i")[0]
    index.delete(["d2"])
    index.build_bm25()
    path, elsewhere = tmp_path / "i" / part, tmp_path / "elsewhere"
    if path.is_dir() or path.name in ("deletes", "bm25"):
        path.exists() and shutil.move(path, elsewhere)
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / ".ssh").mkdir()
        (elsewhere / ".ssh" / "key").write_text("mine")
        (elsewhere / "00000007").mkdir()
    else:
        shutil.move(path, elsewhere) if path.exists() else elsewhere.write_bytes(b"")
    path.symlink_to(elsewhere)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match=r"link|no lock of a writer"):
        CHANGES[change](index)
    assert tree(tmp_path) == before
    if part != LOCK:
        assert path.samefile(elsewhere)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"mine",
        b"\xff",
        b'{"generation": 1, "creates": ["segments/00000000"], "before": {}, "sha256": ""}',
    ],
)
def test_a_journal_that_is_not_ours_is_left(tmp_path, content):
    index = build_index(FakeEncoder(), documents(0, 4), tmp_path / "i")[0]
    (tmp_path / "i" / JOURNAL).write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="is no journal of this index"):
        index.delete(["d1"])
    assert tree(tmp_path) == before
    assert Index.open(tmp_path / "i").documents == 4


class Failing(FakeEncoder):
    """Fails at a text."""

    def encode(self, texts, **options):
        if any("word9" in text for text in texts):
            raise KeyboardInterrupt
        return super().encode(texts, **options)


@pytest.mark.parametrize("where", ["new", "new/below/it", "empty"])
def test_a_first_build_that_fails_leaves_nothing_and_a_later_one_what_was_acknowledged(
    tmp_path, where
):
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build_index(Failing(), documents(9, 12), tmp_path / where)
    with pytest.raises(BadInput, match="vectors are zero"):
        build_index(Zero(), documents(), tmp_path / where)
    assert tree(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        build_index(Failing(), documents(), tmp_path / where, batch=4)
    assert Index.open(tmp_path / where).documents == 8


class Zero(FakeEncoder):
    def encode(self, texts, **options):
        return np.zeros((len(texts), DIM), np.float32)


def test_the_word_index_is_of_known_files_only(tmp_path):
    index = build_index(FakeEncoder(), documents(), tmp_path / "i")[0]
    index.build_bm25()
    folder = next((tmp_path / "i" / "bm25").iterdir())
    assert {path.name for path in folder.iterdir()} <= BM25_FILES
