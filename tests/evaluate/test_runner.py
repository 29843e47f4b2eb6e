"""Several models on several sets: kept scores are not computed again, and the results file is
strict JSON.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.results import aggregate
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.set_runner import EvalOptions


class Letters:
    def __init__(self, name: str, letters: str, version: str = "1") -> None:
        self.name, self.letters, self.version, self.calls = name, letters, version, 0

    def encode(self, texts, *, task, prompt_name):
        self.calls += 1
        return np.array(
            [[text.count(letter) + 0.01 for letter in self.letters] for text in texts],
            dtype=np.float32,
        )

    def fingerprint(self) -> str:
        return f"{self.letters}{self.version}"


def write(path: Path, rows: list[dict], raw: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows) + raw)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    texts = ["abc", "abd", "aab", "bcd", "ccd", "ddb"]
    write(
        root / "retrieval/pets/corpus.jsonl.gz",
        [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)],
    )
    write(
        root / "retrieval/pets/queries.jsonl.gz",
        [{"_id": f"q{i}", "text": text[:2]} for i, text in enumerate(texts)],
    )
    write(
        root / "retrieval/pets/qrels.tsv.gz",
        [],
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(6)),
    )
    scored = [
        {"text1": a, "text2": b, "score": len(set(a) & set(b)) / 4} for a in texts for b in texts
    ]
    write(root / "scored/near.test.jsonl.gz", scored)
    return root


def test_scores_are_kept_and_reused_only_for_the_same_model_set_and_options(root, tmp_path):
    out = tmp_path / "out"
    small, large = Letters("small", "ab"), Letters("large", "abcd")
    first = evaluate_models([large, small], find_eval_sets(root), out)
    assert large.calls == 3 and small.calls == 3
    assert evaluate_models([large, small], find_eval_sets(root), out) == first and large.calls == 3
    assert json.loads((out / "results.json").read_text()) == first
    evaluate_models([Letters("large", "abcd", version="2"), small], find_eval_sets(root), out)
    assert small.calls == 3
    evaluate_models([small], find_eval_sets(root), out, EvalOptions(max_queries=3))
    assert small.calls == 6
    write(
        root / "scored/near.test.jsonl.gz",
        [{"text1": "a", "text2": "b", "score": s} for s in (0, 0.5, 1)],
    )
    evaluate_models([small], find_eval_sets(root), out)
    assert small.calls == 7


def test_a_failure_loses_no_finished_score(root, tmp_path):
    class Fails(Letters):
        def encode(self, texts, *, task, prompt_name):
            if task == "text-matching":
                return np.full((len(texts), 2), np.nan)
            return super().encode(texts, task=task, prompt_name=prompt_name)

    out = tmp_path / "out"
    model = Fails("fails", "ab")
    with pytest.raises(BadInput, match="NaN"):
        evaluate_models([model], find_eval_sets(root), out)
    assert len(list((out / "cache").glob("*.json"))) == 1 and not (out / "results.json").exists()
    left = (
        out / "cache" / f".{'0' * 32}.json.taskdistill-0123abcd"
    )  # of a killed writer, under a key that nobody asks for again
    left.write_text("{")
    with pytest.raises(BadInput, match="NaN"):
        evaluate_models([model], find_eval_sets(root), out)
    assert model.calls == 2 and not left.exists()


def test_retention_comparisons_and_means(root):
    result = evaluate_models(
        [Letters("teacher", "abcd"), Letters("student", "ab")],
        find_eval_sets(root),
        reference="teacher",
    )
    scores = {
        model: {name: record["score"] for name, record in sets.items()}
        for model, sets in result["scores"].items()
    }
    retention = result["retention"]["student"]
    assert retention["sets"]["sts/near"] == pytest.approx(
        scores["student"]["sts/near"] / scores["teacher"]["sts/near"]
    )
    assert retention["mean"] == pytest.approx(np.mean(list(retention["sets"].values())))
    for row in result["comparisons"]:
        assert row["difference"][0] == pytest.approx(
            scores["student"][row["set"]] - scores["teacher"][row["set"]], abs=1e-5
        )
        assert (
            row["difference"][1] <= row["difference"][0] <= row["difference"][2]
            and 0 < row["p"] <= 1
        )
    assert result["means"]["teacher"]["sets"] == pytest.approx(
        np.mean(list(scores["teacher"].values()))
    )
    assert "units" not in result["scores"]["teacher"]["sts/near"]


def test_compression_is_measured_and_calibration_stored(root, tmp_path):
    out = tmp_path / "out"
    result = evaluate_models(
        [Letters("m", "abcd")],
        find_eval_sets(root),
        out,
        EvalOptions(dims=(2, 4, 512), precisions=("float32", "int8", "binary")),
    )
    cells = result["scores"]["m"]["retrieval/pets"]["compression"]
    assert {(cell["dim"], cell["precision"]) for cell in cells} == {
        (d, p) for d in (4, 2) for p in ("float32", "int8", "binary")
    }
    assert result["verdicts"]["m"].startswith("To keep 99 %")
    stored = [json.loads(path.read_text()) for path in (out / "calibration").glob("*.json")]
    assert {entry["set"] for entry in stored} == {"retrieval/pets", "sts/near"} and set(
        stored[0]["value"]
    ) == {"2", "4"}


def test_progress_ends_at_its_total(root):
    seen, lines = [], []
    evaluate_models(
        [Letters("m", "ab")],
        find_eval_sets(root),
        progress=lambda *x: seen.append(x),
        note=lines.append,
    )
    shares = [done for done, total in seen if total == 100]
    assert (
        len(shares) == len(seen) > 3
        and shares == sorted(shares)
        and shares[-1] == 100
        and 0 < shares[0] < 100
    )
    assert lines[0].startswith("retrieval/pets  m  nDCG@10 ")


def test_names_must_differ_and_the_reference_must_be_there(root):
    with pytest.raises(BadInput, match="two models are called 'm'"):
        evaluate_models([Letters("m", "ab"), Letters("m", "cd")], find_eval_sets(root))
    with pytest.raises(BadInput, match="reference 't' is not among"):
        evaluate_models([Letters("m", "ab")], find_eval_sets(root), reference="t")


def test_a_dimension_that_changes_between_sets_is_refused(root):
    class Changes(Letters):
        def encode(self, texts, *, task, prompt_name):
            return super().encode(texts, task=task, prompt_name=prompt_name)[
                :, : 2 if task == "retrieval" else 3
            ]

    with pytest.raises(BadInput, match="2 on retrieval/pets, 3 on sts/near"):
        evaluate_models([Changes("m", "abcd")], find_eval_sets(root))


def test_aggregation_is_that_of_section_8_3():
    kinds = {"a": "sts", "b": "sts", "c": "retrieval"}
    result = aggregate({"a": 0.2, "b": 0.4, "c": 0.9}, kinds)
    assert result["sets"] == pytest.approx(0.5) and result["types"] == pytest.approx(0.6)
    assert list(result["by_type"]) == ["retrieval", "sts"]
