"""Scores while training: they move no weight, a continued run scores the same, and the best weights
end the phase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny, tiny_run
from safetensors.torch import load_file

from taskdistill.errors import BadInput
from taskdistill.evaluate import dev
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.set_data import RankingData
from taskdistill.pipeline import phases, validation
from taskdistill.pipeline.check import check_sets, check_student
from taskdistill.pipeline.setup import start_student
from taskdistill.train.context import Interrupted
from taskdistill.train.log import read_lines
from taskdistill.train.validation import Validation

SETS = ["retrieval/qa-dev", "sts/sts", "clustering/topics", "classification/topics"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


def recipe(
    home: Path, during: dict[str, Any] | None = None, steps: int = 6, adapters: tuple[str, ...] = ()
) -> dict[str, Any]:
    raw = tiny.recipe(home / "data", home / "teacher", steps=steps)
    del raw["static"]
    raw["adapters"] = {name: raw["adapters"][name] for name in adapters}
    raw["teacher"]["store"] = str(home / "store")
    raw["evaluation"] = {"dev": SETS} | ({} if during is None else {"during": during})
    return raw


def evaluated(out: Path) -> list[dict[str, Any]]:
    lines = [record for _, record in read_lines(out / "log.jsonl") if "evaluated" in record]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in lines]


def test_scores_of_all_four_types_are_logged_and_move_no_weight(home, tmp_path):
    adapters = ("retrieval", "classification")
    plain = recipe(home, adapters=adapters, steps=4)
    tiny_run.train(plain, tmp_path / "plain")
    progress = tiny_run.train(
        recipe(home, {"every": 3}, adapters=adapters, steps=4), tmp_path / "watched"
    )
    assert tiny_run.weights(tmp_path / "watched") == tiny_run.weights(tmp_path / "plain")
    assert tiny_run.steps(tmp_path / "watched") == tiny_run.steps(tmp_path / "plain")
    lines = evaluated(tmp_path / "watched")
    assert [(line["phase"], line["evaluated"]) for line in lines] == [
        (phase, step)
        for phase in ("stage1", "adapters.retrieval", "adapters.classification")
        for step in (0, 3, 4)
    ]
    stage1, retrieval, classification = (lines[n]["scores"] for n in (0, 3, 6))
    assert {name.split(":")[0] for name in stage1} == {
        *SETS,
        "mean",
    } and "retrieval/qa-dev:nDCG@10" in stage1
    assert {name.split(":")[0] for name in retrieval} == {"retrieval/qa-dev", "mean"}
    assert {name.split(":")[0] for name in classification} == {"classification/topics", "mean"}
    mains = [
        stage1[f"{name}:{metric}"]
        for name, metric in zip(SETS, ("nDCG@10", "Spearman", "V-measure", "accuracy"), strict=True)
    ]
    assert (
        stage1["mean"] == pytest.approx(sum(mains) / 4) and lines[0]["scores"] != lines[1]["scores"]
    )
    assert (
        any(note.startswith("stage1: after step 3, ") for note in progress.notes)
        and "best" not in lines[0]
    )
    assert not list((tmp_path / "watched").glob("checkpoints/*.best"))


class Scripted:
    """Gives scores by the number of updates done, and remembers the weights that it saw."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, script: dict[int, float], keep: str | None = "mean"
    ) -> None:
        self.script, self.seen, self.step = script, list[int](), 0
        run_phase = phases.run_phase

        def watched(job, model, folder, ctx):
            self.kept, self.step = {}, 0

            def score() -> dict[str, float]:
                state = {
                    name: p.detach().clone()
                    for name, p in (job.trained | job.moving_heads()).items()
                }
                step = self.step
                self.seen.append(step)
                self.kept[step] = state
                return {"mean": self.script[step], "other": -self.script[step]}

            def told(record):
                self.step = record["step"] + 1
                tell(record)

            tell, ctx.on_step = ctx.on_step, told
            ctx.during = Validation(2, score, keep)
            note = ctx.note

            def noted(text: str) -> None:
                if "continued at step" in text:
                    self.step = int(text.split("continued at step ")[1].split(",")[0])
                note(text)

            ctx.note = noted
            run_phase(job, model, folder, ctx)

        monkeypatch.setattr(phases, "run_phase", watched)


@pytest.mark.parametrize(
    ("script", "keep", "best"),
    [
        ({0: 0.1, 2: 0.5, 4: 0.4, 6: 0.3}, "mean", 2),
        ({0: 0.1, 2: 0.5, 4: 0.4, 6: 0.3}, "other", 0),
        ({0: 0.1, 2: 0.2, 4: 0.2, 6: 0.3}, "mean", 6),
        ({0: 0.1, 2: 0.2, 4: 0.2, 6: 0.2}, "mean", 2),
    ],
)
def test_a_phase_ends_with_the_weights_that_scored_best(
    home, tmp_path, monkeypatch, script, keep, best
):
    scripted = Scripted(monkeypatch, script, keep)
    progress = tiny_run.train(recipe(home), tmp_path / "run")
    assert scripted.seen == [0, 2, 4, 6]
    final = load_file(tmp_path / "run/phases/stage1/weights.safetensors")
    assert final.keys() == scripted.kept[best].keys()
    assert all(torch.equal(final[name], scripted.kept[best][name]) for name in final)
    assert any(f"the weights of step {best} are kept" in note for note in progress.notes)
    assert evaluated(tmp_path / "run")[0]["best"] is True


SCRIPT = {0: 0.1, 2: 0.5, 4: 0.4, 6: 0.3}


@pytest.fixture(scope="module")
def whole(home) -> Path:
    """A run with scripted scores that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        Scripted(patch, SCRIPT)
        tiny_run.train(recipe(home), home / "whole")
    return home / "whole"


@pytest.mark.parametrize("moment", [1, 3, 4, 5])
def test_a_stopped_run_scores_on_and_keeps_the_same(home, whole, tmp_path, monkeypatch, moment):
    Scripted(monkeypatch, SCRIPT)
    with pytest.raises(Interrupted):
        tiny_run.train(recipe(home), tmp_path / "run", should_stop=tiny_run.stop_before(moment))
    tiny_run.train(recipe(home), tmp_path / "run")
    assert tiny_run.weights(tmp_path / "run") == tiny_run.weights(whole)
    assert evaluated(tmp_path / "run") == evaluated(whole)


def test_a_run_killed_before_its_scores_were_written_scores_again(home, tmp_path, monkeypatch):
    tiny_run.train(recipe(home, {"every": 3, "keep": "mean"}), tmp_path / "whole")
    evaluate_set, left = dev.evaluate_set, [6]

    def killed(*given, **named):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate_set(*given, **named)

    monkeypatch.setattr(dev, "evaluate_set", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny_run.train(recipe(home, {"every": 3, "keep": "mean"}), tmp_path / "run")
    monkeypatch.undo()
    assert [line["evaluated"] for line in evaluated(tmp_path / "run")] == [0]
    tiny_run.train(recipe(home, {"every": 3, "keep": "mean"}), tmp_path / "run")
    assert evaluated(tmp_path / "run") == evaluated(tmp_path / "whole")
    assert tiny_run.weights(tmp_path / "run") == tiny_run.weights(tmp_path / "whole")


def test_other_settings_are_refused_only_where_scores_choose_the_weights(home, tmp_path):
    def stopped(out: Path, during: dict[str, Any]) -> None:
        with pytest.raises(Interrupted):
            tiny_run.train(recipe(home, during), out, should_stop=tiny_run.stop_before(1))

    stopped(tmp_path / "logged", {"every": 3})
    tiny_run.train(recipe(home, {"every": 2}), tmp_path / "logged")
    stopped(tmp_path / "kept", {"every": 3, "keep": "mean"})
    with pytest.raises(
        BadInput, match=r"begun with another recipe \(evaluation.during.every: 3 then, 2 now\)"
    ):
        tiny_run.train(recipe(home, {"every": 2, "keep": "mean"}), tmp_path / "kept")
    raw = recipe(home, {"every": 3, "keep": "mean"})
    raw["evaluation"]["max_queries"] = 5
    tiny_run.train(raw, tmp_path / "kept")


def test_settings_that_cannot_work_are_found_before_the_first_step(home):
    with pytest.raises(BadInput, match=r"during names no sets, and dev neither"):
        raw = recipe(home, {"every": 3})
        raw["evaluation"]["dev"] = []
        tiny.parsed(raw)
    for during, said in (
        (
            {"every": 3, "sets": ["sts/none"]},
            r"evaluation.during.sets: no evaluation set 'sts/none'",
        ),
        (
            {"every": 3, "keep": "sts/stss"},
            r"evaluation.during.keep names 'sts/stss'; did you mean 'sts/sts'",
        ),
    ):
        made = tiny.parsed(recipe(home, during))
        with pytest.raises(BadInput, match=said):
            check_student(made, start_student(made).module, [32])
            check_sets(made, home / "data")


def test_an_unknown_metric_is_refused_before_the_first_step(home, tmp_path):
    raw = recipe(home, {"every": 3, "keep": "sts/sts:Kendall"})
    with pytest.raises(
        BadInput,
        match=r"keep is 'sts/sts:Kendall', but sts/sts has no metric 'Kendall'; known: Spearman",
    ):
        tiny_run.train(raw, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_named_to_keep_by_acts_where_it_is_scored():
    kinds = {"sts/sts": TASK_TYPES["sts"]}
    assert (
        validation._metric("sts/sts", kinds) == "sts/sts:Spearman"
        and validation._metric("sts/sts:x", kinds) == "sts/sts:x"
    )
    assert (
        validation._metric("retrieval/qa", kinds) is None
        and validation._metric("mean", kinds) == "mean"
    )


def test_a_corpus_is_cut_to_the_judged_documents_and_some_others():
    documents = {f"d{n}": f"text {n}" for n in range(100)}
    data = RankingData(
        documents=documents, queries={"q": "query"}, qrels={"q": {"d7": 1, "d90": 0}}
    )
    cut = validation._cut(data, 10, 3)
    assert (
        len(cut.documents) == 10
        and {"d7", "d90"} <= cut.documents.keys()
        and cut.documents == validation._cut(data, 10, 3).documents
    )
    assert list(cut.documents) == sorted(cut.documents, key=lambda name: int(name[1:]))
    assert (
        validation._cut(data, 1, 3).documents.keys() == {"d7", "d90"}
        and validation._cut(data, None, 3) is data
    )
