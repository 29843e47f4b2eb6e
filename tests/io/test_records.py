"""One file means the same to every command: the same rows, or the same refusal."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import taskdistill
from taskdistill.data.sources import load_source
from taskdistill.encode.texts import EncodeStats, TextReader
from taskdistill.errors import BadInput, RowError
from taskdistill.io import lines, records
from taskdistill.io.beir import rows as evaluation_rows
from taskdistill.io.records import Records, TextSource, read_records
from taskdistill.recipe.data import SourceConfig
from taskdistill.search.corpus import Corpus


def by_train(path: Path) -> tuple[int, dict[str, int], list[str]]:
    source = SourceConfig(path=path.name, kind="texts")
    dataset = load_source(path.parent, "s", source, max_bad=1.0, seed=0)
    return (
        dataset.counts.read,
        dict(dataset.counts.rejected),
        [row.text for row in dataset.rows],
    )


def by_encode(path: Path) -> tuple[int, dict[str, int], list[str]]:
    stats, reader = EncodeStats(), TextReader(TextSource(str(path)))
    texts = [text for _, text in reader.take(stats)]
    assert stats.read == len(texts) + stats.rejected
    return stats.read, {}, texts


def by_index(path: Path) -> tuple[int, dict[str, int], list[str]]:
    corpus = Corpus(path, text_field="text")
    texts = [document.text for document in corpus]
    return corpus.stats.read, dict(corpus.stats.rejected), texts


def by_evaluate(path: Path) -> tuple[int, dict[str, int], list[str]]:
    texts = [row["text"] for row in evaluation_rows(path, ("text",), [])]
    return len(texts), {}, texts


READERS = [by_train, by_encode, by_index, by_evaluate]


def jsonl(*rows: object) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def parquet(table: pa.Table, **options: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def arrow(table: pa.Table, new: Callable = pa.ipc.new_file) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


TWO = pa.table({"text": ["one", "two"]})
INVALID_TEXT = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\0\0\0\0\3\0\0\0\6\0\0\0"), pa.py_buffer(b"on\xfftwo")
)

GOOD: list[tuple[str, bytes, list[str]]] = [
    ("a.txt", b"one\ntwo\n", ["one", "two"]),
    ("a.txt", b"one\r\ntwo", ["one", "two"]),
    ("a.txt", b"\xef\xbb\xbfone\ntwo", ["one", "two"]),
    ("a.txt", "one\u2028x\ntwo\u0085y\x0bz\n".encode(), ["one\u2028x", "two\u0085y\x0bz"]),
    ("a.txt.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"), ["one", "two"]),
    ("A.TXT", b"one\ntwo", ["one", "two"]),
    ("a.jsonl", jsonl({"text": "one"}, b"", b" \t\r", {"text": "two"}), ["one", "two"]),
    ("a.ndjson", jsonl({"text": "one"}, {"text": "two"}), ["one", "two"]),
    ("a.jsonl", b"\xef\xbb\xbf" + jsonl({"text": "one"}, {"text": "two"}), ["one", "two"]),
    ("a.jsonl", b'{"text": "one"}\r\n{"text": "two"}\r\n', ["one", "two"]),
    ("a.jsonl", '{"text": "one\u2028x"}'.encode(), ["one\u2028x"]),
    ("a.jsonl", jsonl({"x": [1, {"y": None}], "text": "one"}), ["one"]),
    ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', ["\U0001f600"]),
    ("a.jsonl.gz", gzip.compress(jsonl({"text": "one"}, {"text": "two"})), ["one", "two"]),
    ("a.csv", b"text\none\ntwo\n", ["one", "two"]),
    ("a.csv", b"id,text\r\n1,one\r\n2,two", ["one", "two"]),
    ("a.csv", b'text,id\n"one, ""quoted""\nand on",1\ntwo,2', ['one, "quoted"\nand on', "two"]),
    ("a.csv", b" text ,id\none,1\n\ntwo,2\n", ["one", "two"]),
    ("a.csv", b"text,id,,\none,1,,\ntwo,2,,\n", ["one", "two"]),
    ("a.csv", b'\xef\xbb\xbf"text"\none\n', ["one"]),
    ("a.csv", b"text\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
    ("a.csv.gz", gzip.compress(b"text\none\n"), ["one"]),
    ("a.tsv", b"id\ttext\n1\tone, more\n", ["one, more"]),
    ("a.tsv.gz", gzip.compress(b"id\ttext\n1\tone\n"), ["one"]),
    ("a.parquet", parquet(TWO), ["one", "two"]),
    ("a.parquet", parquet(TWO, compression="zstd", row_group_size=1), ["one", "two"]),
    (
        "a.parquet",
        parquet(pa.table({"text": pa.array(["one", "two"]).dictionary_encode()})),
        ["one", "two"],
    ),
    ("a.parquet", parquet(pa.table({"text": pa.array(["one"], pa.large_string())})), ["one"]),
    (
        "a.parquet",
        parquet(pa.table({"text": ["one"], "list": [[1, 2]], "st": [{"a": 1}]})),
        ["one"],
    ),
    ("a.arrow", arrow(TWO), ["one", "two"]),
    ("a.arrow", arrow(TWO, pa.ipc.new_stream), ["one", "two"]),
    ("a.feather", arrow(TWO), ["one", "two"]),
]

ROWS: list[tuple[str, bytes, list[str], dict[str, int]]] = [
    ("a.txt", b"one\n\n \ntwo", ["one", "two"], {"'text' holds no visible character": 2}),
    ("a.txt", b"on\xffe\ntwo", ["two"], {"invalid UTF-8": 1}),
    ("a.txt", b"a\0b\ntwo", ["two"], {"NUL character in 'text'": 1}),
    ("a.jsonl", jsonl(b"{", {"text": "two"}), ["two"], {"not valid JSON": 1}),
    ("a.jsonl", jsonl(b'["x"]', {"text": "two"}), ["two"], {"not a JSON object": 1}),
    ("a.jsonl", jsonl(b'{"text": "\xe9"}', {"text": "two"}), ["two"], {"invalid UTF-8": 1}),
    (
        "a.jsonl",
        jsonl(b'{"text": "a", "text": "b"}', {"text": "two"}),
        ["two"],
        {"duplicate JSON key": 1},
    ),
    (
        "a.jsonl",
        jsonl(b'{"text": "a", "n": NaN}', b'{"text": "a", "n": -Infinity}', {"text": "two"}),
        ["two"],
        {"not a finite number": 2},
    ),
    ("a.jsonl", jsonl(b"[" * 99_999, {"text": "two"}), ["two"], {"JSON nested too deeply": 1}),
    (
        "a.jsonl",
        jsonl(b'{"n": ' + b"7" * 999 + b"}", {"text": "two"}),
        ["two"],
        {"a number of too many digits": 1},
    ),
    (
        "a.jsonl",
        jsonl({"text": "\ud800"}, {"text": "two"}),
        ["two"],
        {"lone surrogate in 'text'": 1},
    ),
    ("a.jsonl", jsonl({"text": "\0"}, {"text": "two"}), ["two"], {"NUL character in 'text'": 1}),
    (
        "a.jsonl",
        jsonl({"text": "\u200b\ufeff"}, {"text": ""}, {"text": "two"}),
        ["two"],
        {"'text' holds no visible character": 2},
    ),
    ("a.jsonl", jsonl({"text": "two"}, {"txt": "one"}), ["two"], {"no 'text'": 1}),
    ("a.jsonl", jsonl({"text": None}, {"text": "two"}), ["two"], {"no 'text'": 1}),
    (
        "a.jsonl",
        jsonl({"text": 7}, {"text": ["x"]}, {"text": {"x": 1}}, {"text": True}, {"text": "two"}),
        ["two"],
        {"'text' is no text": 4},
    ),
    ("a.csv", b"text,id\none\ntwo,2\n", ["two"], {"wrong number of columns": 1}),
    ("a.csv", b"text,id\na,b,c\ntwo,2\n", ["two"], {"wrong number of columns": 1}),
    ("a.csv", b"text,id\n,\ntwo,2\n", ["two"], {"'text' holds no visible character": 1}),
    ("a.csv", b'text,id\n"a"b,1\ntwo,2\n', ["two"], {"not valid CSV": 1}),
    ("a.csv", b"text,id\n\xe9,1\ntwo,2\n", ["two"], {"invalid UTF-8": 1}),
    ("a.csv", b"text,id\na\0b,1\ntwo,2\n", ["two"], {"NUL character in 'text'": 1}),
    ("a.tsv", b"text\tid\none\ntwo\t2\n", ["two"], {"wrong number of columns": 1}),
    ("a.parquet", parquet(pa.table({"text": ["one", None]})), ["one"], {"no 'text'": 1}),
    (
        "a.parquet",
        parquet(pa.table({"text": [["x"], ["y"]]})),
        [],
        {"'text' is no text": 2},
    ),
    ("a.parquet", parquet(pa.table({"text": [b"x", b"y"]})), [], {"'text' is no text": 2}),
    ("a.parquet", parquet(pa.table({"text": [1.5]})), [], {"'text' is no text": 1}),
    ("a.parquet", parquet(pa.table({"text": INVALID_TEXT})), ["two"], {"invalid UTF-8": 1}),
]

REFUSED: list[tuple[str, bytes, str]] = [
    ("a.txt", b"", "the file is empty"),
    ("a.jsonl", b"", "the file is empty"),
    ("a.csv", b"", "the file is empty"),
    ("a.parquet", b"", "the file is empty"),
    ("a.csv", b"\n\n", "blank lines only"),
    ("a.txt", "one\n".encode("utf-16"), "UTF-16"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16-be").join((b"\xfe\xff", b"")), "UTF-16"),
    ("a.csv", "text\none".encode("utf-16"), "UTF-16"),
    ("a.csv", b"\x00\x00\xfe\xff" + "text\none".encode("utf-32-be"), "UTF-32"),
    ("a.jsonl", gzip.compress(jsonl({"text": "one"})), "a gzip file; let its name end in .gz"),
    ("a.csv", b"PK\x03\x04....", "a zip archive or a spreadsheet"),
    ("a.jsonl", b"\x28\xb5\x2f\xfd....", "a zstd file"),
    ("a.txt", b"BZh91AY", "a bzip2 file"),
    ("a.csv", parquet(TWO), "a Parquet file"),
    ("a.txt", b"one\rtwo\rthree\r", "carriage return alone"),
    ("a.csv", b"text,id\rone,1\rtwo,2\r", "carriage return alone"),
    ("a.jsonl.gz", gzip.compress(jsonl({"text": "one"}))[:-9], "damaged or truncated gzip"),
    ("a.txt.gz", b"one\n", "damaged or truncated gzip"),
    ("a.csv.gz", gzip.compress(b"text\n" + os.urandom(9_000))[:5_000], "damaged or truncated"),
    ("a.jsonl.gz", gzip.compress((b" " * (1 << 20) + b"\n") * 40), "decompression bomb"),
    ("a.txt.gz", gzip.compress(b"x" * (40 << 20)), "decompression bomb"),
    ("a.csv.gz", gzip.compress(b"text\n" + b"x" * (40 << 20)), "decompression bomb"),
    (
        "a.tsv.gz",
        gzip.compress(b"text\tid\n" + (b"x" * (1 << 20) + b"\t1\n") * 40),
        "decompression bomb",
    ),
    (
        "a.parquet",
        parquet(pa.table({"text": ["x" * (40 << 20)]}), compression="zstd"),
        "decompression bomb",
    ),
    ("a.csv", b"text,id,text\na,1,b\n", "names a column twice"),
    ("a.csv", b"te\xffxt,id\na,1\n", "header is invalid UTF-8"),
    ("a.csv", b'text,id\none,1\n"two,2\nthree,3\n', "row is never closed"),
    ("a.csv", b'text,id\n"one,1\ntwo,"2"\nthree,3\n', "row is never closed"),
    ("a.csv", b"text\n" + b"x" * (65 << 20), "split the file into shorter lines"),
    ("a.parquet", b"PAR1 and nothing else", "cannot be read as Parquet"),
    ("a.parquet", parquet(TWO)[:-9], "cannot be read as Parquet"),
    ("a.parquet", jsonl({"text": "one"}), "cannot be read as Parquet"),
    (
        "a.parquet",
        parquet(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])),
        "names a column twice",
    ),
    ("a.arrow", arrow(TWO)[:-40], "cannot be read as Arrow"),
    ("a.arrow", b"ARROW1\0\0nothing", "cannot be read as Arrow"),
    ("a.docx", b"x", "unknown format"),
    ("a", b"one\n", "unknown format"),
    ("a.jsonl.zip", b"one\n", "unknown format"),
    ("a.gz", gzip.compress(b"one\n"), "unknown format"),
]


def names(table: list) -> list[str]:
    return [f"{number}-{row[0]}" for number, row in enumerate(table)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "data", "texts"), GOOD, ids=names(GOOD))
def test_a_good_file_gives_every_command_the_same_texts(tmp_path, reader, name, data, texts):
    (tmp_path / name).write_bytes(data)
    assert reader(tmp_path / name) == (len(texts), {}, texts)


@pytest.mark.parametrize("reader", READERS[:3])
@pytest.mark.parametrize(("name", "data", "texts", "rejected"), ROWS, ids=names(ROWS))
def test_a_bad_row_is_counted_alike_and_its_neighbours_stay(
    tmp_path, reader, name, data, texts, rejected
):
    (tmp_path / name).write_bytes(data)
    if not texts and reader is by_index:
        with pytest.raises(BadInput, match="holds no usable document"):
            reader(tmp_path / name)
        return
    read, reasons, found = reader(tmp_path / name)
    assert (read, found) == (len(texts) + sum(rejected.values()), texts)
    assert reader is by_encode or reasons == rejected


@pytest.mark.parametrize(("name", "data", "texts", "rejected"), ROWS, ids=names(ROWS))
def test_an_evaluation_file_with_a_damaged_row_is_refused_with_its_line(
    tmp_path, name, data, texts, rejected
):
    """Empty texts are left out with a note, and all else would change the score unseen."""
    (tmp_path / name).write_bytes(data)
    if any("no visible" in reason for reason in rejected):
        return
    with pytest.raises(BadInput, match=rf"{name}:\d+: "):
        by_evaluate(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "data", "message"), REFUSED, ids=names(REFUSED))
def test_a_file_that_is_bad_as_a_whole_is_refused_in_the_same_words(
    tmp_path, reader, name, data, message
):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput) as refusal:
        reader(tmp_path / name)
    assert message in str(refusal.value) and name in str(refusal.value)


def test_evaluation_leaves_out_what_training_would_reject_as_empty(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "one"}, {"text": "\u200b"}, {"text": " "}, {"text": "two"}))
    notes: list[str] = []
    assert [row["text"] for row in evaluation_rows(path, ("text",), notes)] == ["one", "two"]
    assert len(notes) == 1 and "line 2, line 3" in notes[0]
    assert by_train(path)[2] == by_encode(path)[2] == by_index(path)[2] == ["one", "two"]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_plain_file_is_refused_and_waits_for_nobody(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "there.jsonl").write_bytes(jsonl({"text": "one"}))
    (tmp_path / "link.jsonl").symlink_to("there.jsonl")
    (tmp_path / "broken.jsonl").symlink_to("nowhere")
    assert reader(tmp_path / "link.jsonl")[0] == 1
    for name in ("pipe.jsonl", "broken.jsonl", "missing.jsonl"):
        with pytest.raises(BadInput, match=name.replace(".", r"\.")):
            reader(tmp_path / name)


def test_a_file_that_grows_meanwhile_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*({"text": f"text {number}"} for number in range(9))))
    rows = read_records(path)
    next(rows)
    with path.open("ab") as stream:
        stream.write(b'\n{"text": "late"}')
    with pytest.raises(BadInput, match="changed while it was read"):
        list(rows)


def test_a_line_beyond_all_bounds_is_one_row_and_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    monkeypatch.setattr(lines, "BLOCK", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "one"}, {"text": "x" * 5000}, {"text": "two"}))
    found = dict(read_records(path))
    assert (found[1], found[3]) == ({"text": "one"}, {"text": "two"})
    assert isinstance(found[2], RowError) and found[2].reason == "line too long"


def test_rows_passed_over_count_as_rows_read(tmp_path):
    for name, data in [(name, data) for name, data, texts in GOOD if texts == ["one", "two"]]:
        (tmp_path / name).write_bytes(data)
        rows = Records(tmp_path / name)
        assert rows.skip(1) == 1
        assert [record["text"] for _, record in rows] == ["two"]
        assert Records(tmp_path / name).skip() == 2


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
tables = st.lists(st.tuples(cells, cells), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(tables, st.sampled_from([",", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_csv_agrees_with_pandas(tmp_path_factory, table, delimiter, ending):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "other"])
    writer.writerows(table)
    path = tmp_path_factory.mktemp("csv") / ("a.csv" if delimiter == "," else "a.tsv")
    path.write_bytes(stream.getvalue().encode())
    frame = pd.read_csv(
        path, sep=delimiter, dtype=str, keep_default_na=False, lineterminator=None, engine="python"
    )
    found = [(record["text"], record["other"]) for _, record in read_records(path)]
    assert found == table
    expected = [tuple(row) for row in frame.itertuples(index=False)]
    plain = not any("\r" in cell for row in table for cell in row)
    assert not plain or found == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["text", "n", "list"]),
            st.one_of(cells, st.none(), st.integers(-(2**53), 2**53), st.lists(cells, max_size=3)),
            min_size=1,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_jsonl_gives_back_what_was_written(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in table), "utf-8", newline=""
    )
    assert [record for _, record in read_records(path)] == table


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(records.ALL_SUFFIXES)), st.binary(max_size=300))
def test_no_bytes_end_in_anything_but_rows_and_refusals(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(data)
    try:
        for number, record in read_records(path):
            assert number > 0 and isinstance(record, dict | RowError)
    except BadInput:
        return


def test_rows_are_read_in_one_place():
    """A second reader would have other limits and refusals: that is how commands came to differ."""
    root = Path(taskdistill.__file__).parent
    readers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if {"csv", "gzip", "zlib", "bz2", "lzma"} & set(imported(path))
    }
    writers = {"demo/folder.py", "train/log.py", "train/profile.py", "workflows/mine.py"}
    assert readers - writers == {"io/lines.py", "io/tables.py"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
