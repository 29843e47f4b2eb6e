"""Adapters: a fresh one changes nothing, merging changes nothing, counts follow the formula, files
go by name.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from helpers import tiny
from torch import nn

from taskdistill.errors import BadInput
from taskdistill.model.fingerprint import weights_hash
from taskdistill.model.lora import (
    SeededDropout,
    adapter_parameters,
    attach,
    linear_names,
    load_adapter,
    lora_config,
    merge,
    save_adapter,
    seed_dropout,
)
from taskdistill.model.student import TransformerModel

LINEARS = {
    "bert": ["dense", "key", "query", "value"],
    "qwen3": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "eurobert": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
}
TWO_PARTS = ["intermediate.dense", "output.dense", "self.key", "self.query", "self.value"]
"""So that the linear map of a pooler, which other programs put on a BERT, is no target."""
SHAPES = {
    "bert": [(32, 32)] * 4 + [(32, 48), (48, 32)],
    "qwen3": [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)],
    "eurobert": [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)],
}


def texts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(5, 150, size=n) for n in (3, 9, 5, 12)]


def vectors(model: TransformerModel, task: str | None) -> torch.Tensor:
    model.select(task)
    with torch.inference_mode():
        return model.embed(texts())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_fresh_adapter_changes_nothing_and_has_the_size_of_the_formula(family):
    model = tiny.student(family)
    before, digest = vectors(model, None), weights_hash(model.backbone)
    assert linear_names(model.backbone) == LINEARS[family]
    attach(model.backbone, "retrieval", lora_config(model.backbone, rank=8, alpha=8, dropout=0.1))
    model.tasks.append("retrieval")
    assert torch.equal(vectors(model, "retrieval"), before) and torch.equal(
        vectors(model, None), before
    )
    found = adapter_parameters(model.backbone, "retrieval")
    assert sum(p.numel() for p in found.values()) == 2 * sum(
        8 * (ins + outs) for ins, outs in SHAPES[family]
    )
    assert weights_hash(model.backbone) == digest  # of the base alone, whatever is attached
    first = torch.cat([p.flatten() for name, p in found.items() if ".lora_A." in name])
    assert first.std().item() == pytest.approx(1 / 8, rel=0.05) and abs(first.mean().item()) < 0.01
    assert all(p.abs().max() == 0 for name, p in found.items() if ".lora_B." in name)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_merged_adapter_gives_the_vectors_of_the_unmerged_one(family):
    model = tiny.student(family)
    base, names = vectors(model, None), set(model.backbone.state_dict())
    for number, task in enumerate(("retrieval", "clustering")):
        tiny.add_adapter(model, task, seed=number)
    wanted, other = vectors(model, "retrieval"), vectors(model, "clustering")
    assert (wanted - base).abs().max() > 0.1 and (wanted - other).abs().max() > 0.1
    assert torch.equal(vectors(model, None), base) and torch.equal(
        vectors(model, "retrieval"), wanted
    )  # switching leaves nothing behind
    merge(model.backbone, "retrieval")
    model.tasks.clear()
    with torch.inference_mode():
        merged = model.embed(texts())
    assert (merged - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())
    assert set(model.backbone.state_dict()) == names


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_is_saved_and_loaded_by_name(family, tmp_path):
    model = tiny.student(family)
    config = tiny.add_adapter(model, "retrieval", dropout=0.1)
    wanted = vectors(model, "retrieval")
    save_adapter(model.backbone, "retrieval", config, tmp_path, base_name="tiny")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["peft_type"]) == (4, 8, "LORA")
    assert fields["base_model_name_or_path"] == "tiny" and fields["inference_mode"] is True
    assert (
        fields["target_modules"] == (TWO_PARTS if family == "bert" else LINEARS[family])
        and fields["exclude_modules"] is None
    )
    again = tiny.student(family)
    loaded = load_adapter(again.backbone, "other", tmp_path)
    again.tasks.append("other")
    assert (
        torch.equal(vectors(again, "other"), wanted)
        and loaded.r == 4
        and loaded.lora_dropout == 0.1
    )
    tensors = dict(adapter_parameters(model.backbone, "retrieval"))
    assert all(
        name.startswith("base_model.model.") and name.endswith((".lora_A.weight", ".lora_B.weight"))
        for name in tensors
    )


def test_attaching_several_adapters_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny.student("bert")
        for task in ("retrieval", "clustering"):
            tiny.add_adapter(model, task)


def test_fewer_targets_and_targets_that_are_none():
    model = tiny.student("qwen3")
    attach(
        model.backbone,
        "retrieval",
        lora_config(model.backbone, rank=2, targets=["q_proj", "v_proj"]),
    )
    assert len(adapter_parameters(model.backbone, "retrieval")) == 2 * 2 * 2
    with pytest.raises(
        BadInput,
        match=(
            r"target_modules \['query'\] are no linear maps of this backbone, which has"
            r" \['down_proj'"
        ),
    ):
        lora_config(model.backbone, targets=["q_proj", "query"])


def test_a_task_without_adapter_is_refused_by_name():
    model = tiny.student()
    with pytest.raises(BadInput, match="no adapter for task 'retrieval'; it has no adapters"):
        model.select("retrieval")
    tiny.add_adapter(model, "retrieval")
    with pytest.raises(BadInput, match="no adapter for task 'retreival'; did you mean 'retrieval'"):
        model.select("retreival")


def test_dropout_drops_in_training_from_the_thread_s_generator_alone():
    module, values = SeededDropout(0.25), torch.ones(200, 50)
    try:
        module.train()
        assert module(values) is values  # no generator, no dropout
        seed_dropout(torch.Generator().manual_seed(3))
        first = module(values)
        assert first.unique().tolist() == pytest.approx(
            [0, 4 / 3]
        ) and first.mean().item() == pytest.approx(1, abs=0.03)
        assert not torch.equal(module(values), first)
        seed_dropout(torch.Generator().manual_seed(3))
        assert torch.equal(module(values), first)
        assert module.eval()(values) is values
    finally:
        seed_dropout(None)


def test_the_hash_of_the_base_sees_one_changed_weight_and_no_adapter():
    model = tiny.student()
    digest = weights_hash(model.backbone)
    tiny.add_adapter(model, "retrieval")
    assert weights_hash(model.backbone) == digest
    next(iter(model.backbone.parameters())).data[0, 0] += 1e-6
    assert weights_hash(model.backbone) != digest
    assert isinstance(model, nn.Module)
