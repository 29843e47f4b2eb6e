"""Merging: formulas by hand, adapters as products, and a result that is kept only if the
development sets are sure of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run

from taskdistill.cli.main import run as command
from taskdistill.device import RuntimeOptions
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.model.averaging import LORA_A, LORA_B
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.merging import (
    check_same_shape,
    fixed,
    load_weights,
    merge_dense,
    merge_factors,
    merge_models,
    spherical,
    weights_of,
)
from taskdistill.progress import SilentProgress
from taskdistill.stats.intervals import Estimate, PairedDifference
from taskdistill.workflows import merge as job
from taskdistill.workflows.merge import merge, read_place

ONE_THREAD = RuntimeOptions(threads=1)


def test_spherical_goes_half_way_round_the_arc():
    x, y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    assert torch.allclose(
        merge_dense([x, y], spherical), torch.tensor([math.sqrt(2), math.sqrt(2)])
    )  # length 2, where a mean has 1.41
    assert torch.allclose(merge_dense([x, y], fixed([0.5, 0.5])), torch.tensor([1.0, 1.0]))
    z = torch.tensor([0.3, -1.2, 0.5])
    assert torch.allclose(merge_dense([z, z, z], spherical), z)
    third = merge_dense([torch.eye(3)[0], torch.eye(3)[1], torch.eye(3)[2]], spherical)
    assert torch.allclose(
        third, torch.full((3,), 1 / math.sqrt(3)), atol=1e-6
    )  # the middle of three right angles


def test_factors_merge_as_products_and_not_apart():
    g = torch.Generator().manual_seed(0)
    a, b = (
        [torch.randn(4, 10, generator=g) for _ in range(2)],
        [torch.randn(12, 4, generator=g) for _ in range(2)],
    )
    for factor in (*a, *b):
        factor[2:] = 0 if factor.shape[0] == 4 else factor[2:]
    for factor in b:
        factor[:, 2:] = 0  # rank 2 each, so that rank 4 holds any mixture
    for rule in (fixed([0.5, 0.5]), spherical):
        dense = merge_dense([one @ two for one, two in zip(b, a, strict=True)], rule)
        new_a, new_b = merge_factors(a, b, rule)
        assert torch.allclose(new_b @ new_a, dense, atol=1e-5)
    apart = (b[0] + b[1]) @ (a[0] + a[1]) / 4
    assert not torch.allclose(
        apart, merge_dense([b[0] @ a[0], b[1] @ a[1]], fixed([0.5, 0.5])), atol=1e-2
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three models from one start with an adapter each, and data."""
    home = tmp_path_factory.mktemp("merge")
    source = tiny.write_tokenizer(home / "tokenizer")
    for number in range(3):
        made = tiny.model(tiny.student("bert"), source)
        made.adapter_configs["retrieval"] = tiny.add_adapter(made.module, "retrieval", seed=number)
        g = torch.Generator().manual_seed(number)
        for name, tensor in weights_of(made).items():
            if name.startswith("base/"):
                tensor.data.add_(0.02 * torch.randn(tensor.shape, generator=g))
        made.settings = made.settings.__class__(**{**vars(made.settings), "int8_ranges": {}})
        write_model(home / f"m{number}", made)
    tiny.write_data(home / "data")
    return home


def test_a_model_merged_with_itself_is_itself(home):
    models = [read_model(home / "m0"), read_model(home / "m0")]
    for rule in (fixed([0.5, 0.5]), spherical):
        merged, whole = merge_models(models, rule), weights_of(models[0])
        for name, tensor in whole.items():
            if name.endswith(LORA_A):
                stem = name.removesuffix(LORA_A)
                assert torch.allclose(
                    merged[stem + LORA_B] @ merged[name], whole[stem + LORA_B] @ tensor, atol=1e-4
                )
            elif not name.endswith(LORA_B):
                assert torch.allclose(merged[name], tensor, atol=1e-6)


def test_the_base_is_the_mean(home):
    models = [read_model(home / f"m{i}") for i in range(3)]
    merged = merge_models(models, fixed([1 / 3] * 3))
    name = next(
        name for name in merged if name.startswith("base/") and name.endswith("query.weight")
    )
    assert torch.allclose(
        merged[name], torch.stack([weights_of(model)[name] for model in models]).mean(0), atol=1e-6
    )
    load_weights(models[0], merged)
    assert torch.equal(weights_of(models[0])[name], merged[name])


def test_models_of_other_shapes_are_refused(home, tmp_path):
    write_model(tmp_path / "other", tiny.model(tiny.student("bert", layers=1), home / "tokenizer"))
    with pytest.raises(BadInput, match="differ in their tasks"):
        check_same_shape([read_model(home / "m0"), read_model(tmp_path / "other")])
    with pytest.raises(BadInput, match="two models or more"):
        check_same_shape([read_model(home / "m0")])


@pytest.mark.parametrize("method", ["uniform", "spherical", "last", "greedy"])
def test_the_result_is_kept_only_with_an_interval_above_zero(home, tmp_path, method, monkeypatch):
    places = [str(home / f"m{i}") for i in range(3)]
    data = EvalSelection(home / "data", ["sts/sts", "retrieval/qa-dev"])
    found = merge(
        places, data, tmp_path / "out", SilentProgress(), method=method, runtime=ONE_THREAD
    )
    value, low, high = found["difference"]
    assert low <= value <= high and found["kept"] is (low > 0) is (tmp_path / "out").is_dir()
    assert value == pytest.approx(found["score"] - max(found["models"].values()), abs=1e-6)
    sure = PairedDifference(Estimate(0.02, 0.01, 0.03), 0.01)
    monkeypatch.setattr(job, "paired_difference", lambda *_: sure)
    again = merge(
        places, data, tmp_path / "kept", SilentProgress(), method=method, runtime=ONE_THREAD
    )
    assert again["kept"] and Encoder.load(tmp_path / "kept", threads=1).tasks == ("retrieval",)
    if method == "uniform":
        mean = merge_models([read_model(home / f"m{i}") for i in range(3)], fixed([1 / 3] * 3))
        assert all(
            torch.equal(tensor, mean[name])
            for name, tensor in weights_of(read_model(tmp_path / "kept")).items()
        )
    if method == "greedy":
        assert (
            set(again["merged_from"]) <= set(places)
            and again["score"] >= max(again["models"].values()) - 1e-9
        )


def test_a_merged_model_is_calibrated_on_its_own_vectors(home, tmp_path, monkeypatch):
    for number in range(2):
        model = read_model(home / f"m{number}")
        model.settings = replace(
            model.settings, int8_ranges={"base": {}}, binary_offsets={"base": {}}
        )
        write_model(tmp_path / f"m{number}", model)
    sure = PairedDifference(Estimate(0.02, 0.01, 0.03), 0.01)
    monkeypatch.setattr(job, "paired_difference", lambda *_: sure)
    places = [str(tmp_path / f"m{i}") for i in range(2)]
    data = EvalSelection(home / "data", ["retrieval/qa-dev"])
    merge(places, data, tmp_path / "out", SilentProgress(), method="uniform", runtime=ONE_THREAD)
    settings = read_model(tmp_path / "out").settings
    widths = {str(dim) for dim in settings.matryoshka_dims}
    for task in ("base", "retrieval"):
        assert settings.int8_ranges[task].keys() == widths
        assert settings.binary_offsets[task]["query"].keys() == widths
        assert settings.binary_offsets[task]["query"] != settings.binary_offsets[task]["document"]


def test_the_command_tells_what_it_found(home, tmp_path, capsys):
    arguments = [
        "merge",
        str(home / "m0"),
        str(home / "m1"),
        "--data",
        str(home / "data"),
        "--eval-set",
        "sts/sts",
        "--out",
        str(tmp_path / "out"),
    ]
    assert command([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert (
        set(found["models"]) == {str(home / "m0"), str(home / "m1")}
        and found["told"] in capsys.readouterr().out
    )
    assert np.isfinite(found["difference"]).all()
    assert command([*arguments, "--last-weight", "0.3"]) == 2
    assert command([*arguments, "--method", "mean"]) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with two checkpoints of stage 1 and of an adapter."""
    home = tmp_path_factory.mktemp("merge-run")
    raw = tiny.recipe(tiny.write_data(home / "data"), tiny.write_teacher(home / "teacher"))
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"]}
    del raw["static"]
    tiny_run.train(raw, home / "run")
    return home / "run"


def test_a_checkpoint_is_the_run_s_model_at_that_step(run):
    texts = [tiny.sentence(topic, np.random.default_rng(1)) for topic in tiny.TOPICS]
    whole = Encoder.load(run / "model", threads=1).encode(texts, task="retrieval")
    earlier, last = (
        Encoder(
            read_place(str(run / "checkpoints" / "adapters.retrieval" / f"step-{step:07d}")),
            threads=1,
        ).encode(texts, task="retrieval")
        for step in (3, 6)
    )
    assert np.array_equal(last, whole) and np.abs(earlier - whole).max() > 1e-4
    with pytest.raises(BadInput, match="has adapters that fit its last state only"):
        read_place(str(run / "checkpoints" / "stage1" / "step-0000006"))


def test_checkpoints_of_one_run_merge(run, tmp_path):
    places = [
        str(run / "checkpoints" / "adapters.retrieval" / f"step-{step:07d}") for step in (6, 3)
    ]
    found = merge(
        places,
        EvalSelection(run.parent / "data", ["retrieval/qa-dev"]),
        tmp_path / "out",
        SilentProgress(),
        method="last",
        last_weight=0.7,
        runtime=ONE_THREAD,
    )
    assert list(found["models"]) == places and np.isfinite(found["difference"]).all()
