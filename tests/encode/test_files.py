"""`encode` from file to file: every row accounted for, nothing cut in silence, long texts whole
where that is asked.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_jina import TEXTS, write_repository

from taskdistill import encode_chunks, encode_windows
from taskdistill.cli.main import run
from taskdistill.encode.encoder import Encoder

LONG = "The market by the river was held twice a year. 火星は赤い。 👩‍🚀 " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A repository whose model reads 128 tokens."""
    return write_repository(tmp_path_factory.mktemp("model") / "tiny", "qwen3", tasks=["retrieval"])


@pytest.fixture(scope="module")
def encoder(folder) -> Encoder:
    return Encoder.load(folder, default_task="retrieval", threads=1)


def encode(folder: Path, source: Path | str, out: Path, *words: str) -> int:
    return run(
        ["encode", str(folder), str(source), "--out", str(out), "--task", "retrieval", *words]
    )


def jsonl(path: Path, texts: list) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_every_kind_of_input_and_output_gives_the_same_vectors(
    folder, encoder, tmp_path, monkeypatch
):
    texts = [text for text in TEXTS if "\n" not in text]
    expected = encoder.encode(texts)
    (tmp_path / "in.txt").write_text("\ufeff" + "\r\n".join(texts) + "\r\n")
    jsonl(tmp_path / "in.jsonl", texts)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress((tmp_path / "in.jsonl").read_bytes()))
    (tmp_path / "in.csv").write_text(
        "id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    for source in ("in.txt", "in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet", "-"):
        out = tmp_path / "out.npy"
        assert encode(folder, source if source == "-" else tmp_path / source, out, "--quiet") == 0
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    assert encode(folder, tmp_path / "in.txt", tmp_path / "out.parquet") == 0
    assert encode(folder, tmp_path / "in.txt", tmp_path / "out.jsonl") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", "vector"] and table["row"].to_pylist() == list(
        range(len(texts))
    )
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)


def test_cut_texts_are_counted_reported_and_an_error_on_request(folder, tmp_path, capsys):
    source = jsonl(tmp_path / "in.jsonl", ["short", LONG, LONG + "more", 7, " "])
    out, counts = tmp_path / "out.parquet", tmp_path / "counts.json"
    assert encode(folder, source, out, "--json", str(counts)) == 0
    told = capsys.readouterr().out
    assert "5 rows read, 3 encoded, 2 rejected, 2 cut at the length limit" in told
    assert "'text' is no text (it is a number)" in told and "no visible character" in told
    said = json.loads(counts.read_text())
    assert (said["read"], said["used"], said["rejected"], said["truncated"], said["vectors"]) == (
        5,
        3,
        2,
        2,
        3,
    )
    assert pq.read_table(out)["row"].to_pylist() == [0, 1, 2]
    assert encode(folder, source, tmp_path / "refused.parquet", "--refuse-truncation") == 2
    assert "text 1 has more than 128 tokens and truncation is refused" in capsys.readouterr().err
    assert not (tmp_path / "refused.parquet").exists()


def test_windows_read_texts_whole(folder, encoder, tmp_path, capsys):
    texts = ["short", LONG, "another", LONG + "more"]
    out = tmp_path / "out.npy"
    assert (
        encode(
            folder,
            jsonl(tmp_path / "in.jsonl", texts),
            out,
            "--windows",
            "--overlap",
            "8",
            "--max-length",
            "64",
            "--dim",
            "16",
        )
        == 0
    )
    found = encode_windows(encoder, texts, window=64, overlap=8, truncate_dim=16)
    np.testing.assert_allclose(np.load(out), found.vectors, atol=1e-6)
    assert found.windows[0] == found.windows[2] == 1 and found.windows[1] > 5
    assert f"none cut: 4 vectors from {found.windows.sum()} passes" in capsys.readouterr().out
    np.testing.assert_allclose(
        np.load(out)[[0, 2]], encoder.encode(["short", "another"], truncate_dim=16), atol=1e-5
    )


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_chunks_have_a_vector_and_a_place_each(folder, encoder, tmp_path, ending, capsys):
    texts = ["short", "", LONG]
    out = tmp_path / f"out.{ending}"
    assert encode(folder, jsonl(tmp_path / "in.jsonl", texts), out, "--chunks", "20") == 0
    rows = (
        pq.read_table(out).to_pylist()
        if ending == "parquet"
        else [json.loads(line) for line in out.read_text().splitlines()]
    )
    expected = encode_chunks(encoder, LONG, chunk_tokens=20)
    assert expected.passes > 3
    assert [row["row"] for row in rows] == [0, *[2] * len(expected.vectors)]
    assert [[row["start"], row["end"]] for row in rows] == [[0, 5], *expected.spans.tolist()]
    assert "".join(LONG[row["start"] : row["end"]] for row in rows[1:]) == LONG
    np.testing.assert_allclose([row["vector"] for row in rows[1:]], expected.vectors, atol=1e-6)
    assert f"{len(rows)} vectors from {1 + expected.passes} passes" in capsys.readouterr().out


def test_chunks_and_windows_in_other_precisions(encoder):
    exact = encode_chunks(encoder, LONG, chunk_tokens=50)
    assert (
        encode_chunks(encoder, LONG, chunk_tokens=50, precision="float16").vectors
        == exact.vectors.astype(np.float16)
    ).all()
    binary = encode_chunks(encoder, LONG, chunk_tokens=50, precision="binary")
    assert (binary.vectors == np.packbits(exact.vectors > 0, axis=1)).all()
    assert encode_windows(
        encoder, ["short", LONG], precision="binary", truncate_dim=8
    ).vectors.shape == (2, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--windows", "--chunks", "9"], "give one of them"),
        (["--overlap", "9"], "--overlap has no effect without"),
        (["--windows", "--refuse-truncation"], "refuse_truncation has no effect"),
        (["--chunks", "9"], "a .npy file cannot say which characters"),
        (["--windows", "--overlap", "500"], "overlap 500 is not between"),
        (["--windows", "--precision", "int8"], "stores no int8 ranges"),
        (["--dim", "0"], "truncate_dim 0 is not between 1"),
        (["--dim", "33"], "truncate_dim 33 is not between 1"),
        (["--max-length", "129"], "max_length 129 is not between 1 and the 128 tokens"),
    ],
)
def test_options_that_do_not_go_together(folder, tmp_path, capsys, words, said):
    out = tmp_path / "out.npy"
    assert encode(folder, jsonl(tmp_path / "in.jsonl", ["short", LONG]), out, *words) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


def test_a_text_without_a_token_is_named(folder, encoder, tmp_path, capsys):
    source = jsonl(tmp_path / "in.jsonl", ["short", "\u2028"])
    code = encode(folder, source, tmp_path / "out.parquet", "--chunks", "9")
    assert (
        code == 0 and "1 rejected" in capsys.readouterr().out
    )  # only white space: rejected like an empty text
