"""Faults of a training run: signals, a full disk, folders that cannot be used, a limit of memory,
clocks that jump, lost heads.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny, tiny_run
from safetensors.torch import load_file, save_file

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import seal
from taskdistill.train import checkpoint
from taskdistill.train.checkpoint import list_checkpoints
from taskdistill.train.context import Interrupted
from taskdistill.train.log import read_lines
from taskdistill.types import MANIFEST

STEPS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    tiny_run.train(recipe(root), root / "whole")
    return root


def recipe(home: Path, steps: int = STEPS, **stage1: Any) -> dict[str, Any]:
    raw = tiny.recipe(home / "data", home / "teacher", steps=steps)
    del raw["static"]
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"]}
    raw["teacher"]["store"] = str(home / "store")
    raw["stage1"] |= {"checkpoint_every": 2} | stage1
    return raw


def stopped(home: Path, out: Path, question: int = 5) -> None:
    """A copy of a run that was stopped at a question, which is made once."""
    made = home / f"stopped-{question}"
    if not made.exists():
        with pytest.raises(Interrupted):
            tiny_run.train(recipe(home), made, should_stop=tiny_run.stop_before(question))
    shutil.copytree(made, out)


def start(folder: Path, raw: dict[str, Any]) -> subprocess.Popen[str]:
    (folder / "recipe.json").write_text(json.dumps(raw))
    command = [
        sys.executable,
        "-m",
        "taskdistill.cli",
        "train",
        str(folder / "recipe.json"),
        "--out",
        str(folder / "run"),
        "--quiet",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(log: Path, count: int) -> None:
    end = time.monotonic() + 240
    while not log.is_file() or sum("step" in record for _, record in read_lines(log)) < count:
        assert time.monotonic() < end, "the run took no steps"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_ends_the_run(home, tmp_path, number):
    process = start(tmp_path, recipe(home, steps=5000))
    wait_for_steps(tmp_path / "run/log.jsonl", 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopping after this step" in said
    assert (
        "everything is saved, run the same command again to continue" in said
        and "Traceback" not in said
    )
    done = [
        record["step"] for _, record in read_lines(tmp_path / "run/log.jsonl") if "step" in record
    ]
    newest = list_checkpoints(tmp_path / "run/checkpoints/stage1")[-1]
    assert (
        newest.name == f"step-{done[-1] + 1:07d}"
        and not list((tmp_path / "run").rglob(".*"))
        and not (tmp_path / "run/lock").exists()
    )


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_the_checkpoint_before_stays_valid(home, tmp_path):
    process = start(tmp_path, recipe(home, steps=5000))
    wait_for_steps(tmp_path / "run/log.jsonl", 5)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0 and list_checkpoints(tmp_path / "run/checkpoints/stage1")
    raw = recipe(home, steps=5000)
    with pytest.raises(Interrupted):
        tiny_run.train(raw, tmp_path / "run", should_stop=tiny_run.stop_before(1))


@pytest.mark.parametrize("save", [0, 1, 2])
def test_a_full_disk_ends_the_run_with_the_checkpoint_before(home, tmp_path, monkeypatch, save):
    saves = itertools.count()

    def full(tensors: Any, path: Path, *given: Any) -> None:
        if (
            next(saves) == 2 * save + 1
        ):  # the moments of a checkpoint whose weights are already written
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        save_file(tensors, path, *given)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_run.train(recipe(home), tmp_path / "run")
    kept = [path.name for path in list_checkpoints(tmp_path / "run/checkpoints/stage1")]
    assert kept == [f"step-{2 * n:07d}" for n in range(1, save + 1)] and not list(
        (tmp_path / "run").rglob(".step-*")
    )
    monkeypatch.undo()
    tiny_run.train(recipe(home), tmp_path / "run")
    assert tiny_run.weights(tmp_path / "run") == tiny_run.weights(home / "whole")


def test_folders_that_cannot_be_a_run_are_refused_before_anything_is_trained(home, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(
            BadInput,
            match=r"(is no folder|is not empty .other\.txt lies in it.*); give another --out",
        ):
            tiny_run.train(recipe(home), tmp_path / name)
    with pytest.raises(BadInput, match="file is no folder, so there can be no"):
        tiny_run.train(recipe(home), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "x" and sorted(
        path.name for path in (tmp_path / "full").iterdir()
    ) == ["other.txt"]


def test_a_folder_of_a_running_job_is_refused_with_its_process(home, tmp_path):
    from taskdistill.io.lock import writer_lock

    stopped(home, tmp_path / "run")
    with (
        writer_lock(tmp_path / "run" / "lock"),
        pytest.raises(WorkFailed, match=rf"is held by process {os.getpid()} on host"),
    ):
        tiny_run.train(recipe(home), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "said"), [("optimiser.safetensors", "missing"), (MANIFEST, "it was only half copied")]
)
def test_a_checkpoint_without_a_file_is_refused_by_name(home, tmp_path, name, said):
    stopped(home, tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run/checkpoints/stage1")[-1]
    (newest / name).unlink()
    with pytest.raises(BadInput, match=f"{newest.name}.*{said}"):
        tiny_run.train(recipe(home), tmp_path / "run")


def test_a_checkpoint_of_a_newer_format_is_refused(home, tmp_path):
    stopped(home, tmp_path / "run")
    path = list_checkpoints(tmp_path / "run/checkpoints/stage1")[-1] / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(
        BadInput, match=r"has format version 99, this version reads up to .*; upgrade taskdistill"
    ):
        tiny_run.train(recipe(home), tmp_path / "run")


@pytest.mark.parametrize("fault", ["lost", "shape"])
def test_a_projection_that_is_lost_or_of_another_shape_is_refused(home, tmp_path, fault):
    stopped(home, tmp_path / "run", STEPS + 3)
    folder = tmp_path / "run/phases/stage1"
    tensors = load_file(folder / "weights.safetensors")
    if fault == "lost":
        del tensors["projection.weight"]
    else:
        tensors["projection.weight"] = tensors["projection.weight"][:, :-1].contiguous()
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    save_file(tensors, folder / "weights.safetensors")
    seal(folder, "phase", meta={key: manifest[key] for key in ("recipe", "data", "phase")})
    said = (
        r"holds other weights than stage1 trains: \['projection.weight'\]"
        if fault == "lost"
        else r"projection.weight has shape \(32, 31\), stage1 needs \(32, 32\)"
    )
    with pytest.raises(BadInput, match=said):
        tiny_run.train(recipe(home), tmp_path / "run")


def test_a_batch_without_anything_to_contrast_and_one_larger_than_the_data_are_refused(
    home, tmp_path
):
    raw = recipe(home)
    raw["adapters"]["retrieval"]["batch_size"] = 1
    with pytest.raises(
        BadInput,
        match=(
            r"adapters.retrieval: a batch of 1 row of 'qa' has no other row to contrast with"
            r" \(gor\); set batch_size to 2"
        ),
    ):
        tiny_run.train(raw, tmp_path / "run")
    with pytest.raises(
        BadInput,
        match=(
            r"stage1: a batch of 49 is larger than data set 'qa' with 48 rows; give a smaller"
            r" batch_size"
        ),
    ):
        tiny_run.train(recipe(home, batch_size=49), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_other_threads_give_curves_within_a_tolerance(home, tmp_path, threads):
    records = tiny_run.train(recipe(home) | {"threads": threads}, tmp_path / "run").records
    one = [
        loss
        for phase in ("stage1", "adapters.retrieval")
        for _, loss in tiny_run.steps(home / "whole")[phase]
    ]
    assert [record["loss"] for record in records] == pytest.approx(one, rel=5e-3)


def test_clocks_that_jump_back_leave_no_negative_time(home, tmp_path, monkeypatch):
    hours = itertools.count(10**6, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    progress = tiny_run.train(recipe(home), tmp_path / "run")
    seconds = [value for record in progress.records for value in record["seconds"].values()]
    seconds += [
        record["seconds"]
        for _, record in read_lines(tmp_path / "run/log.jsonl")
        if isinstance(record.get("seconds"), float)
    ]
    assert (
        min(seconds) >= 0
        and max(seconds) < 3600
        and all(record["texts_per_s"] > 0 for record in progress.records)
    )
    assert tiny_run.weights(tmp_path / "run") == tiny_run.weights(home / "whole")


LIMITED = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from helpers import tiny
from taskdistill.model.student import TransformerModel
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.workers import workers
torch.set_num_threads(1)
model = tiny.student("bert", layers=6).train()
ids = [np.arange(5, 55, dtype=np.int32) for _ in range(600)]
trained = list(model.backbone.parameters())

def loss(vectors):
    return {"x": vectors.square().mean()}, 0.0

def run(limit):
    with workers(1) as threads:
        step = StepLoss(terms=loss)
        gradients(model, ids[:8], step, trained, Passes(seed=1), threads=threads)
        if limit:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + limit, -1))
        passes = Passes(seed=1, micro_batch_tokens=30_000, keep_tokens=10**9)
        told = gradients(model, ids, step, trained, passes, threads=threads)
        moved = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        return told[1], moved, threads.halvings

wanted, plain, none = run(0)
found, grads, halvings = run(int(sys.argv[2]) << 20)
print(none, halvings, float((plain - grads).norm() / plain.norm()), abs(found - wanted))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").is_file(), reason="the size of a process is read from /proc"
)
def test_a_step_above_a_limit_of_memory_goes_on_in_halves():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parents[1]), "150"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    none, halvings, apart, loss = done.stdout.split()
    assert int(none) == 0 and int(halvings) >= 1 and float(apart) < 1e-5 and float(loss) < 1e-6
    assert resource.getrlimit(resource.RLIMIT_AS)[0] in (
        resource.RLIM_INFINITY,
        resource.getrlimit(resource.RLIMIT_AS)[1],
    )
