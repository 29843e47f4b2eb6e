"""Families beside our three: their vectors are those of transformers itself, whether their attention can be packed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from taskdistill.encode.encoder import Encoder
from taskdistill.model.backbone import build_backbone, first_position, longest_text
from taskdistill.model.packed import pack
from taskdistill.model.student import TransformerModel
from taskdistill.vocabulary import Pooling

HEADS = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "mpnet": {},
    "electra": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {},
    "modernbert": {"eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3},
    "nomic_bert": {},
    "llama": HEADS,
    "mistral": HEADS,
    "qwen2": HEADS,
    "gemma3_text": HEADS | {"head_dim": 8},
}
ALONE = {"mpnet", "deberta-v2"}
"""Families that compute attention by themselves; their texts run in ordinary batches of equal length."""
OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet"}


def config(family: str) -> dict[str, Any]:
    sizes = {"vocab_size": tiny.tokenizer().get_vocab_size(), "num_hidden_layers": 2, "max_position_embeddings": 66, "pad_token_id": 1}
    return {"model_type": family, **sizes, **tiny.SHAPE, **FAMILIES[family]}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_backbone(config(family))


def texts() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(5, 150, size=n) for n in (9, 3, 9, 1, 20, 64)]


def test_vectors_are_those_of_each_text_by_itself(family):
    backbone = made(family)
    model = TransformerModel(backbone, Pooling.MEAN)
    assert model.packs is (family not in ALONE) and (first_position(backbone) == 2) is (family in OFFSET)
    assert longest_text(backbone, 0) == (64 if family in OFFSET else 66)
    with torch.no_grad():
        together = model.embed(texts())
        packed = pack(texts())
        from_rows = model.pooled(packed, model.token_vectors(packed))[packed.order.argsort()]
        if model.packs:
            backbone.set_attn_implementation("eager")
        alone = torch.cat([backbone(input_ids=torch.from_numpy(text)[None]).last_hidden_state.mean(1) for text in texts()])
    assert (together - alone).abs().max() <= 1e-5
    assert (from_rows - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["xlm-roberta", "mpnet", "electra", "modernbert", "deberta-v2"], indirect=True)
def test_a_folder_of_sentence_transformers_gives_its_vectors(family, tmp_path):
    stock = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.models import Pooling as StockPooling
    from sentence_transformers.models import Transformer

    source = tiny.write_tokenizer(tmp_path / "source")
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**config(family))).save_pretrained(source)
    body = Transformer(str(source), max_seq_length=32)
    theirs = stock.SentenceTransformer(modules=[body, StockPooling(32, "mean")], device="cpu")
    theirs.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    sentences = ["the old harbour by the sea", "a judge in court.", "Ship", "cow " * 90]
    ours = Encoder.load(Path(tmp_path / "model"), threads=1)
    assert ours.max_length == 32
    assert np.abs(ours.encode(sentences) - theirs.encode(sentences, normalize_embeddings=True)).max() <= 1e-5
