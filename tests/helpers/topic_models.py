"""Small models that know what a word is about: the vectors of a topic's words lie around one
direction, with noise.

A teacher knows it well, a student half: what a student gains in training can be measured in
seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers import tiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from taskdistill.encode.encoder import Encoder
from taskdistill.model.backbone import without_dropout
from taskdistill.model.folder import write_model
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters_tokenizer() -> Tokenizer:
    """Another tokenizer of the same words: each word whole, but in another order, without marks
    around a text.
    """
    words = sorted({*tiny.WORDS, *tiny.COMMON, *tiny.OTHER}, reverse=True)
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "[PAD]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    made.add_special_tokens(["[UNK]", "[PAD]"])
    return made


def write(
    folder: Path,
    *,
    width: int,
    noise: float,
    seed: int,
    pooling: Pooling = Pooling.MEAN,
    letters: bool = False,
    layers: int = 2,
) -> Path:
    """Write a model folder whose words lie around their topics, in a space of its own."""
    tokenizer = letters_tokenizer() if letters else tiny.tokenizer()
    torch.manual_seed(seed)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    module = BertModel(
        BertConfig(
            **shape,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            initializer_range=0.02,
            pad_token_id=0,
        ),
        add_pooling_layer=False,
    )
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(shape["vocab_size"], width)) * noise
    for words in tiny.TOPICS.values():
        direction = rng.normal(size=width)
        for word in words.split():
            table[tokenizer.token_to_id(word)] += direction
    with torch.no_grad():
        module.embeddings.word_embeddings.weight.copy_(torch.from_numpy(table))
    module.set_attn_implementation(ATTENTION)
    without_dropout(module)
    source = folder.with_name(f"{folder.name}-tokenizer")
    source.mkdir(parents=True)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}'
    )
    made = tiny.model(TransformerModel(module.eval(), pooling), source, prompts={})
    made.settings = type(made.settings)(prompts={}, max_length=64, matryoshka_dims=(width,))
    made.tokenizer = type(made.tokenizer)(tokenizer)
    write_model(folder, made)
    return folder


def write_vectors(folder: Path, teacher: Path, texts: list[str]) -> Path:
    """Write a model's vectors of some texts as a folder of vectors on disk."""
    folder.mkdir(parents=True)
    np.save(folder / "vectors.npy", Encoder.load(teacher, threads=1).encode(texts))
    tiny.write_jsonl(folder / "texts.jsonl", [{"text": text} for text in texts])
    return folder


def separation(model: Path | Encoder, *, seed: int = 9, count: int = 160) -> float:
    """How well a model tells topics apart: the mean cosine within a topic minus that between
    topics, over their spread.
    """
    encoder = model if isinstance(model, Encoder) else Encoder.load(model, threads=1)
    rng, topics = np.random.default_rng(seed), list(tiny.TOPICS)
    texts = [tiny.sentence(topics[n % len(topics)], rng) for n in range(count)]
    vectors = encoder.encode(texts)
    cosines, rows = vectors @ vectors.T, np.arange(count)
    same = (rows[:, None] % len(topics)) == (rows[None, :] % len(topics))
    upper = np.triu(np.ones_like(same), 1)
    within, between = cosines[same & upper], cosines[~same & upper]
    return float((within.mean() - between.mean()) / np.sqrt(0.5 * (within.var() + between.var())))
