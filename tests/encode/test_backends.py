"""Back ends: int8 with its measured cosine, onnxruntime and OpenVINO equal to torch, the table of
`auto`, plain refusals.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.encode import backends, check
from taskdistill.encode.check import golden_cosine, int8_cosines
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.int8 import Int8Model
from taskdistill.encode.int8_linear import (
    PAIR_LIMIT,
    FusedLinear,
    FusedSlice,
    Int8Linear,
    round_weights,
)
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.types import Backend

FAMILIES = ["bert", "qwen3", "eurobert"]
TEXTS = [" ".join(tiny.WORDS[i % 7 : i % 7 + 1 + i % 9]) for i in range(40)]


def tiny_model(tmp_path, family: str, *tasks: str) -> Model:
    module = tiny.student(family)
    made = tiny.model(
        module,
        tiny.write_tokenizer(tmp_path / "tokenizer", end=family != "bert"),
        end=family != "bert",
    )
    for i, task in enumerate(tasks):
        made.adapter_configs[task] = tiny.add_adapter(module, task, seed=i)
    return made


def cosine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return (one * two).sum(1)


def test_rounded_weights_cannot_saturate_sixteen_bits():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3, 5:7] = 9.0  # two large neighbours
    weight[4] = 0
    codes, scale = round_weights(weight)
    size = codes.int().abs()
    assert int((size[:, 1:] + size[:, :-1]).max()) <= PAIR_LIMIT and int(size.max()) <= 127
    assert int(size[3, 5:7].min()) >= 63
    assert torch.isfinite(scale).all() and (codes[4] == 0).all()
    assert float((codes * scale[:, None] - weight).abs().max()) <= float(scale.max()) / 2 + 1e-6


@pytest.mark.parametrize(("rows", "wide", "out"), [(1, 8, 3), (7, 96, 40), (300, 64, 128)])
def test_an_int8_map_rounds_each_row_by_its_own_range(rows, wide, out):
    generator = torch.Generator().manual_seed(rows)
    weight, bias = (
        torch.randn(out, wide, generator=generator),
        torch.randn(out, generator=generator),
    )
    values = (
        torch.randn(rows, wide, generator=generator) * torch.logspace(-3, 3, rows)[:, None] + 0.3
    )
    smooth = torch.rand(wide, generator=generator) + 0.5
    codes, scale = round_weights(weight * smooth)
    scaled = (values / smooth).double()
    low = scaled.amin(1, keepdim=True)
    step = (scaled.amax(1, keepdim=True) - low) / 255
    rounded = ((scaled - low) / step).round() * step + low
    expected = rounded @ (codes.double() * scale[:, None].double()).T + bias.double()
    given = Int8Linear(weight, bias, smooth)(values)
    # a value that lies on the edge between two bytes may fall to either side
    assert float(
        ((given - expected).abs() / (scaled.abs().amax(1, keepdim=True) * wide**0.5)).max()
    ) <= 2e-2 * float(weight.abs().max())
    assert float((given - expected).abs().mean() / expected.abs().mean()) <= 1e-3
    assert given.shape == (rows, out)


def test_int8_maps_of_constant_and_zero_rows_are_exact():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    given = Int8Linear(weight, None, torch.ones(2))(torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    codes, scale = round_weights(weight)
    assert torch.allclose(
        given, torch.stack([torch.zeros(2), 3 * (codes * scale[:, None]).sum(1)]), atol=1e-6
    )


def test_siblings_compute_their_joint_map_once():
    calls = []

    class Whole(torch.nn.Module):
        def forward(self, values):
            calls.append(len(values))
            return torch.cat([values, 2 * values, 3 * values], -1)

    family = FusedLinear(Whole(), [2, 2, 2])
    parts = [FusedSlice(family, place) for place in range(3)]
    for size in (4, 5):
        values = torch.ones(size, 2)
        assert [float(part(values)[0, 0]) for part in parts] == [1, 2, 3]
    assert calls == [4, 5]
    assert float(parts[1](torch.ones(1, 2))[0, 0]) == 2  # alone, it computes for itself


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_comes_close_and_says_how_close(tmp_path, family):
    model = tiny_model(tmp_path, family, "retrieval", "clustering")
    exact, small = Encoder(model, threads=1), Encoder(model, threads=2, backend="int8")
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    for task in (None, "retrieval", "clustering"):
        expected, given = exact.encode(TEXTS, task=task), small.encode(TEXTS, task=task)
        found = cosine(expected, given)
        assert 0.99 < found.mean() < 1 - 1e-7 and found.min() > 0.97
        said = int8_cosines(small, task)
        assert (
            said.texts == 32
            and 0.97 < said.smallest <= said.mean
            and abs(said.mean - found.mean()) < 5e-3
        )
    one, two = small.encode(TEXTS, task="retrieval"), small.encode(TEXTS)
    assert np.abs(one - two).max() > 0.05  # the adapter is in
    assert all(torch.equal(p, before[name]) for name, p in model.module.named_parameters())
    assert int8_cosines(exact) is None


def test_int8_vectors_do_not_depend_on_the_batch(tmp_path):
    encoder = Encoder(tiny_model(tmp_path, "bert"), threads=1, backend="int8")
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    # sums in another order move a value over the edge between two bytes now and then
    assert cosine(together, alone).min() > 0.9999


def test_int8_replaces_every_map_and_shares_the_rest(tmp_path):
    model = tiny_model(tmp_path, "qwen3", "retrieval")
    made = Int8Model(model).prepare("retrieval")
    kinds = [type(part).__name__ for part in made.backbone.modules()]
    assert (
        kinds.count("FusedSlice") == 2 * 5
        and kinds.count("Int8Linear") == 2 * 2
        and kinds.count("Linear") == 0
    )
    assert (
        made.backbone.embed_tokens.weight.data_ptr()
        == model.module.backbone.embed_tokens.weight.data_ptr()
    )


def test_int8_takes_calibration_texts(tmp_path):
    model = tiny_model(tmp_path, "bert")
    encoder = Encoder(model, threads=1, backend="int8", calibration=TEXTS[:5])
    assert int8_cosines(encoder).texts == 5
    with pytest.raises(BadInput, match="needs calibration texts and got none"):
        Encoder(model, backend="int8", calibration=[])
    with pytest.raises(BadInput, match="no effect on the back end torch"):
        Encoder(model, calibration=TEXTS)


def test_what_a_back_end_cannot_run_is_refused(tmp_path, monkeypatch):
    model = tiny_model(tmp_path, "bert")
    with pytest.raises(BadInput, match="unknown back end 'onnx'; did you mean 'onnxruntime'"):
        Encoder(model, backend="onnx")
    static = Model(
        module=StaticModel(torch.randn(99, 8)),
        tokenizer=model.tokenizer,
        settings=ModelSettings(max_length=64),
        name="s",
        source=tmp_path,
    )
    with pytest.raises(BadInput, match="static model"):
        Encoder(static, backend="int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("onnxruntime", "export"), ("openvino", "openvino")):
        with pytest.raises(BadInput, match=rf"pip install 'taskdistill\[{extra}\]'"):
            Encoder(model, backend=name)


def test_auto_follows_the_table_and_never_rounds(tmp_path, monkeypatch):
    model = tiny_model(tmp_path, "bert")
    assert Backend.INT8 not in backends.FASTEST.values()
    assert Encoder(model, threads=1, backend="auto").backend is model.module
    monkeypatch.setitem(backends.FASTEST, "bert", Backend.OPENVINO)
    assert backends.automatic(model) is Backend.OPENVINO
    static = Model(
        module=StaticModel(torch.randn(99, 8)),
        tokenizer=model.tokenizer,
        settings=ModelSettings(max_length=64),
        name="s",
        source=tmp_path,
    )
    assert backends.automatic(static) is Backend.TORCH


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_give_the_same_vectors(tmp_path, engine):
    pytest.importorskip(engine, reason=f"{engine} is not installed here")
    model = tiny_model(tmp_path, "bert", "retrieval")
    exact, other = Encoder(model, threads=1), Encoder(model, threads=2, backend=engine)
    for task in (None, "retrieval"):
        expected = exact.encode(TEXTS, task=task, prompt_name="query", truncate_dim=16)
        assert (
            np.abs(
                other.encode(TEXTS, task=task, prompt_name="query", truncate_dim=16) - expected
            ).max()
            <= 1e-5
        )
    assert model.module.tasks == ["retrieval"]
    with pytest.raises(BadInput, match="states of single tokens"):
        other.token_states(np.array([2, 9, 3], np.int32))


def test_a_graph_that_cannot_be_traced_is_bad_input(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")
    encoder = Encoder(tiny_model(tmp_path, "bert"), threads=1, backend="onnxruntime")

    def broken(*_, **__):
        raise RuntimeError("an operator\n is missing")

    monkeypatch.setattr("taskdistill.encode.graph_models.make_graph", broken)
    with pytest.raises(
        BadInput,
        match=r"onnxruntime cannot run tiny \(an operator is missing\); use the back end torch",
    ):
        encoder.encode(TEXTS)


@pytest.fixture
def folder(tmp_path):
    model = tiny_model(tmp_path, "bert", "retrieval")
    golden = golden_vectors(embed_with(model), ["retrieval"])
    write_model(tmp_path / "model", model, extra_files={FILE: __import__("json").dumps(golden)})
    return tmp_path / "model"


def test_golden_vectors_are_checked_against_a_back_end(folder, monkeypatch):
    encoder = Encoder.load(folder, threads=1)
    assert golden_cosine(encoder) > 1 - 1e-6 and golden_cosine(encoder, "retrieval") > 1 - 1e-6
    small = Encoder.load(folder, threads=1, backend="int8")
    assert 0.95 < golden_cosine(small, "retrieval") < 1 - 1e-7
    monkeypatch.setattr(check, "SAME_SPACE", 1.1)
    with pytest.raises(WorkFailed, match="other vectors"):
        golden_cosine(encoder)
    golden_cosine(small)  # rounding is what int8 is for; its cosine is printed


def test_the_command_prints_the_cosine_of_int8(folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "out.npy"
    assert (
        run(
            [
                "encode",
                str(folder),
                str(tmp_path / "texts.txt"),
                "--out",
                str(out),
                "--task",
                "retrieval",
                "--backend",
                "int8",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "int8: cosine to float32 on 32 calibration texts: mean 0.99" in printed
        and "golden vectors: 0.9" in printed
    )
    expected = Encoder.load(folder, threads=1).encode(TEXTS, task="retrieval")
    assert 0.99 < cosine(np.load(out), expected).mean() < 1 - 1e-7


def test_the_server_refuses_a_back_end_that_it_would_not_use(tmp_path):
    from taskdistill.serve.engine import EncoderEngine

    model = tiny_model(tmp_path, "bert")
    assert EncoderEngine(Encoder(model, threads=1)).embedding_dim == 32
    with pytest.raises(BadInput, match="runs its model in torch"):
        EncoderEngine(Encoder(model, threads=1, backend="int8"))
