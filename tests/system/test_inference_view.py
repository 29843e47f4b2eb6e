"""What decides which weights are kept scores the model that ships: at its theta of inference,
without dropout, in the type of its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny, tiny_run
from safetensors.torch import load_file

from taskdistill.evaluate import dev
from taskdistill.model.averaging import average
from taskdistill.model.folder import read_model
from taskdistill.model.inference import inference_view, put_rope, read_rope
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.pipeline import phases
from taskdistill.train.log import read_lines
from taskdistill.train.validation import Validation, best_so_far

TRAINED_AT, SHIPPED_AT = 50.0, 1000.0


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher", family="qwen3")
    return root


def recipe(
    home: Path, adapters: tuple[str, ...] = (), during: dict[str, Any] | None = None, **adapter: Any
) -> dict[str, Any]:
    raw = tiny.recipe(home / "data", home / "teacher", steps=2)
    del raw["static"]
    raw["adapters"] = {
        name: raw["adapters"][name] | {"rope_theta": TRAINED_AT} | adapter for name in adapters
    }
    raw["stage1"]["rope_theta"] = TRAINED_AT
    raw["student"]["rope_theta"] = SHIPPED_AT
    raw["teacher"]["store"] = str(home / "store")
    raw["evaluation"] = {"dev": ["retrieval/qa-dev", "sts/sts"]} | (
        {} if during is None else {"during": during}
    )
    return raw


class Seen:
    """What the student is each time a set is scored, and each time a step has been trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored, self.stepped, self.asked = list[Any](), list[Any](), list[Any]()
        evaluate_set, run_phase = dev.evaluate_set, phases.run_phase
        model: Any = None

        def state() -> tuple[float, bool, bool]:
            return rope_theta(model.backbone), model.training, torch.is_autocast_enabled("cpu")

        def scored(embedder: Any, name: str, *given: Any, **named: Any) -> Any:
            self.scored.append(state())
            encode = embedder.encoder.encode_reporting

            def told(texts: Any, **asked: Any) -> Any:
                self.asked.append((name, asked["task"], asked["prompt_name"]))
                return encode(texts, **asked)

            embedder.encoder.encode_reporting = told
            return evaluate_set(embedder, name, *given, **named)

        def phase(job: Any, trained: Any, folder: Path, ctx: Any) -> None:
            nonlocal model
            model, on_step = trained, ctx.on_step
            ctx.on_step = lambda record: (self.stepped.append(state()), on_step(record))
            run_phase(job, trained, folder, ctx)

        monkeypatch.setattr(dev, "evaluate_set", scored)
        monkeypatch.setattr(phases, "run_phase", phase)


def test_scores_gate_and_averages_are_taken_at_inference_and_move_no_weight(
    home, tmp_path, monkeypatch
):
    adapters = ("retrieval",)
    plain = recipe(home, adapters, average={"gate": False})
    plain["evaluation"]["dev"] = []
    tiny_run.train(plain, tmp_path / "plain")
    seen = Seen(monkeypatch)
    watched = recipe(home, adapters, {"every": 1}, average={"gate": False})
    tiny_run.train(watched, tmp_path / "watched")
    assert seen.scored == [(SHIPPED_AT, False, False)] * (3 * 2 + 3), (
        "steps 0, 1 and 2 of stage 1 on two sets, of the adapter on one"
    )
    assert seen.stepped == [(TRAINED_AT, True, False)] * 4
    assert tiny_run.weights(tmp_path / "watched") == tiny_run.weights(tmp_path / "plain")
    assert {each[1:] for each in seen.asked[: 3 * 4]} == {(None, "query"), (None, "document")}
    assert {each for each in seen.asked if each[1]} == {
        ("retrieval/qa-dev", "retrieval", role) for role in ("query", "document")
    }
    gated = Seen(monkeypatch)
    tiny_run.train(recipe(home, adapters, average={"gate": True}), tmp_path / "gated")
    assert gated.scored == [(SHIPPED_AT, False, False)] * (2 * 2 + 2 + 2), (
        "ends of stage 1 and of the adapter, and the gate twice"
    )
    assert {each[1] for each in gated.asked[-4:]} == {"retrieval"}
    assert rope_theta(read_model(tmp_path / "gated/model").module.backbone) == SHIPPED_AT


def test_a_view_puts_everything_back_to_the_bit_also_where_scoring_fails():
    module = tiny.student("qwen3").train()
    inference = read_rope(module.backbone)
    set_rope_theta(module.backbone, TRAINED_AT)
    module.pooling_only = torch.nn.Dropout()
    module.pooling_only.eval()
    before, frequencies = module.backbone.rotary_emb, module.backbone.rotary_emb.inv_freq.clone()
    with (
        pytest.raises(ZeroDivisionError),
        torch.autocast("cpu", dtype=torch.bfloat16),
        inference_view(module, inference),
    ):
        assert (
            rope_theta(module.backbone) == SHIPPED_AT
            and not module.training
            and not torch.is_autocast_enabled("cpu")
        )
        assert not torch.equal(module.backbone.rotary_emb.inv_freq, frequencies)
        1 / 0
    assert rope_theta(module.backbone) == TRAINED_AT and module.backbone.rotary_emb is before
    assert (
        torch.equal(before.inv_freq, frequencies)
        and module.training
        and not module.pooling_only.training
    )
    put_rope(module.backbone, inference)
    assert rope_theta(module.backbone) == SHIPPED_AT


def test_models_without_rotary_positions_and_static_ones_have_a_view_too():
    for module, rope in (
        (tiny.student("bert").train(), read_rope(tiny.backbone("bert"))),
        (phases.StaticModel(torch.ones(3, 2)).train(), None),
    ):
        with inference_view(module, rope):
            assert not module.training
        assert module.training


class Scripted:
    """Scores by the phase and the number of updates done; what is scored after the phase is the
    averaged adapter.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, scores: dict[int, float], averaged: float
    ) -> None:
        self.kept: dict[int, dict[str, torch.Tensor]] = {}
        run_phase, made = phases.run_phase, phases.make_validation
        step = 0
        self.trained: Any = None

        def phase(job: Any, trained: Any, folder: Path, ctx: Any) -> None:
            nonlocal step
            step, self.trained = 0, job.trained
            on_step = ctx.on_step

            def told(record: Any) -> None:
                nonlocal step
                step = record["step"] + 1
                on_step(record)

            ctx.on_step = told
            run_phase(job, trained, folder, ctx)
            step = -1

        def score() -> dict[str, float]:
            self.kept[step] = {name: p.detach().clone() for name, p in self.trained.items()}
            return {"mean": averaged if step < 0 else scores[step]}

        def during(run: Any, student: Any, name: str, view: Any) -> Validation | None:
            made(run, student, name, view)
            return None if name == "stage1" else Validation(1, score, "mean")

        monkeypatch.setattr(phases, "run_phase", phase)
        monkeypatch.setattr(phases, "make_validation", during)


@pytest.mark.parametrize(
    ("scores", "averaged", "best", "kept"),
    [
        ({0: 0.5, 1: 0.4, 2: 0.3}, 0.5, 0, "best"),
        ({0: 0.5, 1: 0.4, 2: 0.3}, 0.6, 0, "averaged"),
        ({0: 0.1, 1: 0.4, 2: 0.3}, 0.2, 1, "best"),
    ],
)
def test_the_state_before_the_first_update_can_be_chosen_and_an_average_must_beat_it(
    home, tmp_path, monkeypatch, scores, averaged, best, kept
):
    """The average is that of the last state and the earlier one, whatever state scored best."""
    scripted = Scripted(monkeypatch, scores, averaged)
    raw = recipe(home, ("retrieval",), average={"gate": False, "earlier": 0.5})
    progress = tiny_run.train(raw, tmp_path / "run")
    final = load_file(tmp_path / "run/phases/adapters.retrieval/weights.safetensors")
    names = scripted.kept[0].keys()
    expected = (
        scripted.kept[best]
        if kept == "best"
        else average(scripted.kept[2], scripted.kept[1], 0.5, "factors")
    )
    assert all(torch.equal(final[name], expected[name]) for name in names)
    assert torch.equal(
        scripted.kept[-1][next(iter(names))],
        average(scripted.kept[2], scripted.kept[1], 0.5, "factors")[next(iter(names))],
    )
    chosen = best_so_far(tmp_path / "run/checkpoints/adapters.retrieval", {})
    assert chosen is not None and (chosen.step, chosen.metric, chosen.score) == (
        best,
        "mean",
        scores[best],
    )
    note = next(note for note in progress.notes if "are kept" in note)
    assert f"the weights of step {best} are kept" in note and (
        "before the first update" in note
    ) is (best == 0)
    assert any(note.endswith(f"averaged; {kept} kept") for note in progress.notes)
    records = [
        record for _, record in read_lines(tmp_path / "run/log.jsonl") if "averaged" in record
    ]
    assert records == [
        {"phase": "adapters.retrieval", "averaged": averaged, "best": scores[best], "kept": kept}
    ]
