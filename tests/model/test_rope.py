"""The RoPE theta reaches the frequencies of every family, or is refused; what is read back is what
is in force.
"""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_families as families

from taskdistill.errors import BadInput
from taskdistill.model.backbone import build_backbone
from taskdistill.model.rope import rope_theta, set_rope_theta

TURNS = families.WINDOWED
ONE_THETA = [
    "qwen3",
    "eurobert",
    "llama",
    "mistral",
    "gemma",
    "gpt_oss",
    "nomic_bert",
    "qwen2",
    "phi3",
]
TWO_THETAS = ["gemma3_text", "modernbert", "embedding_gemma2_text"]


def frequencies(backbone) -> dict[str, torch.Tensor]:
    return {
        name: value.clone() for name, value in backbone.named_buffers() if name.endswith("inv_freq")
    }


def states(backbone) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(families.together(backbone, families.texts((9, 40))))


@pytest.mark.parametrize("kind", ONE_THETA + TWO_THETAS)
def test_a_new_theta_is_that_of_a_model_built_with_it(kind):
    backbone = families.backbone(kind, **(TURNS if kind == "gemma3_text" else {}))
    own, before, freqs = rope_theta(backbone), states(backbone), frequencies(backbone)
    assert own is not None
    set_rope_theta(backbone, 777.0)
    assert rope_theta(backbone) == 777.0
    changed = {
        name for name, value in frequencies(backbone).items() if not torch.equal(value, freqs[name])
    }
    assert changed and {"sliding" in name for name in changed} == {False}
    again = build_backbone(backbone.config.to_dict())
    again.load_state_dict(backbone.state_dict())
    assert (
        (states(again) - states(backbone)).abs().max()
        <= 1e-6
        < (states(backbone) - before).abs().max()
    )
    set_rope_theta(backbone, own)
    assert torch.equal(states(backbone), before)


def test_where_every_layer_has_a_window_their_theta_is_meant():
    backbone = families.backbone("gemma3_text")
    assert (
        set(backbone.config.layer_types) == {"sliding_attention"}
        and rope_theta(backbone) == 10_000.0
    )
    before = states(backbone)
    set_rope_theta(backbone, 777.0)
    assert rope_theta(backbone) == 777.0 and (states(backbone) - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {}),
        ("mpnet", {}),
        ("gpt2", {}),
        ("granite_swa", {"layer_rope_theta": [1e4, 2e4, 0, 1e4]}),
        (
            "gpt_neox",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.25,
                }
            },
        ),
    ],
)
def test_a_theta_without_effect_is_refused_and_changes_nothing(kind, changes):
    """No rotary positions, a theta for each layer, or so few rotated dimensions that the theta
    decides nothing.
    """
    backbone = families.backbone(kind, **changes)
    theta, before = rope_theta(backbone), states(backbone)
    with pytest.raises(BadInput, match=r"rope_theta 777.0 has no effect: .* remove the key"):
        set_rope_theta(backbone, 777.0)
    assert rope_theta(backbone) == theta and torch.equal(states(backbone), before)


def test_scaled_frequencies_keep_their_scaling():
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    backbone = families.backbone("llama", rope_parameters=scaling)
    set_rope_theta(backbone, 500.0)
    plain = families.backbone(
        "llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    )
    assert torch.allclose(4.0 * backbone.rotary_emb.inv_freq, plain.rotary_emb.inv_freq)


def test_a_plan_without_weights_can_set_it():
    backbone = build_backbone(families.config("modernbert"), device="meta")
    set_rope_theta(backbone, 777.0)
    assert rope_theta(backbone) == 777.0


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "default", "rope_theta": -1.0},
        {"rope_type": "default", "rope_theta": float("nan")},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0},
        {"rope_type": "default", "rope_theta": "many"},
        {"rope_type": "of another world", "rope_theta": 1e4},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ],
)
def test_rotary_settings_of_which_nothing_can_be_computed_are_refused(settings):
    with pytest.raises(BadInput, match=r"^student\.config"):
        build_backbone(families.config("qwen3", rope_parameters=settings))


def test_a_theta_beside_those_of_each_kind_of_layer_is_not_taken_for_them():
    """Gemma 3 keeps a theta for each kind; one that stands beside them is nobody's."""
    backbone = families.backbone(
        "gemma3_text", **TURNS, rope_parameters={"rope_type": "default", "rope_theta": 5_000.0}
    )
    own = backbone.config.rope_parameters["full_attention"]["rope_theta"]
    assert rope_theta(backbone) == own
    before = frequencies(backbone)
    set_rope_theta(backbone, 777.0)
    assert rope_theta(backbone) == 777.0
    assert any(
        "full" in name and not torch.equal(value, before[name])
        for name, value in frequencies(backbone).items()
    )
