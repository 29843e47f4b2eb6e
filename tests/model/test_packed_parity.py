"""The packed stream equals padded batches for three families, LoRA and gradients included; the
wrong ways to pack are wrong.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_jina import tiny_backbone
from transformers import BertConfig, BertModel, PreTrainedModel

from taskdistill.model.lora import adapter_parameters, attach, lora_config
from taskdistill.model.packed import pack
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.pooling import pool_padded
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

FAMILIES = ["bert", "qwen3", "eurobert"]
LENGTHS = [7, 1, 5, 7, 12, 5, 2]


def backbone_of(family: str) -> PreTrainedModel:
    if family != "bert":
        return tiny_backbone(family)
    torch.manual_seed(0)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return BertModel(
        BertConfig(**shape, max_position_embeddings=64, initializer_range=0.3),
        add_pooling_layer=False,
    ).eval()


def with_adapter(backbone: PreTrainedModel) -> PreTrainedModel:
    attach(backbone, "retrieval", lora_config(backbone, rank=4, alpha=8, dropout=0.0))
    torch.manual_seed(7)
    for parameter in adapter_parameters(backbone, "retrieval").values():
        parameter.data.normal_(std=0.2)
    return backbone


def texts() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(5, 300, size=n).astype(np.int32) for n in LENGTHS]


def padded(ids: list[np.ndarray], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, ids))
    rows, mask = (
        torch.ones(len(ids), longest, dtype=torch.long),
        torch.zeros(len(ids), longest, dtype=torch.long),
    )
    for row, text in enumerate(ids):
        place = slice(0, len(text)) if side == "right" else slice(longest - len(text), longest)
        rows[row, place] = torch.from_numpy(text.astype(np.int64))
        mask[row, place] = 1
    return rows, mask


def vectors_packed(
    backbone: PreTrainedModel, ids: list[np.ndarray], pooling: Pooling
) -> torch.Tensor:
    backbone.set_attn_implementation(ATTENTION)
    return TransformerModel(backbone, pooling).embed(ids)


def vectors_padded(
    backbone: PreTrainedModel, ids: list[np.ndarray], pooling: Pooling, side: str
) -> torch.Tensor:
    backbone.set_attn_implementation("sdpa")
    rows, mask = padded(ids, side)
    return pool_padded(
        backbone(input_ids=rows, attention_mask=mask).last_hidden_state, mask, pooling
    )


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_and_one_equals_many(family, pooling):
    backbone = with_adapter(backbone_of(family))
    with torch.no_grad():
        packed = vectors_packed(backbone, texts(), pooling)
        alone = torch.cat([vectors_packed(backbone, [text], pooling) for text in texts()])
        backwards = vectors_packed(backbone, texts()[::-1], pooling).flip(0)
        right = vectors_padded(backbone, texts(), pooling, "right")
        sides = (
            [right]
            if family == "bert"
            else [right, vectors_padded(backbone, texts(), pooling, "left")]
        )
    for other in (alone, backwards, *sides):
        assert (packed - other).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_of_base_and_adapter_equal_padded_ones(family):
    found = []
    for make in (vectors_packed, lambda *given: vectors_padded(*given, "right")):
        backbone = with_adapter(backbone_of(family))
        backbone.requires_grad_(True)
        weights = torch.linspace(-1, 1, len(LENGTHS) * 32).reshape(len(LENGTHS), 32)
        (make(backbone, texts(), Pooling.LAST) * weights).sum().backward()
        found.append(
            {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        )
    packed, plain = found
    assert packed.keys() == plain.keys()
    assert sum("lora_" in name for name in packed) == 2 * 2 * (6 if family == "bert" else 7)
    for name, gradient in packed.items():
        assert (gradient - plain[name]).abs().max() <= 1e-5 * max(
            1.0, float(plain[name].abs().max())
        ), name


def test_the_stream_refuses_what_it_cannot_pack():
    backbone = backbone_of("qwen3")
    backbone.set_attn_implementation(ATTENTION)
    with pytest.raises(ValueError, match="needs one stream"):
        backbone(input_ids=torch.ones(1, 4, dtype=torch.long))


TWO = [np.arange(10, 15, dtype=np.int32), np.arange(30, 37, dtype=np.int32)]


def two_in_a_row(family: str, **options: object) -> float:
    """Largest difference between two documents in one row with restarted positions, and the two
    apart.
    """
    backbone = backbone_of(family)
    row = torch.from_numpy(np.concatenate(TWO).astype(np.int64))[None]
    positions = torch.cat([torch.arange(len(text)) for text in TWO])[None]
    with torch.no_grad():
        together = backbone(input_ids=row, position_ids=positions, **options).last_hidden_state[0]
        apart = torch.cat(
            [
                backbone(input_ids=torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[
                    0
                ]
                for text in TWO
            ]
        )
    return float((together - apart).abs().max())


def block_mask() -> torch.Tensor:
    owner = torch.cat([torch.full((len(text),), i) for i, text in enumerate(TWO)])
    return (owner[:, None] == owner[None, :])[None, None]


def test_the_wrong_packings_are_wrong_and_the_right_ones_right():
    """What the libraries do with restarted positions alone; a change here would be a change of
    theirs worth knowing.
    """
    assert two_in_a_row("qwen3") > 0.1  # a cache object is made, so that packing is not seen
    assert two_in_a_row("qwen3", use_cache=False) <= 1e-5
    assert two_in_a_row("eurobert") > 0.1  # the bidirectional mask never looks at positions
    assert two_in_a_row("eurobert", attention_mask=block_mask()) <= 1e-5


@pytest.mark.parametrize("family", ["qwen3", "eurobert"])
def test_our_stream_is_right_where_those_are_wrong(family):
    backbone = backbone_of(family)
    with torch.no_grad():
        apart = [
            backbone(input_ids=torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[0]
            for text in TWO
        ]
        backbone.set_attn_implementation(ATTENTION)
        together = TransformerModel(backbone, Pooling.LAST).hidden(pack(TWO))
    assert (together - torch.cat(apart)).abs().max() <= 1e-5
