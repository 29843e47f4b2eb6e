"""A damaged index is refused before it can answer: every byte class of every file."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.search_fakes import DIM, FakeEncoder

from taskdistill.errors import BadInput
from taskdistill.io.arrays import array_of, map_file
from taskdistill.io.sealed import seal_json
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.storage import manifest as manifests
from taskdistill.types import MANIFEST


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "i"
    documents = [Document(f"d{i}", f"word{i % 7} common text {i}", {"i": i}) for i in range(50)]
    index, _ = build_index(FakeEncoder(), documents, path, batch=30)
    index.delete(["d3"])
    index.build_bm25()
    return path


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != "lock")


def use(path):
    encoder = FakeEncoder()
    index = Index.open(path)
    return index.search(["word3 common"], 5, encoder=encoder, hybrid=True), index.search(
        ["word3"], 5, encoder=encoder, filter="i>=10"
    )


def test_the_whole_index_answers_and_every_kind_of_file_is_there(intact):
    assert use(intact)[0][0]
    kinds = {p.name for p in files(intact)}
    assert {
        "codes.npy",
        "vectors.npy",
        "places.npy",
        "keys.npy",
        "texts.arrow",
        "documents.arrow",
        "entries.arrow",
        MANIFEST,
    } <= kinds
    assert any(p.parent.name == "deletes" for p in files(intact))
    assert any("bm25" in p.parts for p in files(intact))


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_byte_in_any_file_is_refused(intact, tmp_path, where):
    for file in files(intact):
        copy = tmp_path / "i"
        shutil.copytree(intact, copy)
        damaged = copy / file.relative_to(intact)
        content = bytearray(damaged.read_bytes())
        content[int(where * (len(content) - 1))] ^= 0x41
        damaged.write_bytes(content)
        with pytest.raises(BadInput, match=r"damaged|cannot be read|holds no JSON"):
            use(copy)
        shutil.rmtree(copy)


def test_any_flipped_bit_of_the_manifest_is_refused_or_harmless(intact, tmp_path):
    copy = tmp_path / "i"
    shutil.copytree(intact, copy)
    content = (copy / MANIFEST).read_bytes()
    rng = np.random.default_rng(0)
    expected = json.loads(content)
    for at in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        (copy / MANIFEST).write_bytes(changed)
        try:
            manifests.load_manifest(copy)
        except BadInput:
            continue
        assert json.loads((copy / MANIFEST).read_bytes()) == expected


def test_a_truncated_or_missing_file_is_refused(intact, tmp_path):
    for file in files(intact):
        copy = tmp_path / "i"
        shutil.copytree(intact, copy)
        damaged = copy / file.relative_to(intact)
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
        with pytest.raises(BadInput):
            use(copy)
        if damaged.name != MANIFEST:
            damaged.unlink()
            with pytest.raises(BadInput, match="missing"):
                use(copy)
        shutil.rmtree(copy)


def test_arrays_of_other_lengths_are_refused_even_with_good_hashes(intact, tmp_path):
    for name, change in (
        ("codes.npy", np.zeros((29, DIM // 8), np.uint8)),
        ("vectors.npy", np.zeros((31, DIM), np.int8)),
    ):
        copy = tmp_path / "i"
        shutil.copytree(intact, copy)
        file = next(copy.glob(f"segments/00000000/{name}"))
        np.save(file, change)
        manifest = manifests.load_manifest(copy)
        key = file.relative_to(copy).as_posix()
        from taskdistill.io.arrays import entry

        manifests.write_manifest(copy, manifest.next(files={**manifest.files, key: entry(file)}))
        with pytest.raises(BadInput, match=r"of shape \(\d+, \d+\) instead of"):
            Index.open(copy)
        shutil.rmtree(copy)


def test_a_manifest_that_names_a_file_outside_is_refused(intact, tmp_path):
    copy = tmp_path / "i"
    shutil.copytree(intact, copy)
    manifest = manifests.load_manifest(copy)
    manifests.write_manifest(copy, manifest)
    value = json.loads((copy / MANIFEST).read_text())
    value["files"]["segments/../../x.npy"] = {"bytes": 1, "sha256": ""}
    del value["sha256"]
    (copy / MANIFEST).write_text(seal_json(value))
    with pytest.raises(BadInput, match=r"names the file"):
        Index.open(copy)


def test_a_newer_format_and_another_kind_are_refused(intact, tmp_path):
    copy = tmp_path / "i"
    shutil.copytree(intact, copy)
    value = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**value, "format_version": 99}))
    with pytest.raises(BadInput, match="format version 99"):
        Index.open(copy)
    del value["sha256"]
    (copy / MANIFEST).write_text(seal_json({**value, "kind": "model"}))
    with pytest.raises(BadInput, match="'model' folder"):
        Index.open(copy)
    with pytest.raises(BadInput, match="not a folder"):
        Index.open(tmp_path / "nothing")


def test_a_header_that_claims_too_much_is_refused_before_anything_is_allocated(tmp_path):
    file = tmp_path / "huge.npy"
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8)}
        )
    mapped = map_file(file, {"bytes": file.stat().st_size, "sha256": ""}, full=False)
    with pytest.raises(BadInput, match="bytes follow its header"):
        array_of(file, mapped, np.uint8, (10**12, 8))
    file.write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 5000)
    mapped = map_file(file, {"bytes": file.stat().st_size, "sha256": ""}, full=False)
    with pytest.raises(BadInput, match="is no array"):
        array_of(file, mapped, np.uint8, (1, 8))


def test_sizes_only_still_finds_a_truncated_file(intact, tmp_path):
    copy = tmp_path / "i"
    shutil.copytree(intact, copy)
    file = next(copy.glob("segments/*/codes.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Index.open(copy, verify="sizes").documents == 49
    file.write_bytes(content[:-1])
    with pytest.raises(BadInput, match="bytes instead of"):
        Index.open(copy, verify="sizes")
