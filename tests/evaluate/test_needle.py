"""The synthetic needle and passkey task: lengths, depths, and a report that sees what a model does
not read.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.tiny_jina import write_repository

from taskdistill.cli.main import run
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.needle import KINDS, LENGTHS, needle_set, score_needles


class Names:
    """Sees person names only, within its first `limit` words: a model of known reach."""

    name = "names"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.places: dict[tuple[str, str], int] = {}

    def encode(self, texts, *, task, prompt_name):
        rows = np.zeros((len(texts), 512), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for first, last in re.findall(
                r"of ([A-Z]\w+) ([A-Z]\w+)", " ".join(text.split()[: self.limit])
            ):
                row[self.places.setdefault((first, last), 1 + len(self.places))] += 1
            row[0] += 1e-3
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def fingerprint(self) -> str:
        return "names"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [256, 32_768])
def test_documents_have_their_length_and_one_fact_each(kind, length):
    data = needle_set(kind, length, documents=10)
    for document, query in zip(data.documents, data.queries, strict=True):
        assert 0.98 * length - 30 <= 1.3 * len(document.split()) <= 1.02 * length
        person = re.search(r"of (\w+ \w+)\?", query).group(1)
        assert document.count(person) == 1
        assert sum(person in other for other in data.documents) == 1
    places = [
        document.index(re.search(r"of (\w+ \w+)\?", q).group(1)) / len(document)
        for document, q in zip(data.documents, data.queries, strict=True)
    ]
    assert np.abs(np.array(places) - np.array(data.depths)).max() < 0.25
    assert min(data.depths) == 0 and max(data.depths) == 1


def test_sets_follow_from_their_seed_and_counts_from_a_tokenizer():
    assert needle_set("needle", 256, documents=5, seed=1) == needle_set(
        "needle", 256, documents=5, seed=1
    )
    assert needle_set("needle", 256, documents=5, seed=1) != needle_set(
        "needle", 256, documents=5, seed=2
    )
    by_letters = needle_set("passkey", 512, documents=5, tokens=len)
    assert all(400 <= len(document) <= 560 for document in by_letters.documents)


def test_the_report_falls_where_a_model_stops_reading():
    complete = [
        score_needles(Names(10**6), needle_set(kind, length, documents=20))
        for kind in KINDS
        for length in (256, 2048)
    ]
    assert [(row["kind"], row["length"]) for row in complete] == [
        (kind, length) for kind in KINDS for length in (256, 2048)
    ]
    assert all(row["nDCG@1"] == 1.0 for row in complete)
    cut = {
        length: score_needles(Names(200), needle_set("passkey", length, documents=20))
        for length in (256, 2048)
    }
    assert cut[256]["nDCG@1"] == 1.0
    assert cut[2048]["nDCG@1"] < 0.4 and cut[2048]["second_half"] < cut[2048]["first_half"]


def test_eight_lengths_and_bad_arguments():
    assert LENGTHS[0] == 256 and LENGTHS[-1] == 32_768 and len(LENGTHS) == 8
    with pytest.raises(BadInput, match="did you mean 'needle'"):
        needle_set("needles", 256)
    with pytest.raises(BadInput, match="at least 64"):
        needle_set("needle", 10)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny Qwen3 repository that reads 128 tokens."""
    return write_repository(
        tmp_path_factory.mktemp("models") / "tiny", "qwen3", tasks=["retrieval"]
    )


def test_the_command_reports_by_length_counts_what_was_cut_and_computes_nothing_twice(
    models, tmp_path, capsys
):
    out = tmp_path / "out"
    words = [
        "needle",
        str(models),
        "--lengths",
        "64,256",
        "--documents",
        "4",
        "--out",
        str(out),
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert run(words) == 0
    results = json.loads((out / "results.json").read_text())
    assert json.loads((tmp_path / "r.json").read_text()) == results
    rows = {(row["kind"], row["length"]): row for row in results["rows"]}
    assert list(rows) == [("needle", 64), ("needle", 256), ("passkey", 64), ("passkey", 256)]
    assert [row["cut"] for row in rows.values()] == [0, 4, 0, 4]  # the model reads 128 tokens
    assert results["means"]["tiny"]["needle"] == np.mean(
        [rows["needle", 64]["nDCG@1"], rows["needle", 256]["nDCG@1"]]
    )
    printed = capsys.readouterr().out
    assert "needle 256  tiny  nDCG@1" in printed and "4 of 4 documents cut" in printed
    assert "Needle and passkey by length" in (out / "report.html").read_text()
    stored = {path.name: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}
    assert len(stored) == 4 and run([*words, "--quiet"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "cache").iterdir()} == stored
    assert json.loads((out / "results.json").read_text()) == results


def test_documents_are_as_long_as_the_models_own_tokenizer_counts(models):
    from taskdistill.workflows.needle import _Counter

    counter = _Counter(Encoder.load(models, default_task="retrieval", threads=1))
    data = needle_set("passkey", 2_000, documents=3, tokens=counter)
    assert all(1_900 <= counter(document) <= 2_000 for document in data.documents)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lengths", "64,many"], "--lengths '64,many': needs numbers"),
        (["--kinds", "neddle"], "did you mean 'needle'"),
        (["--documents", "1"], "documents 1 between 2 and 224"),
    ],
)
def test_bad_options_end_with_exit_code_two(models, tmp_path, capsys, words, said):
    assert (
        run(["needle", str(models), "--lengths", "64", "--out", str(tmp_path / "out"), *words]) == 2
    )
    assert said in capsys.readouterr().err


def test_two_models_of_one_name(models, tmp_path, capsys):
    assert run(["needle", str(models), str(models), "--out", str(tmp_path)]) == 2
    assert "two models are called 'tiny'" in capsys.readouterr().err
