from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from taskdistill.errors import BadInput
from taskdistill.search.corpus import Corpus, Document
from taskdistill.search.passages import WORD, PassageSettings, split


def test_jsonl_rows_become_documents_and_bad_ones_are_counted_with_line_and_reason(tmp_path):
    good = [
        {"_id": "a", "title": "T", "text": "one\u2028two"},
        {"_id": 7, "text": "three", "tags": ["x"], "none": None},
    ]
    lines = [
        "\ufeff" + json.dumps(good[0], ensure_ascii=False),
        '{"text": NaN}',
        json.dumps(good[1]),
        "",
        "not json",
        '{"_id": "b", "text": "  "}',
        '{"_id": "c", "text": "a", "text": "b"}',
        '{"_id": "d", "text": "\\ud800"}',
        '{"_id": "e", "text": "a\\u0000b"}',
        "[" * 100_000,
        '{"_id": "f", "text": "x", "n": 1e999}',
        '{"_id": "g", "text": "x", "n": %s}' % ("9" * 5000),
        '{"_id": "", "text": "x"}',
        "[1]",
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    corpus = Corpus(tmp_path / "c.jsonl")
    assert list(corpus) == [
        Document("a", "one\u2028two", {"title": "T"}),
        Document("7", "three", {"tags": ["x"]}),
    ]
    stats = corpus.stats
    assert (stats.read, stats.used, stats.rejected.total()) == (13, 2, 11)
    assert dict(stats.rejected) == {
        "not a finite number": 2,
        "not valid JSON": 1,
        "'text' holds no visible character": 1,
        "duplicate JSON key": 1,
        "lone surrogate in 'text'": 1,
        "NUL character in 'text'": 1,
        "JSON nested too deeply": 1,
        "a number of too many digits": 1,
        "'_id' holds no id": 1,
        "not a JSON object": 1,
    }
    assert [example.partition(": ")[0] for example in stats.examples] == [
        f"c.jsonl:{line}" for line in (2, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    ]
    assert list(corpus) and corpus.stats.read == 13


def test_gzip_invalid_utf8_and_ids_made_of_lines(tmp_path):
    with gzip.open(tmp_path / "c.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "one"}\n{"text": "\xff"}\n{"text": "two"}')
    corpus = Corpus(tmp_path / "c.jsonl.gz")
    assert [(each.id, each.text) for each in corpus] == [
        ("c.jsonl.gz:1", "one"),
        ("c.jsonl.gz:3", "two"),
    ]
    assert corpus.stats.examples == ["c.jsonl.gz:2: invalid UTF-8 (byte offset 26)"]
    content = (tmp_path / "c.jsonl.gz").read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(content[: len(content) - 12])
    with pytest.raises(BadInput, match="damaged or truncated gzip"):
        list(Corpus(tmp_path / "c.jsonl.gz"))


def test_csv_and_tsv(tmp_path):
    (tmp_path / "c.csv").write_bytes(
        '\ufeffid,body,year\nx,"a ""b""\nc",2020\ny,d\n,e,1\nz,f,\n'.encode() + b"w,\xff,1\n"
    )
    corpus = Corpus(tmp_path / "c.csv")
    assert list(corpus) == [Document("x", 'a "b"\nc', {"year": "2020"}), Document("z", "f", {})]
    assert corpus.stats.examples == [
        "c.csv:4: wrong number of columns (2 instead of 3)",
        "c.csv:5: 'id' holds no id (it is a text)",
        "c.csv:7: invalid UTF-8 (byte offset 51)",
    ]
    (tmp_path / "c.tsv").write_text("name\tpassage\nx\tlong " + "y" * 200_000 + "\n")
    assert (
        len(next(iter(Corpus(tmp_path / "c.tsv", text_field="passage", id_field="name"))).text)
        == 200_005
    )


def test_the_ending_of_a_table_counts_in_capitals_too(tmp_path):
    (tmp_path / "C.CSV").write_text("id,text,year\nx,one,\n")
    assert list(Corpus(tmp_path / "C.CSV")) == [Document("x", "one", {})]


def test_parquet(tmp_path):
    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": ["a", None, "c"],
            "score": [0.5, 1.0, float("nan")],
            "raw": [None, None, b"x"],
        }
    )
    parquet.write_table(table, tmp_path / "c.parquet")
    corpus = Corpus(tmp_path / "c.parquet")
    assert list(corpus) == [Document("1", "a", {"score": 0.5})]
    assert corpus.stats.examples == [
        "c.parquet:2: no 'text' (null)",
        "c.parquet:3: 'raw' holds what JSON has no word for (a bytes)",
    ]
    (tmp_path / "d.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    with pytest.raises(BadInput, match="Parquet"):
        list(Corpus(tmp_path / "d.parquet"))


def test_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("hidden")
    corpus = Corpus(tmp_path)
    assert list(corpus) == [Document("a.txt", "first"), Document("sub/b.md", "second")]
    assert [example.partition(":")[0] for example in corpus.stats.examples] == ["picture.png"]
    (tmp_path / "corpus.jsonl").write_text('{"_id": "q", "text": "from the corpus file"}')
    assert [each.id for each in Corpus(tmp_path)] == ["q"]


def test_what_cannot_be_a_corpus_is_refused(tmp_path):
    with pytest.raises(BadInput, match="missing"):
        Corpus(tmp_path / "x.jsonl")
    (tmp_path / "x.docx").write_text("")
    with pytest.raises(BadInput, match="docx"):
        Corpus(tmp_path / "x.docx")
    (tmp_path / "x.jsonl").write_text('{"txt": "a"}')
    with pytest.raises(
        BadInput, match="no field text or content or body or document, its first row has: txt"
    ):
        list(Corpus(tmp_path / "x.jsonl"))
    with pytest.raises(BadInput, match="no usable document among 1 rows"):
        (tmp_path / "x.jsonl").write_text('{"text": ""}')
        list(Corpus(tmp_path / "x.jsonl"))


SENTENCES = (
    "The first sentence is here. The second one is a little longer than that! Third? Yes.\n\nA new"
    " paragraph begins. It ends."
)


def test_passages_end_at_sentences_and_overlap():
    spans = split(SENTENCES, PassageSettings(size=10, overlap=4))
    assert [SENTENCES[start:end] for start, end in spans] == [
        "The first sentence is here.",
        "The second one is a little longer than that! Third?",
        "Third? Yes.\n\nA new paragraph begins. It ends.",
    ]


def test_passages_by_paragraph_by_word_and_whole():
    assert [
        SENTENCES[start:end]
        for start, end in split(
            SENTENCES, PassageSettings(size=17, overlap=0, boundary="paragraph")
        )
    ][1] == "A new paragraph begins. It ends."
    words = [
        SENTENCES[start:end]
        for start, end in split(SENTENCES, PassageSettings(size=5, overlap=2, boundary="word"))
    ]
    assert words[:2] == ["The first sentence is here.", "is here. The second one"]
    assert split(SENTENCES, None) == [(0, len(SENTENCES))]
    assert split("  a b  ", PassageSettings()) == [(2, 5)]
    assert split(" \n ", PassageSettings()) == split("", None) == []


def test_ideographs_are_words():
    text = "我们今天去公园。天气很好。" * 3
    spans = split(text, PassageSettings(size=14, overlap=0))
    assert [text[start:end] for start, end in spans] == ["我们今天去公园。天气很好。"] * 3


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="ab .!\n我、。", max_size=300),
    st.sampled_from(["words", "characters"]),
    st.integers(1, 30),
    st.integers(0, 29),
    st.sampled_from(["word", "sentence", "paragraph"]),
)
def test_passages_are_places_in_the_text_that_cover_every_word(text, unit, size, overlap, boundary):
    spans = split(
        text,
        PassageSettings(unit=unit, size=size, overlap=min(overlap, size - 1), boundary=boundary),
    )
    covered = set()
    for start, end in spans:
        passage = text[start:end]
        assert passage and passage == passage.strip()
        assert (len(passage) if unit == "characters" else len(WORD.findall(passage))) <= size
        covered.update(range(start, end))
    assert covered >= {at for at, character in enumerate(text) if not character.isspace()}
    assert spans == sorted(set(spans)) and [end for _, end in spans] == sorted(
        {end for _, end in spans}
    )


def test_settings_of_passages_are_checked():
    for wrong in ({"size": 0}, {"size": 5, "overlap": 5}, {"unit": "tokens"}, {"boundary": "line"}):
        with pytest.raises(BadInput):
            PassageSettings(**wrong)
