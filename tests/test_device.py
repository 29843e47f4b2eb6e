"""One rule decides where a model runs and in which arithmetic, and how many tokens a batch may have
there.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny, twin

from taskdistill import device, memory
from taskdistill.cli.main import app
from taskdistill.cli.main import run as command
from taskdistill.cli.options import with_placement
from taskdistill.device import (
    accelerators,
    computes_in,
    cpu_flags,
    free_memory_of,
    placement,
    resolve_device,
    resolve_dtype,
)
from taskdistill.encode import placement as hardware
from taskdistill.encode.batches import TOKEN_BUDGET
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import assign_devices, default_budget
from taskdistill.errors import BadInput
from taskdistill.model.flops import held_bytes, layer_features
from taskdistill.model.folder import write_model
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.serve import server as serve_run
from taskdistill.train.batch_loss import static_gradients
from taskdistill.train.budget import Budget, choose_budget, saved_budget
from taskdistill.train.timer import Timer
from taskdistill.train.workers import EmbeddingGradient

CPU = torch.device("cpu")
no_accelerator = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator"
)


@no_accelerator
def test_auto_is_the_accelerator_where_there_is_one():
    assert resolve_device() == resolve_device("auto") == CPU and accelerators() == []
    with twin.present():
        assert resolve_device("auto") == twin.DEVICE and accelerators() == [twin.DEVICE]
    assert resolve_device("twin") == resolve_device("twin:0") == twin.DEVICE, (
        "any device that torch knows, whether auto would take it or not"
    )
    assert resolve_device("cpu") == resolve_device("cpu:0") == CPU


@no_accelerator
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpu", r"unknown device 'gpu': this machine has cpu; did you mean 'cuda'\?"),
        ("cdua", r"did you mean 'cuda'\?"),
        ("twn", r"unknown device 'twn'"),
        ("", r"unknown device ''"),
        ("cuda:x", "unknown device"),
        ("CPU", r"did you mean 'cpu'\?"),
        ("Twin:0", r"did you mean 'twin:0'\?"),
        ("cuda ", r"did you mean 'cuda'\?"),
        ("AUTO", r"did you mean 'auto'\?"),
        ("hpu", r"device hpu is not here"),
        ("mkldnn", r"device mkldnn is not here"),
        ("mps", r"device mps is not here"),
        ("x" * 500, "unknown device 'x"),
        ("meta", "holds shapes without numbers"),
        ("cuda", r"device cuda is not here \(.*\): this machine has cpu"),
        ("cuda:99", "is not here"),
        ("twin:7", r"device twin:7 is not here \(twin error: invalid device ordinal 7\)"),
    ],
)
def test_a_device_that_is_not_here_is_refused_in_one_line(name, says):
    with pytest.raises(BadInput, match=says) as error:
        resolve_device(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_number_type_is_refused_where_it_would_be_imitated(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "cpu_flags", lambda: {"avx2", "fma"})
    for name in ("bfloat16", "float16"):
        with pytest.raises(BadInput, match=f"this CPU has no {name} units"):
            resolve_dtype(name, CPU)
    monkeypatch.setattr(device, "cpu_flags", lambda: {"amx_bf16"})
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(BadInput, match="unknown dtype 'half'"):
        resolve_dtype("half", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda each: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda each: "T4")
    with pytest.raises(BadInput, match="T4 has no bfloat16 units; use float32"):
        resolve_dtype("bfloat16", torch.device("cuda"))
    assert resolve_dtype("float16", torch.device("cuda")) is torch.float16
    assert computes_in(torch.bfloat16, twin.DEVICE) and computes_in(torch.float16, twin.DEVICE)
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16\nFeatures : fp asimdhp\n")
    assert (
        cpu_flags(path) == {"fpu", "avx2", "amx_bf16", "fp", "asimdhp"}
        and cpu_flags(tmp_path / "none") == set()
    )


def test_auto_arithmetic_is_float32_unless_the_caller_keeps_the_choice(monkeypatch):
    assert resolve_dtype("auto", twin.DEVICE) is torch.float32 is resolve_dtype("auto", CPU)
    assert resolve_dtype("auto", twin.DEVICE, auto=torch.bfloat16) is torch.bfloat16
    monkeypatch.setattr(device, "cpu_flags", lambda: {"amx_bf16"})
    assert resolve_dtype("auto", CPU, auto=torch.bfloat16) is torch.float32, (
        "today's runs on a CPU stay as they are"
    )
    monkeypatch.setattr(torch.twin, "is_bf16_supported", lambda including_emulation=True: False)
    assert resolve_dtype("auto", twin.DEVICE, auto=torch.bfloat16) is torch.float32


def test_where_a_model_runs_is_said_in_a_few_words():
    assert placement(CPU, torch.float32) == "device cpu, float32"
    assert placement(twin.DEVICE, torch.bfloat16) == "device twin:0 (pretend accelerator), bfloat16"


def test_memory_is_what_the_tightest_limit_leaves(tmp_path, monkeypatch):
    free = memory.available_memory()
    assert free is not None and 1e8 < free < 1e14
    for version, limit, used, field in (
        ("two", "memory.max", "memory.current", "inactive_file 1000"),
        (
            "one/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file 1000",
        ),
    ):
        folder = tmp_path / version
        folder.mkdir(parents=True)
        (folder / limit).write_text("500000\n")
        (folder / used).write_text("200000\n")
        (folder / "memory.stat").write_text(f"anon 7\n{field}\n")
        root = tmp_path / version.partition("/")[0]
        assert memory._group_available(root) == [301_000]
        monkeypatch.setattr(
            memory, "_group_available", lambda root=root, read=memory._group_available: read(root)
        )
        assert memory.available_memory() == 301_000
        monkeypatch.undo()
    (tmp_path / "two" / "memory.max").write_text("max\n")
    assert (
        memory._group_available(tmp_path / "two")
        == []
        == memory._group_available(tmp_path / "nothing")
    )
    with twin.limit_memory(12_345):
        assert free_memory_of(twin.DEVICE) == 12_345


def test_devices_are_allotted_in_turn(monkeypatch):
    assert assign_devices(["cpu"], 3) == ["cpu"] * 3
    monkeypatch.setattr(
        hardware, "accelerators", lambda: [torch.device("cuda", 0), torch.device("cuda", 1)]
    )
    assert (
        assign_devices(["cuda"], 3) == ["cuda:0", "cuda:1", "cuda:0"] == assign_devices(["auto"], 3)
    )
    assert assign_devices(["cuda:1", "cpu"], 3) == ["cuda:1", "cpu", "cuda:1"]
    monkeypatch.setattr(hardware, "accelerators", list)
    assert assign_devices(["auto"], 2) == ["cpu", "cpu"] and assign_devices(["cuda"], 1) == [
        "cuda"
    ], "refused when it is opened"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_of_the_encoder_has_what_fits(family):
    model = tiny.student(family)
    assert default_budget(model) == TOKEN_BUDGET == default_budget(model, 64), (
        "on a CPU with ample memory what its cache holds"
    )
    model.to(twin.DEVICE)
    token = max(layer_features(model.backbone)) * 4
    assert default_budget(model) == hardware.FULL
    for tokens in (1_000, 5_000):
        with twin.limit_memory(int(tokens * token / hardware.SHARE) + 1):
            assert default_budget(model) == tokens
    with twin.limit_memory(1):
        assert default_budget(model) == hardware.LEAST
    assert default_budget(StaticModel(torch.zeros(3, 2)).to(twin.DEVICE)) == TOKEN_BUDGET


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_budgets_of_training_follow_the_memory(compute):
    model = tiny.student("qwen3")
    trained, token = 1_000, held_bytes(model.backbone, compute)
    state = 12 * trained

    def chosen(place, room, **options):
        return choose_budget(
            model, trained, device=place, compute=compute, free=state + room, **options
        )

    ample = round(1e6 * token) + 1
    assert chosen(CPU, ample) == Budget(512, 250_000) and chosen(
        CPU, ample, processes_here=2
    ) == Budget(512, 125_000)
    assert chosen(CPU, round(400 * token) + 1) == Budget(100, 100) and chosen(CPU, 0) == Budget(
        64, 0
    ), "less memory, smaller passes"
    assert chosen(twin.DEVICE, ample) == Budget(32_768, 600_000)
    assert chosen(twin.DEVICE, round(1e4 * token) + 1) == Budget(6_000, 6_000)
    assert chosen(twin.DEVICE, round(1e4 * token) + 1, micro_batch_tokens=700) == Budget(
        700, 6_000
    ), "what a recipe says holds"
    assert chosen(twin.DEVICE, -state) == Budget(64, 0)
    with twin.limit_memory(state + round(1e4 * token) + 1):
        assert choose_budget(model, trained, device=twin.DEVICE, compute=compute) == Budget(
            6_000, 6_000
        )


def test_a_continued_run_keeps_its_budget_unless_its_device_is_of_another_kind():
    said = {"budget": {"micro_batch_tokens": 96, "keep_tokens": 7}, "device": "twin"}
    assert saved_budget(said, twin.DEVICE) == Budget(96, 7)
    assert saved_budget(said, CPU) is None and saved_budget({"device": "cpu"}, CPU) is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A transformer with an adapter, and a static model."""
    root = tmp_path_factory.mktemp("models")
    module = tiny.student("qwen3")
    model = tiny.model(module, tiny.write_tokenizer(root / "tokenizer", end=True), end=True)
    model.adapter_configs["retrieval"] = tiny.add_adapter(module, "retrieval")
    write_model(root / "model", model)
    table = StaticModel(
        torch.randn(
            tiny.tokenizer().get_vocab_size(), 8, generator=torch.Generator().manual_seed(1)
        )
    )
    settings = ModelSettings(max_length=64, matryoshka_dims=(8,))
    write_model(
        root / "static",
        Model(
            module=table,
            tokenizer=model.tokenizer,
            settings=settings,
            name="static",
            source=root / "tokenizer",
        ),
    )
    return root


TEXTS = [
    "the old ship in the harbour",
    "a comet",
    "bread and soup with butter on a plate near the oven",
]


def test_an_encoder_on_a_device_gives_the_vectors_of_the_cpu(folders):
    expected = Encoder.load(folders / "model", device="cpu").encode(
        TEXTS, task="retrieval", prompt_name="query", truncate_dim=16
    )
    encoder = Encoder.load(folders / "model", device="twin:0")
    assert (
        encoder.placement == "device twin:0 (pretend accelerator), float32"
        and encoder.device == twin.DEVICE
    )
    assert np.array_equal(
        encoder.encode(TEXTS, task="retrieval", prompt_name="query", truncate_dim=16), expected
    )
    half = Encoder.load(folders / "model", device="twin:0", dtype="bfloat16")
    assert half.dtype is torch.bfloat16 and {p.dtype for p in half.model.module.parameters()} == {
        torch.bfloat16
    }
    given = half.encode(TEXTS, task="retrieval", prompt_name="query", truncate_dim=16)
    assert 0.99 < (given * expected).sum(1).min() < 1 - 1e-6


@no_accelerator
def test_an_encoder_takes_the_accelerator_by_itself_and_a_static_model_the_cpu(folders):
    assert Encoder.load(folders / "model").device == CPU
    with twin.present():
        assert Encoder.load(folders / "model").device == twin.DEVICE
        assert Encoder.load(folders / "static").device == CPU
        assert Encoder.load(folders / "model", backend="int8").device == CPU, (
            "the other back ends run on CPUs"
        )
        with pytest.raises(BadInput, match="back end int8 runs on a CPU"):
            Encoder.load(folders / "model", backend="int8", device="twin")
    on_device = Encoder.load(folders / "static", device="twin:0")
    assert np.array_equal(
        on_device.encode(TEXTS), Encoder.load(folders / "static", device="cpu").encode(TEXTS)
    )


def test_a_number_type_without_effect_is_refused(folders):
    with pytest.raises(BadInput, match="dtype bfloat16 has no effect on the back end int8"):
        Encoder.load(folders / "model", backend="int8", dtype="bfloat16")


def test_passes_by_autocast_leave_the_weights_as_they_are(folders):
    whole = Encoder.load(folders / "model", device="twin:0")
    half = Encoder(whole.model, compute=torch.bfloat16)
    assert half.dtype is torch.bfloat16 and {p.dtype for p in whole.model.module.parameters()} == {
        torch.float32
    }
    one, two = whole.encode(TEXTS), half.encode(TEXTS)
    assert 0.99 < (one * two).sum(1).min() < 1 - 1e-6
    assert np.array_equal(whole.encode(TEXTS), one)


@pytest.mark.parametrize("said", ["", "5", "null", "[", "{a: b", "twin:1"])
def test_a_flag_reaches_the_recipe_as_the_word_that_was_typed(said):
    given = with_placement(["seed=1"], said, said)
    assert given[0] == "seed=1" and [
        yaml.safe_load(each.partition("=")[2]) for each in given[1:]
    ] == [said, said]
    assert with_placement(None, None, None) == []


def test_the_table_gradient_of_a_static_student_is_that_of_the_cpu():
    ids = [np.array(row, dtype=np.int32) for row in ([1, 2, 2], [], [0, 4])]
    found = []
    for place in (CPU, twin.DEVICE):
        model = StaticModel(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).to(place)
        model.table.requires_grad_()
        static_gradients(
            model,
            ids,
            lambda vectors: ({"x": vectors.pow(3).sum()}, 0.0),
            {},
            EmbeddingGradient(),
            Timer(),
        )
        assert model.table.grad is not None and model.table.grad.device == model.table.device
        found.append(model.table.grad.cpu())
    assert torch.equal(*found) and found[0].abs().sum() > 0


def test_every_command_that_runs_a_model_takes_a_device_and_an_arithmetic():
    """A command that is new has both flags, or is named here because no model runs in it, or none
    anywhere but on the CPU.
    """
    without = {"index delete", "index compact", "migrate state", "export"}
    commands = {command.name: command.callback for command in app.registered_commands}
    flags = {
        name: inspect.signature(callback).parameters.keys() & {"device", "dtype"}
        for name, callback in commands.items()
    }
    assert {name for name, found in flags.items() if found != {"device", "dtype"}} == without


def test_a_server_runs_and_reloads_where_it_was_told(folders, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(
        serve_run, "serve", lambda encoder, *, load, **_: found.extend([encoder, load()])
    )
    assert (
        command(["serve", str(folders / "model"), "--device", "twin:0", "--dtype", "bfloat16"]) == 0
    )
    assert [(each.device, each.dtype) for each in found] == [(twin.DEVICE, torch.bfloat16)] * 2
    assert "device twin:0 (pretend accelerator), bfloat16" in capsys.readouterr().out
    assert command(["serve", str(folders / "model"), "--device", "twin:1"]) == 2
    assert "device twin:1 is not here" in capsys.readouterr().err
