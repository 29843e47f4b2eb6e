"""Benchmarks run as they are, their averages are the paper's, and what cannot be had is named."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.evaluate.results import aggregate, task_score
from taskdistill.evaluate.suites import (
    RTEB_PUBLIC,
    SUITES,
    TYPES,
    run_suite,
    suite_name,
    suite_tasks,
)

ENGLISH = {
    "Retrieval": "65.07 62.16 49.61 41.75 90.46 49.63 69.94 23.04 78.49 70.59",
    "Reranking": "32.69 66.08",
    "STS": "85.16 91.62 85.11 88.70 88.50 92.58 94.90 71.75 94.83",
    "PairClassification": "96.56 72.31 85.99",
    "Classification": "93.18 91.46 95.55 98.93 89.10 92.04 93.67 72.07",
    "Clustering": "65.79 62.71 47.65 43.51 41.43 70.13 51.95 54.34",
    "Summarization": "31.77",
}
"""Scores of v5-small on the 41 tasks of MTEB(eng, v2), from the public result files (specification,
annex B.2).
"""

PRINTED = {
    "Retrieval": 60.1,
    "Reranking": 49.4,
    "STS": 88.1,
    "PairClassification": 85.0,
    "Clustering": 54.7,
    "Summarization": 31.8,
}
"""Table 3 of the paper; its classification mean, 90.4, takes every language of two sets, the public
files the English one.
"""

RTEB = {
    "small": (
        "43.88 53.30 64.94 63.61 80.55 62.06 55.67 96.08 90.54 66.59 73.28 61.36 93.70 71.06 53.63"
        " 39.22"
    ),
    "nano": (
        "39.68 51.52 65.77 57.77 78.81 57.84 57.84 92.12 86.70 65.80 58.39 54.94 97.65 69.39 52.79"
        " 38.31"
    ),
}
NEEDLE, PASSKEY = "82 70 78 42 40 22 18 4", "100 100 100 100 98 80 48 18"
"""nDCG@1 of v5-small on the splits of 256 to 32,768 tokens."""


def numbers(text: str) -> list[float]:
    return [float(each) for each in text.split()]


def test_english_averages_are_those_of_the_public_files_and_the_type_means_those_of_table_3():
    scores = {
        f"{kind} {i}": score
        for kind, text in ENGLISH.items()
        for i, score in enumerate(numbers(text))
    }
    result = aggregate(scores, {name: name.split()[0] for name in scores}, TYPES)
    assert len(scores) == 41 and result["sets"] == pytest.approx(71.775, abs=0.002)
    for kind, printed in PRINTED.items():
        assert result["by_type"][kind] == pytest.approx(printed, abs=0.06), kind
    everywhere = numbers("94.3 91.5 95.6 98.9 85.3 92.1 93.7 72.1")
    assert np.mean(everywhere) == pytest.approx(90.4, abs=0.05)
    means = [
        *(value for kind, value in result["by_type"].items() if kind != "Classification"),
        np.mean(everywhere),
    ]
    assert np.mean(means) == pytest.approx(65.6, abs=0.05)
    assert list(result["by_type"]) == [kind for kind in TYPES if kind in ENGLISH]


@pytest.mark.parametrize(("model", "printed"), [("small", 66.84), ("nano", 64.08)])
def test_rteb_columns_of_table_4(model, printed):
    scores = dict(zip(RTEB_PUBLIC.split(), numbers(RTEB[model]), strict=True))
    result = aggregate(scores, dict.fromkeys(scores, "Retrieval"), TYPES)
    assert round(result["sets"], 2) == printed and result["types"] == result["sets"]


def test_longembed_column_of_table_4_takes_means_over_length_splits():
    def by_length(text: str) -> dict[str, dict[str, float]]:
        return {f"test_{256 << i}": {"default": score} for i, score in enumerate(numbers(text))}

    splits = {"needle": by_length(NEEDLE), "passkey": by_length(PASSKEY)}
    splits |= {
        name: {"test": {"default": score}}
        for name, score in zip("abcd", (52.95, 43.80, 96.88, 79.68), strict=True)
    }
    scores = {name: task_score(each) for name, each in splits.items()}
    assert (scores["needle"], scores["passkey"]) == (44.5, 80.5)
    assert aggregate(scores, dict.fromkeys(scores, "Retrieval"), TYPES)["sets"] == pytest.approx(
        66.385, abs=0.001
    )


def test_a_task_of_several_splits_is_the_mean_of_their_means():
    assert task_score({"validation": {"all": 83.93}, "test": {"all": 71.25}}) == pytest.approx(
        77.59
    )
    assert task_score({"a": {"x": 1.0, "y": 0.0}, "b": {"x": 1.0}}) == pytest.approx(0.75)


mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'taskdistill[mteb]'")
from mteb.mocks import mock_tasks  # noqa: E402

from taskdistill.evaluate.mteb import MtebEncoder  # noqa: E402


class Sums:
    def __init__(self, name: str = "sums", version: str = "1") -> None:
        self.name, self.version, self.calls = name, version, 0

    def encode(self, texts, *, task, prompt_name):
        self.calls += 1
        return np.stack(
            [
                np.random.default_rng(sum(map(ord, text)) + len(self.version)).standard_normal(8)
                for text in texts
            ]
        )

    def fingerprint(self) -> str:
        return self.version


def out_of_reach() -> object:
    class Far(mock_tasks.MockSTSTask):
        metadata = mock_tasks.MockSTSTask().metadata.model_copy(update={"name": "FarSTS"})

        def load_data(self, **_):
            raise ConnectionError("no way to the hub")

    return Far()


def test_names_of_suites():
    assert {name: len(suite_tasks(name)) for name in SUITES} == {
        "MTEB(eng, v2)": 41,
        "MTEB(Multilingual, v2)": 131,
        "RTEB public": 16,
        "LongEmbed": 6,
        "BEIR": 15,
    }
    assert (
        suite_name("eng") == "MTEB(eng, v2)"
        and suite_name("beir") == "BEIR"
        and suite_name("mteb(eng, V2)") == "MTEB(eng, v2)"
    )
    with pytest.raises(
        BadInput, match=r"no suite 'MTEB\(engl, v2\)'; did you mean 'MTEB\(eng, v2\)'"
    ):
        suite_name("MTEB(engl, v2)")
    with pytest.raises(BadInput, match="on more than texts"):
        suite_tasks("MIEB(lite)")


def test_tasks_run_once_keep_their_scores_and_name_what_is_missing(tmp_path):
    tasks = [mock_tasks.MockSTSTask(), mock_tasks.MockRetrievalTask(), out_of_reach()]
    model, seen, lines = Sums(), [], []
    result = run_suite(
        [MtebEncoder(model)],
        ["sums"],
        "mocks",
        tasks,
        tmp_path,
        progress=lambda *x: seen.append(x),
        note=lines.append,
    )
    ours = result["models"]["sums"]
    assert (
        result["missing"] == {"FarSTS": "ConnectionError: no way to the hub"}
        and "FarSTS  sums  left out" in lines[-1]
    )
    assert seen == [(1, 3), (2, 3), (3, 3)] and set(ours["scores"]) == {
        "MockSTSTask",
        "MockRetrievalTask",
    }
    assert ours["means"]["types"] == pytest.approx(np.mean(list(ours["means"]["by_type"].values())))
    assert list(ours["means"]["by_type"]) == ["Retrieval", "STS"] and all(
        math.isfinite(x) for x in ours["scores"].values()
    )
    calls = model.calls
    tasks = [mock_tasks.MockSTSTask(), mock_tasks.MockRetrievalTask(), out_of_reach()]
    assert (
        run_suite([MtebEncoder(model)], ["sums"], "mocks", tasks, tmp_path) == result
        and model.calls == calls
    )
    other = Sums(version="22")
    again = run_suite([MtebEncoder(other)], ["sums"], "mocks", tasks, tmp_path)
    assert other.calls == calls and again["models"]["sums"]["revision"] != ours["revision"]


def test_a_suite_without_data_says_what_to_do(tmp_path):
    with pytest.raises(
        BadInput,
        match=(
            "the data of no task of mocks can be had: ConnectionError: no way to the hub; mteb"
            " takes it from"
        ),
    ):
        run_suite([MtebEncoder(Sums())], ["sums"], "mocks", [out_of_reach()], tmp_path)
    assert not list(Path(tmp_path).rglob("*.json"))


def test_a_model_that_fails_is_told_apart_from_missing_data(tmp_path):
    class Broken(Sums):
        def encode(self, texts, *, task, prompt_name):
            return np.full((len(texts), 4), np.nan)

    with pytest.raises(BadInput, match="returned NaN or infinity"):
        run_suite(
            [MtebEncoder(Broken())], ["broken"], "mocks", [mock_tasks.MockSTSTask()], tmp_path
        )

    class Odd(Sums):
        def encode(self, texts, *, task, prompt_name):
            raise KeyError("inside the model")

    with pytest.raises(
        WorkFailed, match=r"could not score MockSTSTask: KeyError: 'inside the model'"
    ):
        run_suite([MtebEncoder(Odd())], ["odd"], "mocks", [mock_tasks.MockSTSTask()], tmp_path)
