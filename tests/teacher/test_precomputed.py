"""Vectors already on disk: matched by text, refused when texts and vectors do not fit."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.teacher_fakes import stored, vector

from taskdistill.errors import BadInput
from taskdistill.recipe.teacher import InstructionConfig, TeacherConfig
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.precomputed import PrecomputedTeacher
from taskdistill.teacher.protocol import view_text
from taskdistill.teacher.store import open_views

TEXTS = ["one", "two\u2028still two", "  three ", "Vier: ü"]


def write(folder, texts=TEXTS, vectors=None, form="jsonl"):
    folder.mkdir(exist_ok=True)
    lines = "".join(
        json.dumps({"text": text, "more": 1}, ensure_ascii=False) + "\n" for text in texts
    )
    if form == "jsonl":
        (folder / "texts.jsonl").write_text(lines, "utf-8")
    elif form == "jsonl.gz":
        (folder / "texts.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif form == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    else:
        (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    np.save(
        folder / "vectors.npy",
        (
            np.stack([vector(text) for text in texts]).astype(np.float32)
            if vectors is None
            else vectors
        ),
    )
    return folder


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "txt"])
def test_texts_find_their_vectors(tmp_path, form):
    teacher = PrecomputedTeacher.load(write(tmp_path / "v", form=form), revision="r")
    asked = [TEXTS[i] for i in (3, 0, 2, 1, 0)]
    assert np.array_equal(teacher.embed(asked).astype(np.float16), stored(asked))
    assert isinstance(teacher.vectors, np.memmap) and teacher.embedding_dim == 8
    assert (teacher.identity.kind, teacher.identity.model, teacher.identity.revision) == (
        "precomputed",
        "v",
        "r",
    )


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 8)]
)
@pytest.mark.parametrize("column", ["vector", "embedding"])
def test_one_parquet_file_with_both_columns(tmp_path, kind, column):
    table = pa.table(
        {"text": TEXTS, column: pa.array([vector(text).tolist() for text in TEXTS], kind)}
    )
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=3)
    teacher = PrecomputedTeacher.load(tmp_path / "all.parquet")
    assert np.array_equal(teacher.embed(TEXTS).astype(np.float16), stored(TEXTS))


def test_other_vectors_have_another_identity(tmp_path):
    first = PrecomputedTeacher.load(write(tmp_path / "v")).identity
    assert PrecomputedTeacher.load(write(tmp_path / "v")).identity == first
    rows = np.stack([vector(text) for text in TEXTS]).astype(np.float32)
    assert PrecomputedTeacher.load(write(tmp_path / "v", vectors=-rows)).identity != first
    assert (
        PrecomputedTeacher.load(write(tmp_path / "v", texts=TEXTS[::-1], vectors=rows)).identity
        != first
    )


def test_missing_texts_are_counted_with_examples(tmp_path):
    teacher = PrecomputedTeacher.load(write(tmp_path / "v"))
    with pytest.raises(BadInput, match=r"3 of 4 texts have no vector in .*, such as 'x', 'y', 'z'"):
        teacher.embed(["x", "one", "y", "z"])


def test_a_fill_counts_all_that_is_missing_before_it_starts(tmp_path):
    teacher = PrecomputedTeacher.load(write(tmp_path / "v"))
    store = open_views(tmp_path / "root", teacher, None)["document"]
    with pytest.raises(BadInput, match="700 of 701 texts have no vector"):
        fill_store(store, ["one", *(f"unknown {i}" for i in range(700))], teacher)
    assert not store.folder.exists()
    assert fill_store(store, TEXTS, teacher).embedded == 4 and np.array_equal(
        store.get(TEXTS), stored(TEXTS)
    )


def test_the_texts_on_disk_carry_the_instruction(tmp_path):
    told = InstructionConfig()
    teacher = PrecomputedTeacher.load(
        write(tmp_path / "v", texts=["one", view_text(told, "query", "one")])
    )
    views = open_views(tmp_path / "root", teacher, told)
    fill_store(views["query"], ["one"], teacher)
    assert np.array_equal(views["query"].get(["one"]), stored([view_text(told, "query", "one")]))
    with pytest.raises(BadInput, match="1 of 1 texts have no vector"):
        fill_store(views["topic"], ["one"], teacher)


def test_rows_that_are_not_finite_end_in_quarantine(tmp_path):
    rows = np.stack([vector(text) for text in TEXTS]).astype(np.float16)
    rows[1, 2] = np.nan
    teacher = PrecomputedTeacher.load(write(tmp_path / "v", vectors=rows))
    store = open_views(tmp_path / "root", teacher, None)["document"]
    assert len(fill_store(store, TEXTS, teacher).quarantined) == 1 and store.missing(TEXTS) == [
        TEXTS[1]
    ]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 8), np.float32), "4 texts and 3 vectors"),
        (np.ones(4, np.float32), r"shape \(4,\)"),
        (np.ones((4, 8), np.int64), "type int64"),
        (np.ones((4, 0), np.float32), r"shape \(4, 0\)"),
        (np.array([["a"]], object), "cannot be read"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, vectors, message):
    with pytest.raises(BadInput, match=message):
        PrecomputedTeacher.load(write(tmp_path / "v", vectors=vectors))


def test_broken_files_are_one_message_each(tmp_path):
    with pytest.raises(BadInput, match=r"holds vectors.npy .* and one of texts.jsonl"):
        PrecomputedTeacher.load(tmp_path / "nowhere")
    folder = write(tmp_path / "v")
    (folder / "texts.txt").write_text("a second list of texts\n")
    with pytest.raises(BadInput, match="one of texts"):
        PrecomputedTeacher.load(folder)
    (folder / "texts.txt").unlink()
    (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-7])
    with pytest.raises(BadInput, match=r"vectors.npy cannot be read"):
        PrecomputedTeacher.load(folder)
    for line, message in [
        ('{"txt": "x"}', "texts.jsonl:1: no 'text'"),
        ("[1", "texts.jsonl:1"),
        ('{"text": 5}', "'text' is no text"),
    ]:
        write(folder)
        (folder / "texts.jsonl").write_text(line)
        with pytest.raises(BadInput, match=message):
            PrecomputedTeacher.load(folder)
    (folder / "texts.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(BadInput, match=r"texts\.jsonl:1: invalid UTF-8"):
        PrecomputedTeacher.load(folder)


def test_broken_parquet_is_one_message_each(tmp_path):
    path = tmp_path / "all.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match="cannot be read as Parquet"):
        PrecomputedTeacher.load(path)
    for columns, message in [
        ({"txt": TEXTS}, "no column 'text'; its columns are txt"),
        ({"text": TEXTS}, "no column 'vector'"),
        ({"text": TEXTS, "vector": [[1.0], [2.0, 3.0], [1.0], [1.0]]}, "different sizes"),
        ({"text": TEXTS, "vector": [[1.0], None, [1.0], [1.0]]}, "missing values"),
        ({"text": TEXTS, "vector": [1.0, 2.0, 3.0, 4.0]}, "no lists of numbers"),
        (
            {"text": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))},
            "no vectors",
        ),
    ]:
        pq.write_table(pa.table(columns), path)
        with pytest.raises(BadInput, match=message):
            PrecomputedTeacher.load(path)


def test_the_recipe_makes_it(tmp_path):
    write(tmp_path / "v")
    settings = TeacherConfig(kind="precomputed", model=str(tmp_path / "v"), instructions=None)
    assert make_teacher(settings).embedding_dim == 8
    with pytest.raises(BadInput, match=r"teacher.embedding_dim is 9, but .* has 8"):
        make_teacher(settings.model_copy(update={"embedding_dim": 9}))
    with pytest.raises(BadInput, match="an address goes with kind http"):
        make_teacher(settings.model_copy(update={"url": "http://x"}))
