"""Every bad row of the fault catalogue (part A) ends as used, repaired or rejected, and whole-file
faults as one message.
"""

from __future__ import annotations

import gzip
import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.data.cleaning import MAX_CHARACTERS
from taskdistill.data.rows import LabeledText, Pair, ScoredPair, Text, make_dataset, row_texts
from taskdistill.data.sources import load_source, resolve
from taskdistill.errors import BadInput, RowError
from taskdistill.io.json import read_object
from taskdistill.io.records import read_records
from taskdistill.recipe.data import SourceConfig

GOOD = {"query": "what is a cat", "positive": "a cat is a small animal"}


def lines(*rows: object) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def load(path, kind="pairs", max_bad=1.0, **settings):
    return load_source(
        path.parent,
        "s",
        SourceConfig(path=path.name, kind=kind, **settings),
        max_bad=max_bad,
        seed=3,
    )


def adds_up(counts) -> bool:
    return counts.used + counts.repaired.total() + counts.rejected.total() == counts.read


def numbered(start: int, count: int):
    return [
        {"query": f"question {i}", "positive": f"answer {i}"} for i in range(start, start + count)
    ]


FORMATS = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows = [
        {"query": f"q {i} é\u2028x", "positive": f'p "{i}", with\nbreak', "lang": "en"}
        for i in range(5)
    ]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in name:
        quoted = [
            f'"{r["query"]}","{r["positive"].replace(chr(34), chr(34) * 2)}",en' for r in rows
        ]
        text = "query,positive,lang\r\n" + "\r\n".join(quoted)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    else:
        data = lines(*rows)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = load(path)
    assert found.rows == tuple(Pair(r["query"], r["positive"], (), "en") for r in rows)
    assert (found.counts.read, found.counts.used) == (5, 5)
    assert found.sha256 == make_dataset("other", found.kind, found.rows).sha256


BAD_LINES = [
    (b'{"query": "a b", "positive": "c \xff"}', "invalid UTF-8", "byte offset 32"),
    (b'{"query": "a b", "positive": ', "not valid JSON", ""),
    (b'{"query": "a", "query": "b", "positive": "c"}', "duplicate JSON key", "query"),
    (b"[" * 100_000, "JSON nested too deeply", ""),
    (
        b'{"query": "a", "positive": "b", "n": ' + b"9" * 5000 + b"}",
        "a number of too many digits",
        "5000",
    ),
    (b'{"query": "a", "positive": "b", "n": NaN}', "not a finite number", "NaN"),
    (b'["a"]', "not a JSON object", "list"),
    (b'{"query": "a\\u0000b", "positive": "c"}', "NUL character in 'query'", "character 1"),
    (b'{"query": "a", "positive": "b\\ud800"}', "lone surrogate in 'positive'", "character 1"),
    (b'{"query": "  ", "positive": "b"}', "'query' holds no visible character", ""),
    (
        b'{"query": "\\u200b\\ufeff", "positive": "b"}',
        "'query' holds no visible character",
        "2 characters",
    ),
    (b'{"query": "a", "positive": null}', "no 'positive'", "null"),
    (b'{"query": "a"}', "no 'positive'", "columns: query"),
    (b'{"query": "a", "positive": 3}', "'positive' is no text", "a number"),
    (b'{"query": "a", "positive": {"x": 1}}', "'positive' is no text", "an object"),
    (b'{"query": "a", "positive": "a"}', "query equals its positive", ""),
    (
        b'{"query": "a", "positive": "b", "negatives": {"x": 1}}',
        "'negatives' is no list of texts",
        "an object",
    ),
    (b'{"query": "a", "positive": "b", "negatives": ["b"]}', "no usable negative left", ""),
    (b'{"query": "a", "positive": "b", "lang": 3}', "'lang' is no text", "a number"),
]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    BAD_LINES,
    ids=[f"{i}-{reason}" for i, (_, reason, _) in enumerate(BAD_LINES)],
)
def test_a_bad_row_is_rejected_with_line_and_reason_and_its_neighbours_stay(
    tmp_path, line, reason, detail
):
    (tmp_path / "f.jsonl").write_bytes(line + b"\n" + lines(GOOD))
    found = load(tmp_path / "f.jsonl")
    assert found.rows == (Pair(**GOOD),)
    assert dict(found.counts.rejected) == {reason: 1}
    assert found.counts.examples[0].startswith(f"f.jsonl:1: {reason}")
    assert detail in found.counts.examples[0]
    assert adds_up(found.counts)


def test_repairs_are_counted_once_a_row(tmp_path):
    rows = [
        {"query": " a ", "positive": "b\n"},
        {"query": "c", "positive": "d", "negatives": ["d", "e", "e", "", "c"]},
        {"query": "long", "positive": "x" * (MAX_CHARACTERS + 5)},
        GOOD,
        GOOD,
    ]
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(*rows))
    found = load(tmp_path / "f.jsonl")
    assert found.rows[:2] == (Pair("a", "b"), Pair("c", "d", ("e",)))
    assert len(found.rows[2].positive) == MAX_CHARACTERS
    assert found.counts.used == 1
    assert found.counts.repaired.total() == 3
    assert dict(found.counts.rejected) == {"duplicate": 1}
    assert adds_up(found.counts)


def test_duplicates_are_no_faults(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(lines(*[GOOD] * 9))
    assert len(load(tmp_path / "f.jsonl", max_bad=0.0).rows) == 1


def test_row_count_survives_line_separators_inside_values(tmp_path):
    texts = ["a\r\nb", "a\rb", "a\u2028b", "a\u2029b", "a\x85b"]
    data = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "f.jsonl").write_bytes(data.encode())
    assert [row.text for row in load(tmp_path / "f.jsonl", "texts").rows] == texts


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("NaN", "not a finite number"),
        ("Infinity", "not a finite number"),
        ("1e999", "not a finite number"),
        ('"NaN"', "'score' is not a finite number"),
        ("1" + "0" * 400, "a number of too many digits"),
        ("1.5", "'score' is outside 0..1"),
        ("true", "'score' is no number"),
        ('"high"', "'score' is no number"),
    ],
)
def test_bad_scores(tmp_path, score, reason):
    bad = f'{{"text1": "a", "text2": "b", "score": {score}}}'.encode()
    good = [{"text1": "c", "text2": "d", "score": 0}, {"text1": "e", "text2": "f", "score": 1}]
    (tmp_path / "f.jsonl").write_bytes(lines(bad, *good))
    found = load(tmp_path / "f.jsonl", "scored")
    assert found.rows == (ScoredPair("c", "d", 0.0), ScoredPair("e", "f", 1.0))
    assert dict(found.counts.rejected) == {reason: 1}


def test_score_range_is_the_recipes(tmp_path):
    (tmp_path / "f.csv").write_text("a,b,s\nx,y,5\nz,w,2.5\n")
    columns = {"text1": "a", "text2": "b", "score": "s"}
    found = load(tmp_path / "f.csv", "scored", columns=columns, score_range=(0.0, 5.0))
    assert [row.score for row in found.rows] == [5.0, 2.5]


WHOLE_FILE = [
    ("f.jsonl", b"", "pairs", "no rows in"),
    ("f.jsonl", b"\n  \n\n", "pairs", "blank lines only"),
    ("f.jsonl.gz", gzip.compress(lines(*numbered(0, 900)))[:-40], "pairs", "truncated gzip"),
    ("f.jsonl.gz", b"not gzip at all", "pairs", "damaged or truncated gzip"),
    ("f.jsonl.gz", gzip.compress(b" " * (20 << 20)), "pairs", "decompression bomb"),
    ("f.jsonl", "{}".encode("utf-16"), "pairs", "UTF-16"),
    ("f.parquet", b"PAR1 and nothing else", "pairs", "cannot be read as Parquet"),
    ("f.md", b"a\n", "texts", "unknown format"),
    ("f.csv", b'query,positive\na,"b\nc,d\n', "pairs", "never closed"),
    ("f.csv", b"query,query\na,b\n", "pairs", "names a column twice"),
    ("f.csv", b"question,positive\na,b\n", "pairs", "no column 'query'"),
    ("f.csv", b"query,positive\n", "pairs", "no rows in"),
    (
        "f.jsonl",
        lines({"text1": "a", "text2": "b", "score": 1}, {"text1": "c", "text2": "d", "score": 1}),
        "scored",
        "CoSENT",
    ),
    (
        "f.jsonl",
        lines({"text": "a", "label": "x"}, {"text": "b", "label": "x"}),
        "labelled",
        "one class only",
    ),
    (
        "f.jsonl",
        lines(
            {"text": "a", "label": "x"}, {"text": "b", "label": "x"}, {"text": "c", "label": "y"}
        ),
        "labelled",
        "only 1 of them",
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "kind", "message"),
    WHOLE_FILE,
    ids=[f"{i}-{row[3]}" for i, row in enumerate(WHOLE_FILE)],
)
def test_a_bad_file_is_one_message(tmp_path, name, data, kind, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=message):
        load(tmp_path / name, kind)


def test_a_missing_column_names_what_was_found_and_the_mapping(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(lines({"question": "a", "answer": "b"}))
    with pytest.raises(BadInput) as error:
        load(tmp_path / "f.jsonl")
    assert "question, answer" in str(error.value)
    assert "columns: {query: <column>}" in str(error.value)
    found = load(tmp_path / "f.jsonl", columns={"query": "question", "positive": "answer"})
    assert found.rows == (Pair("a", "b"),)
    with pytest.raises(BadInput, match="did you mean 'positive'"):
        load(tmp_path / "f.jsonl", columns={"positiv": "answer"})


def test_too_many_bad_rows_are_refused_with_reasons(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(lines(*numbered(0, 98), b"{", {"query": "a", "positive": 3}))
    assert len(load(tmp_path / "f.jsonl", max_bad=0.02).rows) == 98
    with pytest.raises(BadInput, match="2 of 100 rows are faulty") as error:
        load(tmp_path / "f.jsonl", max_bad=0.01)
    assert "f.jsonl:99: not valid JSON" in str(error.value)
    assert "f.jsonl:100: 'positive' is no text" in str(error.value)


def test_a_class_with_one_example_is_rejected_but_no_fault(tmp_path):
    rows = [{"text": f"t {i} ", "label": i % 2} for i in range(6)] + [
        {"text": " lonely", "label": "z"}
    ]
    (tmp_path / "f.jsonl").write_bytes(lines(*rows))
    found = load(tmp_path / "f.jsonl", "labelled", max_bad=0.0)
    assert found.rows[0] == LabeledText("t 0", "0")
    assert dict(found.counts.rejected) == {"class with one example": 1}
    assert dict(found.counts.repaired) == {"white space at the ends removed": 6}
    assert adds_up(found.counts)


def test_globs_languages_limit_and_ignored_columns(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        rows = [
            {"text": f"{name}{i}", "lang": "en" if i % 2 else "de", "extra": 1} for i in range(10)
        ]
        (tmp_path / "texts" / f"{name}.jsonl").write_bytes(lines(*rows))
    source = SourceConfig(path="texts/*.jsonl", kind="texts", languages=["en"], limit=4)
    first = load_source(tmp_path, "s", source, max_bad=0, seed=1)
    assert len(first.rows) == 4
    assert {row.lang for row in first.rows} == {"en"}
    assert (first.counts.read, first.counts.filtered, first.counts.ignored_columns) == (
        10,
        10,
        ["extra"],
    )
    assert [row.text for row in first.rows] == sorted(row.text for row in first.rows)
    assert load_source(tmp_path, "s", source, max_bad=0, seed=1).sha256 == first.sha256
    assert load_source(tmp_path, "s", source, max_bad=0, seed=2).sha256 != first.sha256
    with pytest.raises(BadInput, match=r"did you mean 'texts/a\.jsonl'"):
        resolve(tmp_path, "s", "texts/aa.jsonl")
    with pytest.raises(BadInput, match="none of its 20 rows"):
        load_source(
            tmp_path,
            "s",
            SourceConfig(path="texts/*", kind="texts", languages=["fr"]),
            max_bad=0,
            seed=1,
        )


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(lines(*numbered(0, 3)))
    records = read_records(path)
    next(records)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadInput, match="changed while it was read"):
        list(records)


def test_csv_negatives_and_faulty_rows(tmp_path):
    data = b'query,positive,negatives\na,b,"[""c"", ""d""]"\ne,f,g\nh,i\n' + b"\xff,j,\nk,l,\n"
    (tmp_path / "f.csv").write_bytes(data)
    found = load(tmp_path / "f.csv")
    assert found.rows == (Pair("a", "b", ("c", "d")), Pair("e", "f", ("g",)), Pair("k", "l"))
    assert dict(found.counts.rejected) == {"wrong number of columns": 1, "invalid UTF-8": 1}
    assert found.counts.examples[1] == f"f.csv:5: invalid UTF-8 (byte offset {data.index(0xFF)})"


def test_parquet_reads_only_the_columns_it_needs(tmp_path):
    table = pa.table({"text": ["a", "b"], "vector": [[1.0], [2.0]]})
    pq.write_table(table, tmp_path / "f.parquet")
    found = load(tmp_path / "f.parquet", "texts")
    assert found.rows == (Text("a"), Text("b"))
    assert found.counts.ignored_columns == ["vector"]


def test_a_hub_data_set_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "datasets" else real(name, *rest),
    )
    with pytest.raises(BadInput, match=r"taskdistill\[hub\]"):
        load_source(
            tmp_path, "s", SourceConfig(path="hub:owner/name", kind="texts"), max_bad=0, seed=1
        )


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    (tmp_path / "f.jsonl").write_bytes(lines(*numbered(0, 100_000)))
    begin = time.process_time()
    assert len(load(tmp_path / "f.jsonl").rows) == 100_000
    assert time.process_time() - begin < 10


texts = st.text(alphabet=st.characters(codec=None), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)
records = st.dictionaries(
    st.sampled_from(["query", "positive", "negatives", "lang", "other"]), values
)


@settings(max_examples=150, deadline=None)
@given(st.lists(records | st.binary(max_size=40), min_size=1, max_size=8))
def test_any_jsonl_ends_in_counts_or_bad_input(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "f.jsonl"
    path.write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    )
    try:
        found = load(path)
    except BadInput:
        return
    assert adds_up(found.counts)
    assert len(found.rows) == found.counts.used + found.counts.repaired.total()
    for row in found.rows:
        for text in row_texts(row):
            assert text.strip() == text
            assert text.encode()
            assert "\0" not in text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_csv_ends_in_counts_or_bad_input(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "f.csv"
    path.write_bytes(b"text,lang\n" + data)
    try:
        found = load(path, "texts")
    except BadInput:
        return
    assert adds_up(found.counts)


@given(values)
def test_strict_json_agrees_with_the_standard_parser_on_good_objects(value):
    text = json.dumps({"key": value})
    try:
        parsed = read_object(text)
    except RowError as error:
        assert error.reason in ("not a finite number", "a number of too many digits")
        assert "NaN" in text or "Infinity" in text or any(len(run) > 300 for run in text.split())
    else:
        assert json.dumps(parsed) == text


@pytest.fixture
def hub(monkeypatch):
    """A Hub of one data set, whose rows name the subset that was asked for; gives what
    was asked.
    """
    import sys
    import types

    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        if name == "owner/gone":
            raise FileNotFoundError("no such data set")
        return [
            {"sentence": f"a{subset or ''}"},
            {"sentence": " "},
            {"sentence": f"b{subset or ''}"},
        ]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    fake.__spec__ = types.SimpleNamespace(name="datasets")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


def test_hub_rows_pass_the_same_cleaning(hub, tmp_path):
    source = SourceConfig(
        path="hub:owner/name",
        kind="texts",
        columns={"text": "sentence"},
        split="dev",
        revision="v1",
    )
    found = load_source(tmp_path, "s", source, max_bad=0.5, seed=1)
    assert hub == [("owner/name", None, "dev", "v1")]
    assert found.rows == (Text("a"), Text("b"))
    assert found.counts.examples == [
        "hub:owner/name:2: 'sentence' holds no visible character (1 characters, none visible)"
    ]
    with pytest.raises(BadInput, match=r"hub:owner/gone .* cannot be loaded: no such data set"):
        load_source(
            tmp_path, "s", SourceConfig(path="hub:owner/gone", kind="texts"), max_bad=0.5, seed=1
        )


def test_subsets_of_a_hub_data_set_one_or_one_a_language(hub, tmp_path):
    base = {"path": "hub:owner/name", "kind": "texts", "columns": {"text": "sentence"}}
    found = load_source(tmp_path, "s", SourceConfig(**base, subset="hard"), max_bad=0.5, seed=1)
    assert [row.text for row in found.rows] == ["ahard", "bhard"] and hub.pop() == (
        "owner/name",
        "hard",
        "train",
        None,
    )
    both = load_source(
        tmp_path,
        "s",
        SourceConfig(**base, subset={"de": "de-x", "en": "en-x"}),
        max_bad=0.5,
        seed=1,
    )
    assert [(row.text, row.lang) for row in both.rows] == [
        ("ade-x", "de"),
        ("bde-x", "de"),
        ("aen-x", "en"),
        ("ben-x", "en"),
    ]
    assert both.counts.examples[0].startswith("hub:owner/name/de-x:2: ")
    one = load_source(
        tmp_path,
        "s",
        SourceConfig(**base, subset={"de": "de-x", "en": "en-x"}, languages=["en"]),
        max_bad=0.5,
        seed=1,
    )
    assert {row.lang for row in one.rows} == {"en"}
    with pytest.raises(
        BadInput, match=r"hub:owner/gone \(subset 'x', split 'train'\) cannot be loaded"
    ):
        load_source(
            tmp_path,
            "s",
            SourceConfig(path="hub:owner/gone", kind="texts", subset="x"),
            max_bad=0.5,
            seed=1,
        )
    for wrong, said in (
        (
            {"path": "a.jsonl", "kind": "texts", "subset": "x"},
            "subset has no effect: a.jsonl is no Hub data set",
        ),
        ({"path": "a.jsonl", "kind": "texts", "split": "dev"}, "split has no effect"),
        ({**base, "subset": {}}, "names no subset"),
        (
            {**base, "subset": {"de": "x"}, "languages": ["fr"]},
            r"names \['fr'\], which subset gives no subset for",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            SourceConfig(**wrong)


def test_languages_of_a_file_without_such_a_column_are_what_its_rows_are_in(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*[{"text": f"t{i}"} for i in range(3)]))
    one = load_source(
        tmp_path,
        "s",
        SourceConfig(path="a.jsonl", kind="texts", languages=["de"]),
        max_bad=0,
        seed=1,
    )
    assert [row.lang for row in one.rows] == ["de"] * 3 and one.counts.filtered == 0
    two = load_source(
        tmp_path,
        "s",
        SourceConfig(path="a.jsonl", kind="texts", languages=["de", "en"]),
        max_bad=0,
        seed=1,
    )
    assert [row.lang for row in two.rows] == [""] * 3
    (tmp_path / "b.jsonl").write_bytes(
        lines({"text": "a", "lang": "de"}, {"text": "b"}, {"text": "c", "lang": "fr"})
    )
    some = load_source(
        tmp_path,
        "s",
        SourceConfig(path="b.jsonl", kind="texts", languages=["de"]),
        max_bad=0,
        seed=1,
    )
    assert [row.text for row in some.rows] == ["a"] and some.counts.filtered == 2
