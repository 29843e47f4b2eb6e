"""The benchmark of the published recipe at full architecture, at a tiny size: every phase runs
through `train`, and its figures are whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PHASES = [
    "stage1",
    "long",
    "adapters.retrieval",
    "adapters.text-matching",
    "adapters.clustering",
    "adapters.classification",
]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import full_architecture

        yield full_architecture
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_every_phase_is_run_and_measured(bench, tmp_path, capsys):
    bench.main(
        [
            "--quick",
            "--steps",
            "2",
            "--scratch",
            str(tmp_path),
            "--json",
            str(tmp_path / "out.json"),
            "--device",
            "cpu",
            "--peak",
            "1",
        ]
    )
    found = json.loads((tmp_path / "out.json").read_text())
    assert [each["phase"] for each in found["phases"]] == PHASES
    for each in found["phases"]:
        assert (
            each["steps"] == len(each["losses"]) == 2
            and each["skipped"] == 0
            and each["tokens"] > 50
        )
        assert (
            each["seconds"] > 0
            and each["tokens_per_second"] > 0
            and 0 < each["gib"] <= found["gib"]
        )
        assert 0 < each["share_of_rate"] <= each["share_of_rate_in_passes"] < 1
    assert (
        found["weights"]
        == 600 * 32 + 2 * (32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 64 + 2 * 32 + 2 * 8) + 32
    )
    printed = capsys.readouterr().out
    assert all(f"{phase} " in printed for phase in PHASES) and "of the data sheet" in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_only_the_amount_of_work_differs_from_the_published_recipe(bench, tmp_path):
    published = yaml.safe_load(bench.RECIPE.read_text("utf-8"))
    sizes = {"steps": 3, "rows": 2, "long_rows": 2, "width": 1024, "teacher_width": 2560}
    derived = bench.derive(tmp_path, on_cpu=False, **sizes)
    amounts = {"sources", "steps", "batch_size", "long_sources"}
    for name in ("stage1", "long"):
        assert {key: value for key, value in derived[name].items() if key not in amounts} == {
            key: value for key, value in published[name].items() if key not in amounts
        }
    for task, settings in published["adapters"].items():
        assert {
            key: value for key, value in derived["adapters"][task].items() if key not in amounts
        } == {key: value for key, value in settings.items() if key not in amounts}
    assert derived["precision"] == "bfloat16" and derived["student"] == published["student"] | {
        "init": str(tmp_path / "student")
    }
    assert derived["teacher"] == published["teacher"] | {"model": str(tmp_path / "teacher")}
