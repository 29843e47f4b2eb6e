"""bfloat16 only where the hardware computes in it; weights, moments and losses stay float32."""

from __future__ import annotations

import pytest
import torch
from helpers import gradient_cases, tiny, tiny_run, twin
from safetensors.torch import load_file

from taskdistill import device
from taskdistill.errors import BadInput
from taskdistill.tasks import Task
from taskdistill.train import arithmetic as train_device
from taskdistill.train import gradients
from taskdistill.train.arithmetic import (
    Arithmetic,
    choose_arithmetic,
    tf32_products,
    training_device,
)
from taskdistill.train.batch_loss import backward_loss
from taskdistill.train.distributed import ProcessGroup
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.workers import workers

CPU = torch.device("cpu")


def test_the_arithmetic_of_the_passes(monkeypatch):
    monkeypatch.setattr(device, "cpu_flags", lambda: {"fpu", "avx2"})
    assert choose_arithmetic("auto", CPU) == choose_arithmetic("float32", CPU) == Arithmetic()
    with pytest.raises(BadInput, match=r"precision: this CPU has no bfloat16 units .* use float32"):
        choose_arithmetic("bfloat16", CPU)
    with pytest.raises(BadInput, match=r"precision: this CPU has no TF32 units"):
        choose_arithmetic("tf32", CPU)
    monkeypatch.setattr(device, "cpu_flags", lambda: {"avx512_bf16"})
    assert choose_arithmetic("bfloat16", CPU) == Arithmetic(torch.bfloat16)
    assert choose_arithmetic("auto", CPU) == Arithmetic(), (
        "a CPU stays in float32 unless it is told otherwise"
    )
    assert choose_arithmetic("auto", twin.DEVICE) == Arithmetic(torch.bfloat16)
    assert choose_arithmetic("float32", twin.DEVICE) == Arithmetic()


@pytest.mark.parametrize(
    ("capability", "auto"),
    [
        ((9, 0), Arithmetic(torch.bfloat16, True)),
        ((8, 0), Arithmetic(torch.bfloat16, True)),
        ((7, 5), Arithmetic()),
    ],
)
def test_a_card_of_cuda_takes_what_it_has(monkeypatch, capability, auto):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place=None: "card")
    place = torch.device("cuda", 0)
    assert (
        choose_arithmetic("auto", place) == auto
        and choose_arithmetic("float32", place) == Arithmetic()
    )
    assert str(auto) == ("bfloat16 (float32 products in TF32)" if auto.tf32 else "float32")
    if not auto.tf32:
        for precision, says in (
            ("tf32", "card has no TF32 units"),
            ("bfloat16", "card has no bfloat16 units"),
        ):
            with pytest.raises(BadInput, match=says):
                choose_arithmetic(precision, place)
    else:
        assert choose_arithmetic("tf32", place) == Arithmetic(None, True)


def test_losses_never_round_to_tf32():
    seen = []
    leaf = torch.ones(2, 3, requires_grad=True)

    def loss(vectors):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return {"x": vectors.square().sum()}, 0.0

    with tf32_products(True):
        assert torch.backends.cuda.matmul.allow_tf32
        backward_loss(loss, {}, leaf)
        assert torch.backends.cuda.matmul.allow_tf32
    assert seen == [False] and not torch.backends.cuda.matmul.allow_tf32


def test_a_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "cpu_flags", set)
    raw = tiny.recipe(tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"))
    with pytest.raises(BadInput, match="precision: this CPU has no bfloat16 units"):
        tiny_run.train(raw | {"precision": "bfloat16", "device": "cpu"}, tmp_path / "run")
    with pytest.raises(BadInput, match=r"unknown device 'gpu'.* did you mean 'cuda'"):
        tiny_run.train(raw | {"device": "gpu"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_process_takes_the_device_of_its_number(monkeypatch):
    taken = []
    monkeypatch.setattr(train_device, "resolve_device", lambda choice: torch.device("cuda", 0))
    monkeypatch.setattr(
        train_device, "accelerators", lambda: [torch.device("cuda", 0), torch.device("cuda", 1)]
    )
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert (
        training_device("auto", ProcessGroup(5, 8, 4))
        == training_device("cuda", ProcessGroup(1, 2, 2))
        == torch.device("cuda", 1)
    )
    assert training_device("auto") == torch.device("cuda", 0) and [
        each.index for each in taken
    ] == [1, 1, 0]
    with pytest.raises(
        BadInput, match="3 processes were started on this host, which has 2 devices of type cuda"
    ):
        training_device("auto", ProcessGroup(2, 3, 3))
    with pytest.raises(BadInput, match="device cuda:0 is one device, and 2 processes train"):
        training_device("cuda:0", ProcessGroup(0, 2, 2))


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", Task.RETRIEVAL), ("qwen3", Task.CLASSIFICATION), ("eurobert", None)],
)
def test_gradients_in_bfloat16_are_near_and_in_float32(family, task):
    case = gradient_cases.case(family, task, torch.float32)
    found = []
    for compute in (None, torch.bfloat16):
        case.clear()
        with workers(1) as threads:
            _, total, _ = gradients.gradients(
                case.model,
                case.ids,
                StepLoss(
                    terms=case.loss, weights=case.weights, heads=list(case.heads.named().values())
                ),
                list(case.trained.values()),
                Passes(seed=11, compute=compute),
                threads=threads,
            )
        found.append((case.collect(), total))
    (plain, total), (half, other) = found
    assert other == pytest.approx(total, rel=0.05) and other != total
    assert all(gradient.dtype is torch.float32 for gradient in half.values())
    flat, near = (torch.cat([each[name].flatten() for name in plain]) for each in (plain, half))
    assert torch.cosine_similarity(flat, near, dim=0) > 0.98


def test_a_run_in_bfloat16_keeps_float32_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "cpu_flags", lambda: {"amx_bf16"})
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=3
    )
    del raw["static"]
    raw["adapters"] = {"classification": raw["adapters"]["classification"]}
    plain = tiny_run.train(raw, tmp_path / "plain").records
    half = tiny_run.train(raw | {"precision": "bfloat16"}, tmp_path / "half").records
    assert [r["loss"] for r in half] == pytest.approx([r["loss"] for r in plain], rel=0.1)
    assert half[0]["loss"] != plain[0]["loss"]
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert all(tensor.dtype is torch.float32 for tensor in load_file(path).values()), path
