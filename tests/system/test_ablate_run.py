"""The whole experiment on tiny things: results, report, resume after a kill to the same bits, two
jobs as one.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny, tiny_ablation
from helpers.forked import Forked
from helpers.tiny_run import Recorder

from taskdistill.ablate.arms import ARMS
from taskdistill.ablate.controls import control_warning
from taskdistill.ablate.experiment import ablate
from taskdistill.ablate.measure import open_sets
from taskdistill.ablate.report import report_data
from taskdistill.errors import BadInput
from taskdistill.report.page import render_report
from taskdistill.train.context import Interrupted
from taskdistill.train.log import Log


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


def small(home: Path, **changed: Any):
    return tiny_ablation.experiment(home / "data", home / "teacher", **changed)


@pytest.fixture(scope="module")
def undisturbed(home) -> tuple[dict[str, Any], Recorder]:
    progress = Recorder()
    return ablate(small(home), home / "undisturbed", progress=progress), progress


def bits(results: dict[str, Any]) -> dict[str, Any]:
    """What a continued run must give to the last bit: weights, curves but for their seconds, and
    scores.
    """
    runs = {
        f"{name} {run['seed']}": run for name, arm in results["arms"].items() for run in arm["runs"]
    }
    return {
        key: (
            run["hashes"],
            run["score"],
            [(point["step"], point["score"], point["distance"]) for point in run["curve"]],
        )
        for key, run in runs.items()
    } | {"trials": [[trial["score"] for trial in trials] for trials in results["tuning"].values()]}


def test_results_hold_every_arm_seed_interval_trial_budget_and_hash(undisturbed, home):
    results, _ = undisturbed
    assert json.loads((home / "undisturbed/results.json").read_text()) == json.loads(
        json.dumps(results)
    )
    assert list(results["arms"]) == ["A0", "D", "C", "DC"]
    for name, arm in results["arms"].items():
        assert [run["seed"] for run in arm["runs"]] == ([3] if name == "A0" else [3, 4])
        assert arm["score"]["estimate"][0] == pytest.approx(
            np.mean([run["score"] for run in arm["runs"]])
        )
        assert arm["sets"]["retrieval/qa"]["mean"] == pytest.approx(arm["score"]["estimate"][0])
        assert set(arm["variants"]) == {"float", "binary", "dim-8"}
        for run in arm["runs"]:
            assert run["budget"]["steps"] == (0 if name == "A0" else 8)
            assert (
                run["budget"]["cpu_seconds"] >= 0
                and run["hashes"]["checkpoint"] == results["same"]["checkpoint"]
            )
    assert {name: len(trials) for name, trials in results["tuning"].items()} == {
        "D": 2,
        "C": 2,
        "DC": 2,
    }
    assert results["verdict"]["state"] in ("supported", "contradicted", "undecided")
    claim = [each for each in results["contrasts"] if not each["exploratory"]]
    assert [each["name"] for each in claim] == ["DC - D", "DC - C"]
    value = {name: arm["score"]["estimate"][0] for name, arm in results["arms"].items()}
    assert claim[0]["estimate"][0] == pytest.approx(value["DC"] - value["D"])
    interaction = next(each for each in results["contrasts"] if each["family"] == "interaction")
    assert interaction["estimate"][0] == pytest.approx(
        value["DC"] - value["D"] - value["C"] + value["A0"]
    )
    assert results["frozen"]["digest"] == small(home).digest()


def test_the_teachers_own_weights_read_as_a_student_keep_its_score(undisturbed):
    found = undisturbed[0]["positive_control"]
    assert found["retention"] == pytest.approx(1, abs=1e-3)
    assert (
        control_warning(found) == []
        and "keep 90.0 %" in control_warning({**found, "retention": 0.9})[0]
    )


def test_the_smallest_effect_and_the_expectation_are_told_before_any_arm_is_compared(undisturbed):
    _, progress = undisturbed
    told = [*progress.notes]
    effects = [note for note in told if note.startswith("smallest effect")]
    assert len(effects) == 2 and "pilot" in effects[1] and "pilot" not in effects[0]
    assert told[0].startswith("frozen as") and "expected: On small students" in told[0]
    assert progress.stages.index("pilot: DC with 2 seeds") < progress.stages.index(
        "7 runs of 4 arms, 8 steps each"
    )


def test_the_report_is_one_file_that_says_what_the_results_say(undisturbed, home):
    results, _ = undisturbed
    page = (home / "undisturbed/report.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    for words in (
        "Before you trust these numbers",
        "DC - D",
        "Learning curves",
        "Tuning",
        results["frozen"]["digest"][:16],
    ):
        assert words in page
    assert f"{100 * results['arms']['D']['score']['estimate'][0]:.1f}" in page
    assert render_report(
        report_data(results, "taskdistill ablate recipe.yaml --out undisturbed")
    ) == render_report(
        report_data(
            json.loads(json.dumps(results)), "taskdistill ablate recipe.yaml --out undisturbed"
        )
    )


def test_run_again_nothing_is_trained_again(undisturbed, home):
    before = {path: path.stat().st_mtime_ns for path in home.glob("undisturbed/**/result.json")}
    progress = Recorder()
    again = ablate(small(home), home / "undisturbed", progress=progress)
    assert {
        path: path.stat().st_mtime_ns for path in home.glob("undisturbed/**/result.json")
    } == before
    assert bits(again) == bits(undisturbed[0])


def test_another_experiment_is_refused_with_the_difference(undisturbed, home):
    with pytest.raises(BadInput, match=r"ablation.seeds: 2 then, 3 now"):
        ablate(small(home, seeds=3), home / "undisturbed")
    (home / "elsewhere").mkdir()
    (home / "elsewhere/file").write_text("x")
    with pytest.raises(BadInput, match="no ablation's folder"):
        ablate(small(home), home / "elsewhere")
    with pytest.raises(BadInput, match="--jobs 0"):
        ablate(small(home), home / "new", jobs=0)


def child(home: str, out: str, lines: int) -> None:
    left, write = [lines], Log.write

    def counted(log: Log, record: dict[str, Any]) -> None:
        write(log, record)
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Log.write = counted  # type: ignore[method-assign]
    ablate(small(Path(home)), Path(out))


@pytest.mark.parametrize(
    "lines", [pytest.param(6, marks=pytest.mark.slow), 31, pytest.param(60, marks=pytest.mark.slow)]
)
def test_killed_and_run_again_it_ends_with_the_same_bits(undisturbed, home, lines):
    out = home / f"killed-{lines}"
    with Forked(child, str(home), str(out), lines) as process:
        assert process.wait() == -signal.SIGKILL and not (out / "results.json").exists()
    assert bits(ablate(small(home), out)) == bits(undisturbed[0])


def test_stopped_politely_and_run_again_it_ends_with_the_same_bits(undisturbed, home):
    asked = iter(range(1_000))
    with pytest.raises(Interrupted, match="run the same command again"):
        ablate(small(home), home / "stopped", should_stop=lambda: next(asked) > 70)
    assert bits(ablate(small(home), home / "stopped")) == bits(undisturbed[0])


@pytest.mark.slow
def test_two_jobs_give_the_numbers_of_one(undisturbed, home):
    assert bits(ablate(small(home), home / "two", jobs=2)) == bits(undisturbed[0])


@pytest.mark.slow
def test_every_arm_runs_and_every_contrast_is_made(home):
    results = ablate(small(home, arms=list(ARMS), trials=1, longest=2.0), home / "every")
    assert list(results["arms"]) == list(ARMS)
    steps = {name: arm["runs"][0]["budget"]["steps"] for name, arm in results["arms"].items()}
    assert (
        steps["C-flops"] == round(8 * results["matched"]["flops"]["run"])
        and steps["C-large"] == steps["D->DC"] == 8
    )
    tokens = {name: arm["runs"][0]["budget"]["tokens"] for name, arm in results["arms"].items()}
    assert (
        tokens["D"]
        == tokens["C"]
        == tokens["DC"]
        == tokens["D->DC"]
        == tokens["DC+gor"]
        < tokens["C-large"]
    )
    names = {each["name"] for each in results["contrasts"]}
    assert {
        "regulariser on binary, DC",
        "Matryoshka on 8",
        "DC+gor - C+gor",
        "D-shuffled - A0",
        "DC - C-flops",
        "D->DC - D->D",
    } <= names
    loss = {each["name"]: each["estimate"][0] for each in results["contrasts"]}
    mean = {
        name: {variant: each["mean"] for variant, each in arm["variants"].items()}
        for name, arm in results["arms"].items()
    }
    cost = {name: each["binary"] - each["float"] for name, each in mean.items()}
    assert loss["regulariser on binary, DC"] == pytest.approx(cost["DC+gor"] - cost["DC"])
    assert loss["Matryoshka on 8"] == pytest.approx(
        mean["DC"]["dim-8"]
        - mean["DC"]["float"]
        - mean["DC-mrl"]["dim-8"]
        + mean["DC-mrl"]["float"]
    )


def test_a_set_without_retrieval_is_refused(home):
    experiment = small(home)
    wanted = experiment.recipe.evaluation.model_copy(update={"sets": ["sts/sts"]})
    changed = type(experiment)(
        experiment.recipe.model_copy(update={"evaluation": wanted}), experiment.ablation, ()
    )
    with pytest.raises(BadInput, match="no retrieval set"):
        open_sets(changed, home / "data")
