"""The loop under bad luck: losses and gradients that are not finite, a rate that destroys the
weights, and what the log says.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny, tiny_run
from safetensors.torch import load_file
from torch import Tensor

from taskdistill.errors import WorkFailed
from taskdistill.pipeline import phases as stages
from taskdistill.train.checkpoint import list_checkpoints
from taskdistill.train.collate import TrainBatch
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.log import read_lines
from taskdistill.train.objective import Objective


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


def stage1(home: Path, **fields: Any) -> dict[str, Any]:
    raw = tiny.recipe(home / "data", home / "teacher", steps=8)
    del raw["static"]
    raw["adapters"] = {}
    raw["teacher"]["store"] = str(home / "store")
    raw["stage1"] |= fields
    return raw


@pytest.fixture
def states(monkeypatch) -> list[dict[str, Tensor]]:
    """The trained weights before the first step and after each."""
    kept: list[dict[str, Tensor]] = []
    run_phase = stages.run_phase

    def watched(job: Phase, model: Any, folder: Path, ctx: TrainContext) -> None:
        def keep(record: dict[str, Any]) -> None:
            kept.append(
                {name: p.detach().clone() for name, p in (job.trained | job.moving_heads()).items()}
            )
            told(record)

        told, ctx.on_step = ctx.on_step, keep
        kept.append(
            {name: p.detach().clone() for name, p in (job.trained | job.moving_heads()).items()}
        )
        run_phase(job, model, folder, ctx)

    monkeypatch.setattr(stages, "run_phase", watched)
    return kept


def spoil(monkeypatch, at: set[int], how: str) -> None:
    """Make the loss, or only its gradient, not finite at some steps."""

    def spoilt(
        self: Objective, vectors: Tensor, prepared: TrainBatch, *given: Any
    ) -> tuple[dict[str, Tensor], float]:
        terms, masked = plain(self, vectors, prepared, *given)
        if prepared.batch.step in at:
            value = terms["distill"]
            terms["distill"] = (
                value * math.nan if how == "loss" else value + (vectors[0, 0] * 0).sqrt()
            )
        return terms, masked

    plain = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", spoilt)


def unchanged(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_logged(
    home, tmp_path, monkeypatch, states, how
):
    spoil(monkeypatch, {3, 4}, how)
    progress = tiny_run.train(stage1(home), tmp_path / "run")
    moved = [not unchanged(before, after) for before, after in pairwise(states)]
    assert moved == [True, True, True, False, False, True, True, True]
    assert [record["skipped"] for record in progress.records] == [not each for each in moved]
    logged = [
        record for _, record in read_lines(tmp_path / "run" / "log.jsonl") if "step" in record
    ]
    assert [record["step"] for record in logged] == list(range(8))
    assert (logged[3]["loss"] is None) is (how == "loss") and logged[3]["grad_norm"] is None
    assert len(logged[3]["rows"]) == 6 and "rows" not in logged[2]
    assert all(torch.isfinite(value).all() for value in states[-1].values())


def test_too_many_in_a_row_end_the_work_with_a_valid_checkpoint(
    home, tmp_path, monkeypatch, states
):
    spoil(monkeypatch, set(range(4, 100)), "loss")
    with pytest.raises(
        WorkFailed,
        match=(
            r"not finite 3 times in a row, the last at step 6 \(rows .* the last checkpoint is that"
            r" of step 6"
        ),
    ):
        tiny_run.train(stage1(home, max_bad_steps=2), tmp_path / "run")
    assert len(states) == 8 and unchanged(states[4], states[7])
    newest = list_checkpoints(tmp_path / "run" / "checkpoints" / "stage1")[-1]
    assert newest.name == "step-0000006" and unchanged(
        states[4], load_file(newest / "weights.safetensors")
    )
    monkeypatch.undo()
    tiny_run.train(stage1(home, max_bad_steps=2), tmp_path / "run")
    assert [step for step, _ in tiny_run.steps(tmp_path / "run")["stage1"]] == list(range(8))


def test_bad_steps_apart_are_forgiven(home, tmp_path, monkeypatch):
    spoil(monkeypatch, {0, 2, 4, 6}, "loss")
    progress = tiny_run.train(stage1(home, max_bad_steps=1), tmp_path / "run")
    assert [record["skipped"] for record in progress.records] == [True, False] * 4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_rate_that_destroys_the_weights_ends_the_work_and_no_saved_weight_is_infinite(
    home, tmp_path, family
):
    tiny.write_tokenizer(tmp_path / "tokenizer", end=family != "bert")
    raw = stage1(home, lr=1e20, steps=100, checkpoint_every=1, warmup=0)
    raw["student"] = {
        "init": "config",
        "config": tiny.config(family),
        "tokenizer": str(tmp_path / "tokenizer"),
        "pooling": tiny.pooling_of(family).value,
        "max_length": 64,
        "matryoshka_dims": [],
    }
    with pytest.raises(WorkFailed, match=r"lower stage1.lr \(1e\+20\)"):
        tiny_run.train(raw, tmp_path / "run")
    assert len(tiny_run.steps(tmp_path / "run")["stage1"]) <= 100
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path
    assert not (tmp_path / "run" / "model").exists()


def test_the_log_of_a_step_says_everything_that_a_plot_needs(home, tmp_path):
    raw = stage1(home)
    raw["adapters"] = {
        "retrieval": tiny.recipe(home / "data", home / "teacher")["adapters"]["retrieval"]
    }
    records = tiny_run.train(raw, tmp_path / "run").records
    first, last = records[0], records[-1]
    assert (
        first["phase"] == "stage1"
        and first["dataset"] in ("qa", "lone")
        and first["lr"] == pytest.approx(1e-3)
    )
    assert last["phase"] == "adapters.retrieval" and set(last["terms"]) == {
        "info_nce",
        "distill",
        "gor",
    }
    assert last["loss"] == pytest.approx(
        last["terms"]["info_nce"] + 2 * last["terms"]["distill"] + last["terms"]["gor"], rel=1e-6
    )
    assert set(last["seconds"]) == {
        "data",
        "tokenise",
        "teacher",
        "forward",
        "loss",
        "backward",
        "optimiser",
    }
    assert (
        last["texts_per_s"] == pytest.approx(last["texts"] / sum(last["seconds"].values()))
        and last["texts"] < last["tokens"]
    )
    assert (
        0 <= last["masked"] < 1
        and last["grad_norm"] > 0
        and last["clipped"] is (last["grad_norm"] > 1)
    )
    assert last["temperature"] == pytest.approx(0.02, rel=0.1) and last["temperature"] != 0.02
    assert "temperature" not in first


def test_frozen_parts_stay_and_moving_parts_move(home, tmp_path, states):
    raw = stage1(home, freeze_embeddings=True)
    raw["adapters"] = {
        "retrieval": tiny.recipe(home / "data", home / "teacher")["adapters"]["retrieval"]
    }
    tiny_run.train(raw, tmp_path / "run")
    names = set(states[0])
    assert "embeddings.word_embeddings.weight" not in names and "projection.weight" in names
    assert not [
        name
        for name in names
        if torch.equal(states[0][name], states[8][name]) and "key.bias" not in name
    ]
    adapter = set(states[9])
    assert all(
        ".lora_" in name or name == "log_temperature" for name in adapter
    )  # stage 1's projection is kept as it is
    assert all(states[9][name].abs().max() == 0 for name in adapter if ".lora_B." in name)
    assert not [name for name in adapter if torch.equal(states[9][name], states[-1][name])]


def test_the_projection_is_trained_further_only_if_asked_for(home, tmp_path):
    found = []
    for further in (False, True):
        raw = stage1(home)
        raw["adapters"] = {
            "retrieval": (
                tiny.recipe(home / "data", home / "teacher")["adapters"]["retrieval"]
                | {"train_projection": further}
            )
        }
        out = tmp_path / f"run-{further}"
        tiny_run.train(raw, out)
        kept = load_file(out / "phases" / "stage1" / "weights.safetensors")
        folder = load_file(out / "model" / "projection.safetensors")
        assert torch.equal(
            folder["weight"], kept["projection.weight"]
        )  # the model's projection is stage 1's in either case
        found.append(
            load_file(out / "phases" / "adapters.retrieval" / "weights.safetensors").keys()
        )
    assert found[1] - found[0] == {"projection.weight", "projection.bias"}
