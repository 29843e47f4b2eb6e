"""Checkpoints give back every bit, keep to the last few, and are refused where something differs;
the log stays whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from taskdistill.errors import BadInput
from taskdistill.recipe.phases import PhaseConfig
from taskdistill.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from taskdistill.train.log import Log, read_lines
from taskdistill.train.optim import make_optimizer

META = {"recipe": "r1", "data": "d1", "phase": "stage1"}


def state(seed: int) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    parameters = {
        "weight": nn.Parameter(torch.randn(3, 2)),
        "bias": nn.Parameter(torch.randn(2)),
        "idle": nn.Parameter(torch.randn(2)),
    }
    phase = PhaseConfig(sources={"a": 1}, steps=10, batch_size=1, lr=0.1)
    return parameters, make_optimizer(phase, parameters, {}, None)


def update(
    parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, seed: int
) -> None:
    torch.manual_seed(seed)
    for name in ("weight", "bias"):
        parameters[name].grad = torch.randn_like(parameters[name])
    optimiser.step()


def saved(root: Path, step: int = 1) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    parameters, optimiser = state(0)
    for number in range(step):
        update(parameters, optimiser, number)
    save_checkpoint(root, step, parameters, optimiser, META)
    return parameters, optimiser


def test_a_loaded_state_goes_on_as_the_saved_one(tmp_path):
    parameters, optimiser = saved(tmp_path, 3)
    again, other = state(1)
    assert load_checkpoint(list_checkpoints(tmp_path)[-1], again, other, META) == 3
    for number in (10, 11):
        update(parameters, optimiser, number)
        update(again, other, number)
    assert all(torch.equal(parameters[name], again[name]) for name in parameters)


def test_the_last_two_stay_and_leftovers_go(tmp_path):
    for step in (5, 10, 15):
        saved(tmp_path, step)
    (tmp_path / ".step-0000020.taskdistill-0123abcd").mkdir()
    for name in ("notes", "step-0000099", ".step-0000020.abc"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-0000010" / "notes.txt").write_text("of the owner")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000010", "step-0000015"]
    assert (
        not (tmp_path / ".step-0000020.taskdistill-0123abcd").exists()
        and (tmp_path / ".step-0000020.abc").exists()
    )
    saved(tmp_path, 20)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000015", "step-0000020"]
    assert [path.name for path in (tmp_path / "step-0000010").iterdir()] == ["notes.txt"]
    assert list_checkpoints(tmp_path / "none") == []


def refused(
    folder: Path,
    match: str,
    meta: dict[str, str] = META,
    drop: str | None = None,
    shape: bool = False,
) -> None:
    parameters, optimiser = state(1)
    if drop:
        del parameters[drop]
    if shape:
        parameters["bias"] = nn.Parameter(torch.zeros(5))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(BadInput, match=match):
        load_checkpoint(folder, parameters, optimiser, meta)
    if not shape:
        assert all(torch.equal(before[name], parameters[name]) for name in before)


@pytest.mark.parametrize(("field", "value"), [("recipe", "r2"), ("data", "d2"), ("phase", "long")])
def test_another_recipe_or_other_data_is_refused_by_name(tmp_path, field, value):
    saved(tmp_path)
    refused(
        list_checkpoints(tmp_path)[0],
        f"was made with {field} = .* this run has '{value}'",
        META | {field: value},
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors"])
def test_damage_is_refused_by_file(tmp_path, name):
    saved(tmp_path)
    folder = list_checkpoints(tmp_path)[0]
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(
        folder,
        f"is damaged: {name}: content differs.*delete this folder to continue from the one before",
    )
    (folder / name).write_bytes(whole[:-1])
    refused(folder, f"{name}: {len(whole) - 1} bytes instead of {len(whole)}")
    (folder / name).unlink()
    refused(folder, f"{name}: missing")


def test_other_weights_shapes_and_formats_are_refused(tmp_path):
    saved(tmp_path)
    folder = list_checkpoints(tmp_path)[0]
    refused(folder, "holds other weights than this phase trains: .'idle'", drop="idle")
    refused(folder, r"bias has shape \(2,\), needs \(5,\)", shape=True)
    manifest = json.loads((folder / "taskdistill.json").read_text())
    (folder / "taskdistill.json").write_text(json.dumps(manifest | {"format_version": 99}))
    refused(folder, "format version 99, this version reads up to 2; upgrade")


def test_the_log_forgets_steps_that_are_run_again_and_torn_lines(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in range(4):
        log.write({"phase": "a", "step": step})
    log.write({"phase": "b", "step": 3, "loss": float("nan"), "terms": {"x": float("inf")}})
    log.write({"note": "no step"})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"phase": "a", "st')
    log = Log(tmp_path / "log.jsonl")
    log.forget("a", 2)
    log.write({"phase": "a", "step": 2})
    log.close()
    assert [record for _, record in read_lines(tmp_path / "log.jsonl")] == [
        {"phase": "a", "step": 0},
        {"phase": "a", "step": 1},
        {"phase": "b", "step": 3, "loss": None, "terms": {"x": None}},
        {"note": "no step"},
        {"phase": "a", "step": 2},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]
