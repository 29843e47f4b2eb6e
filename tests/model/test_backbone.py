"""Backbones: kept layers, RoPE theta, their own dropout off, and configurations that cannot be
meant.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.errors import BadInput
from taskdistill.model.backbone import build_backbone, resolve, without_dropout
from taskdistill.model.configuration import make_config
from taskdistill.model.layers import keep_layers, layers_of
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.student import TransformerModel

IDS = [np.arange(10, 22), np.arange(30, 37)]


def embed(backbone: torch.nn.Module, family: str) -> torch.Tensor:
    with torch.inference_mode():
        return TransformerModel(backbone, tiny.pooling_of(family)).embed(IDS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_kept_layers_are_those_layers_in_that_order(family):
    whole, cut = tiny.backbone(family, layers=3), tiny.backbone(family, layers=3)
    keep_layers(cut, [0, 2])
    assert len(layers_of(cut)) == cut.config.num_hidden_layers == 2
    fresh = build_backbone(tiny.config(family, layers=2))
    wanted = {
        name: tensor
        for name, tensor in whole.state_dict().items()
        if f"{prefix(family)}1." not in name
    }
    fresh.load_state_dict(
        {
            name.replace(f"{prefix(family)}2.", f"{prefix(family)}1."): tensor
            for name, tensor in wanted.items()
        }
    )
    assert torch.equal(embed(cut, family), embed(fresh, family))
    assert not torch.allclose(embed(cut, family), embed(whole, family))


def prefix(family: str) -> str:
    return "encoder.layer." if family == "bert" else "layers."


@pytest.mark.parametrize("keep", [[], [0, 5], [1, 0], [0, 0], [-1]])
def test_layers_that_are_not_there_are_refused(keep):
    with pytest.raises(BadInput, match=r"needs ascending indices between 0 and 1"):
        keep_layers(tiny.backbone("bert"), keep)


@pytest.mark.parametrize("family", ["qwen3", "eurobert"])
def test_a_changed_theta_is_that_of_a_backbone_built_with_it(family):
    backbone = tiny.backbone(family)
    before = embed(backbone, family)
    assert rope_theta(backbone) == 1000.0
    set_rope_theta(backbone, 50.0)
    assert rope_theta(backbone) == 50.0
    built = build_backbone(tiny.config(family) | {"rope_theta": 50.0})
    built.load_state_dict(backbone.state_dict())
    assert torch.equal(embed(backbone, family), embed(built, family))
    assert not torch.allclose(embed(backbone, family), before, atol=1e-3)
    set_rope_theta(backbone, 1000.0)
    assert torch.equal(embed(backbone, family), before)


def test_theta_without_rotary_positions_is_refused():
    backbone = tiny.backbone("bert")
    assert rope_theta(backbone) is None
    with pytest.raises(
        BadInput,
        match=(
            r"rope_theta 5.0 has no effect: a bert backbone has no rotary positions; remove the key"
        ),
    ):
        set_rope_theta(backbone, 5.0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_training_mode_drops_nothing_of_the_backbone_s_own(family):
    drop = (
        {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
        if family == "bert"
        else {"attention_dropout": 0.5}
    )
    backbone = build_backbone(tiny.config(family) | drop)
    wanted = embed(backbone, family)
    backbone.train()
    assert not torch.equal(embed(backbone, family), wanted)
    without_dropout(backbone)
    assert torch.equal(embed(backbone, family), wanted)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "nonsense"}, "no configuration of model_type 'nonsense'"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, at most 512"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
    ],
)
def test_configurations_that_cannot_be_meant(change, match):
    with pytest.raises(BadInput, match=match):
        make_config(tiny.config("bert") | change, "student.config")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "dbrx", "d_model": 32, "n_layers": 1},
        {"model_type": "funnel", "block_sizes": [2, 2]},
    ],
)
def test_what_transformers_itself_cannot_build_is_refused_in_one_line(config):
    with pytest.raises(BadInput, match="no model that transformers can build") as refused:
        build_backbone(config)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    for name in (tmp_path / "none", "./none", "none"):
        with pytest.raises(
            BadInput,
            match=r"no model at .*; give a model folder, a Hub id owner/name, or all-MiniLM-L6-v2",
        ):
            resolve(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadInput,
        match="no folder owner/nothing here, and the Hub did not give a model of that name",
    ):
        resolve("owner/nothing")
    assert resolve(tmp_path) == tmp_path
