"""The synthetic needle and passkey task: lengths, depths, and a report that sees what a model does not read."""

from __future__ import annotations

import re

import numpy as np
import pytest

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
            for first, last in re.findall(r"of ([A-Z]\w+) ([A-Z]\w+)", " ".join(text.split()[: self.limit])):
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
    assert needle_set("needle", 256, documents=5, seed=1) == needle_set("needle", 256, documents=5, seed=1)
    assert needle_set("needle", 256, documents=5, seed=1) != needle_set("needle", 256, documents=5, seed=2)
    by_letters = needle_set("passkey", 512, documents=5, tokens=len)
    assert all(400 <= len(document) <= 560 for document in by_letters.documents)


def test_the_report_falls_where_a_model_stops_reading():
    whole = list(score_needles(Names(10**6), lengths=(256, 2048), documents=20))
    assert [(row["kind"], row["length"]) for row in whole] == [(kind, length) for kind in KINDS for length in (256, 2048)]
    assert all(row["nDCG@1"] == 1.0 for row in whole)
    cut = {row["length"]: row for row in score_needles(Names(200), kinds=("passkey",), lengths=(256, 2048), documents=20)}
    assert cut[256]["nDCG@1"] == 1.0
    assert cut[2048]["nDCG@1"] < 0.4 and cut[2048]["second_half"] < cut[2048]["first_half"]


def test_eight_lengths_and_bad_arguments():
    assert LENGTHS[0] == 256 and LENGTHS[-1] == 32_768 and len(LENGTHS) == 8
    with pytest.raises(BadInput, match="did you mean 'needle'"):
        needle_set("needles", 256)
    with pytest.raises(BadInput, match="at least 64"):
        needle_set("needle", 10)
