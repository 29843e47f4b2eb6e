"""A run stopped or killed anywhere goes on to the same bits; a run of other things does not go on
at all.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny, tiny_run
from helpers.forked import Forked

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import read_manifest
from taskdistill.pipeline import phases
from taskdistill.train.context import Interrupted

STEPS = 6
KILLS = 6
PHASES = ("stage1", "adapters.retrieval", "adapters.classification")


def short(root: Path) -> dict[str, Any]:
    """A recipe of three phases whose teacher store lies beside its runs."""
    raw = tiny.recipe(root / "data", root / "teacher", steps=STEPS)
    del raw["static"], raw["adapters"]["text-matching"], raw["adapters"]["clustering"]
    for phase in (raw["stage1"], *raw["adapters"].values()):
        phase["checkpoint_every"] = 2
    raw["adapters"]["retrieval"]["average"] = {"earlier": 0.5, "gate": False}
    return raw


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Data, a teacher, its filled store, and a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    tiny_run.train(short(root), root / "whole")
    assert tiny_run.steps(root / "whole").keys() == set(PHASES)
    return root


def same_as_whole(home: Path, out: Path) -> None:
    assert tiny_run.weights(out) == tiny_run.weights(home / "whole")
    wanted = tiny_run.steps(home / "whole")
    assert tiny_run.steps(out) == wanted and all(
        [step for step, _ in lines] == list(range(STEPS)) for lines in wanted.values()
    )


def test_the_same_recipe_gives_the_same_bits_twice(home):
    tiny_run.train(short(home), home / "again")
    same_as_whole(home, home / "again")


@pytest.mark.parametrize(
    "number",
    [0, pytest.param(1, marks=pytest.mark.slow), 4, 7, pytest.param(17, marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_to_the_same_bits(home, tmp_path, number):
    raw, out = short(home), tmp_path / "run"
    raw["teacher"]["store"] = str(home / "teacher-store")
    wanted = tiny_run.weights(home / "whole")
    stops = 0
    while True:
        try:
            progress = tiny_run.train(
                raw,
                out,
                should_stop=tiny_run.stop_before(number) if stops == 0 else tiny_run.stop_before(7),
            )
            break
        except Interrupted as error:
            assert "everything is saved, run the same command again" in str(error)
            stops += 1
    assert stops >= 1 and tiny_run.weights(out) == wanted
    lines = tiny_run.steps(out)
    assert lines == tiny_run.steps(home / "whole")
    assert number == 0 or any(
        "continued at step" in note and "bit-identical to an uninterrupted run" in note
        for note in progress.notes
    )


def test_a_stop_while_the_teacher_embeds_keeps_what_is_embedded(home, tmp_path):
    raw = short(home)
    with pytest.raises(
        WorkFailed, match=r"texts are safe in the store .*run the same command again to continue"
    ):
        tiny_run.train(raw, tmp_path / "run", should_stop=lambda: True)
    progress = tiny_run.train(raw, tmp_path / "run")
    assert len(progress.records) == STEPS * len(PHASES)
    same_as_whole(home, tmp_path / "run")


@pytest.mark.parametrize("kills", [KILLS, pytest.param(3 * KILLS, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_goes_on_to_the_same_bits(home, tmp_path, kills):
    raw, out = short(home), tmp_path / "run"
    moments = random.Random(5)
    killed = 0
    while killed < kills:
        kind = moments.choice(["sync", "sync", "line", "seconds"])
        moment = (
            moments.uniform(0.2, 1.0)
            if kind == "seconds"
            else moments.randrange(2, 24 if kills == KILLS else 14)
        )
        with Forked(tiny_run.child, raw, str(out), kind, moment) as process:
            said, _ = process.communicate(120)
        assert process.returncode in (0, -signal.SIGKILL), said
        if process.returncode == 0:
            break
        killed += 1
    assert killed >= KILLS // 2, (
        "a quick machine ends the run before every kill has struck, but most must"
    )
    tiny_run.train(raw, out)
    same_as_whole(home, out)
    assert not list(out.rglob(".*"))


@pytest.fixture(scope="module")
def stopped_once(home) -> Path:
    """A run that was stopped in its first adapter."""
    raw = short(home)
    raw["teacher"]["store"] = str(home / "teacher-store")
    with pytest.raises(Interrupted):
        tiny_run.train(raw, home / "stopped", should_stop=tiny_run.stop_before(STEPS + 3))
    return home / "stopped"


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def again(home: Path, out: Path, **changes: Any) -> tiny_run.Recorder:
    raw = short(home)
    raw["teacher"]["store"] = str(home / "teacher-store")
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (raw[part] if part else raw)[name] = value
    return tiny_run.train(raw, out)


def test_another_recipe_is_refused_with_the_difference(home, stopped):
    with pytest.raises(
        BadInput,
        match=(
            r"begun with another recipe \(seed: 3 then, 4 now; stage1.lr: 0.001 then, 0.002 now\);"
            r" use a new --out"
        ),
    ):
        again(home, stopped, stage1__lr=2e-3, seed=4)
    again(home, stopped, name="another", evaluation={})  # moves no weight
    assert tiny_run.weights(stopped) == tiny_run.weights(home / "whole")


def test_a_phase_that_was_not_begun_may_change(home, stopped):
    raw = short(home)
    raw["teacher"]["store"] = str(home / "teacher-store")
    raw["adapters"]["classification"]["lr"] *= 2
    with pytest.raises(
        BadInput,
        match=(
            r"retrieval.lr: .* or delete what was trained by it \(adapters.retrieval in its phases"
            r" and checkpoints\)"
        ),
    ):
        again(
            home,
            stopped,
            adapters={**raw["adapters"], "retrieval": {**raw["adapters"]["retrieval"], "lr": 1.0}},
        )
    tiny_run.train(raw, stopped)
    wanted = tiny_run.weights(home / "whole")
    found = tiny_run.weights(stopped)
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if found[name] != wanted[name]} == {
        "phases/adapters.classification/weights.safetensors",
        "model/adapters/classification/adapter_model.safetensors",
    }


def test_a_finished_adapter_is_trained_again_with_other_settings_on_the_same_base(home, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(home / "whole", out)
    with pytest.raises(BadInput, match=r"adapters.classification.steps: 6 then, 4 now"):
        again(home, out, adapters=fewer(home))
    for part in ("phases", "checkpoints"):
        shutil.rmtree(out / part / "adapters.classification")
    again(home, out, adapters=fewer(home))
    steps, before = tiny_run.steps(out), tiny_run.steps(home / "whole")
    assert len(steps["adapters.classification"]) == 4
    assert {name: steps[name] for name in PHASES[:2]} == {name: before[name] for name in PHASES[:2]}


def fewer(home: Path) -> dict[str, Any]:
    adapters = short(home)["adapters"]
    return {**adapters, "classification": {**adapters["classification"], "steps": 4}}


def test_other_threads_go_on_and_say_that_bits_may_differ(home, stopped):
    progress = again(home, stopped, threads=2)
    assert any(
        "not bit-identical to an uninterrupted run: 1 threads then, 2 now" in note
        for note in progress.notes
    )
    assert {
        phase: [step for step, _ in lines] for phase, lines in tiny_run.steps(stopped).items()
    } == {name: list(range(STEPS)) for name in PHASES}


def test_other_data_is_refused(home, stopped, tmp_path):
    shutil.copytree(home / "data", tmp_path / "data")
    raw = short(home)
    raw["teacher"]["store"] = str(home / "teacher-store")
    tiny.write_jsonl(
        tmp_path / "data/texts/lone.jsonl.gz",
        [{"text": f"the old harbour {word}"} for word in tiny.WORDS[:30]],
    )
    moved = {**raw, "data": {**raw["data"], "root": str(tmp_path / "data")}}
    with pytest.raises(BadInput, match=r"begun with another recipe"):
        tiny_run.train(moved, stopped)
    original = home / "data/texts/lone.jsonl.gz"
    before = original.read_bytes()
    try:
        original.write_bytes((tmp_path / "data/texts/lone.jsonl.gz").read_bytes())
        with pytest.raises(BadInput, match=r"was made with data = .* this run has"):
            tiny_run.train(raw, stopped)
    finally:
        original.write_bytes(before)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_gives_the_same_bits(home, stopped):
    folder = stopped / "checkpoints" / "adapters.retrieval" / "step-0000003"
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        BadInput,
        match=(
            r"step-0000003 is damaged: weights.safetensors.*delete this folder to continue from the"
            r" one before"
        ),
    ):
        again(home, stopped)
    shutil.rmtree(folder)
    again(home, stopped)
    same_as_whole(home, stopped)


def test_a_damaged_finished_phase_is_refused(home, stopped):
    path = stopped / "phases" / "stage1" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(
        BadInput,
        match=(
            r"phases/stage1 is damaged: weights.safetensors: .* bytes instead of .*delete this"
            r" folder"
        ),
    ):
        again(home, stopped)


def test_two_runs_never_share_a_folder(home, stopped):
    from taskdistill.io.lock import writer_lock

    with writer_lock(stopped / "lock"), pytest.raises((BadInput, WorkFailed), match=r"lock"):
        again(home, stopped)


def test_a_changed_base_is_detected_and_its_adapter_not_kept(home, tmp_path, monkeypatch):
    run_phase = phases.run_phase

    def careless(job, model, folder, ctx):
        run_phase(job, model, folder, ctx)
        if job.name == "adapters.retrieval":
            next(model.backbone.parameters()).data[0, 0] += 1e-6

    monkeypatch.setattr(phases, "run_phase", careless)
    raw = short(home)
    raw["teacher"]["store"] = str(home / "teacher-store")
    with pytest.raises(
        WorkFailed, match=r"base's weights changed while adapters.retrieval was trained"
    ):
        tiny_run.train(raw, tmp_path / "run")
    assert (
        not (tmp_path / "run" / "model").exists()
        and not (tmp_path / "run" / "phases" / "adapters.retrieval").exists()
    )
    monkeypatch.undo()
    tiny_run.train(raw, tmp_path / "run")
    same_as_whole(home, tmp_path / "run")


def test_the_base_of_the_model_is_stage_1_s_to_the_bit(home):
    from safetensors.torch import load_file

    stage1 = load_file(home / "whole" / "phases" / "stage1" / "weights.safetensors")
    model = load_file(home / "whole" / "model" / "model.safetensors")
    assert len(model) > 10 and all((model[name] == stage1[name]).all() for name in model)
    assert read_manifest(home / "whole" / "model", "model")["tasks"] == [
        "retrieval",
        "classification",
    ]
