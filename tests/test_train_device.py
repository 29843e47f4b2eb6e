"""bfloat16 only where the hardware computes in it; weights, moments and losses stay float32."""

from __future__ import annotations

import pytest
import test_step
import tiny
import tiny_run
import torch
from safetensors.torch import load_file

from taskdistill.encode import hardware
from taskdistill.errors import BadInput
from taskdistill.train import step
from taskdistill.train.device import compute_type, training_device
from taskdistill.train.processes import Processes
from taskdistill.train.workers import workers
from taskdistill.vocabulary import Task

CPU = torch.device("cpu")


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"fpu", "avx2"})
    assert compute_type("float32", CPU) is None
    with pytest.raises(BadInput, match=r"precision: this CPU has no bfloat16 units .* use float32"):
        compute_type("bfloat16", CPU)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_bf16"})
    assert compute_type("bfloat16", CPU) is torch.bfloat16


def test_a_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", set)
    raw = tiny.recipe(tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"))
    with pytest.raises(BadInput, match="precision: this CPU has no bfloat16 units"):
        tiny_run.train(raw | {"precision": "bfloat16"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert training_device("auto") == CPU and training_device("cpu") == CPU
    with pytest.raises(BadInput, match="device is cuda, but torch sees no GPU"):
        training_device("cuda")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    assert training_device("auto", Processes(5, 8, 4)) == torch.device("cuda", 1)
    with pytest.raises(BadInput, match="3 processes were started on this host, which has 2 GPUs"):
        training_device("auto", Processes(2, 3, 3))


@pytest.mark.parametrize(("family", "task"), [("bert", Task.RETRIEVAL), ("qwen3", Task.CLASSIFICATION), ("eurobert", None)])
def test_gradients_in_bfloat16_are_near_and_in_float32(family, task):
    case = test_step.case(family, task, torch.float32)
    found = []
    for compute in (None, torch.bfloat16):
        case.clear()
        with workers(1) as threads:
            _, total, _ = step.gradients(
                case.model,
                case.ids,
                case.loss,
                case.weights,
                list(case.trained.values()),
                seed=11,
                threads=threads,
                heads=list(case.heads.named().values()),
                compute=compute,
            )
        found.append((case.collect(), total))
    (plain, total), (half, other) = found
    assert other == pytest.approx(total, rel=0.05) and other != total
    assert all(gradient.dtype is torch.float32 for gradient in half.values())
    flat, near = (torch.cat([each[name].flatten() for name in plain]) for each in (plain, half))
    assert torch.cosine_similarity(flat, near, dim=0) > 0.98


def test_a_run_in_bfloat16_keeps_float32_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"amx_bf16"})
    raw = tiny.recipe(tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=3)
    del raw["static"]
    raw["adapters"] = {"classification": raw["adapters"]["classification"]}
    plain = tiny_run.train(raw, tmp_path / "plain").records
    half = tiny_run.train(raw | {"precision": "bfloat16"}, tmp_path / "half").records
    assert [r["loss"] for r in half] == pytest.approx([r["loss"] for r in plain], rel=0.1)
    assert half[0]["loss"] != plain[0]["loss"]
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert all(tensor.dtype is torch.float32 for tensor in load_file(path).values()), path
