"""The two backbones of the published recipes as the Hub has them: every file in its form, the whole
vocabulary, a narrow body.
"""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import EuroBertConfig, EuroBertForMaskedLM, Qwen3Config, Qwen3ForCausalLM

BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
}
ROWS = {"qwen3": 151_936, "eurobert": 128_256}
"""Rows of the token table."""
IDS = {"qwen3": 151_669, "eurobert": 128_256}
"""Ids of the tokenizer; Qwen3's table has more rows than that."""

QWEN3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_MARKS = (
    *(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
    ),
    *(
        "<|quad_start|>",
        "<|quad_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    *(
        "<tool_call>",
        "</tool_call>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
        "<|repo_name|>",
    ),
    *("<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
EUROBERT_MARKS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|mask|>", "<|parallel_sep|>"),
    *(f"<|reserved_special_token_{n}|>" for n in range(252)),
)

QWEN3_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151_936,
}
EUROBERT_CONFIG: dict[str, Any] = {
    "architectures": ["EuroBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_eurobert.EuroBertConfig",
        "AutoModel": "modeling_eurobert.EuroBertModel",
        "AutoModelForPreTraining": "modeling_eurobert.EuroBertPreTrainedModel",
        "AutoModelForMaskedLM": "modeling_eurobert.EuroBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_eurobert.EuroBertForSequenceClassification",
    },
    "bos_token": "<|begin_of_text|>",
    "bos_token_id": 128_000,
    "clf_pooling": "late",
    "eos_token": "<|end_of_text|>",
    "eos_token_id": 128_001,
    "hidden_act": "silu",
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "mask_token": "<|mask|>",
    "mask_token_id": 128_002,
    "max_position_embeddings": 8_192,
    "mlp_bias": False,
    "model_type": "eurobert",
    "num_key_value_heads": 4,
    "pad_token": "<|end_of_text|>",
    "pad_token_id": 128_001,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250_000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": False,
    "vocab_size": 128_256,
}


def write(
    family: str,
    folder: Path,
    *,
    canary: Path | None = None,
    body: dict[str, Any] | None = None,
    ids: int | None = None,
) -> Path:
    """Write a backbone: configuration, bfloat16 weights with the head that the Hub's have,
    tokenizer, and modules that leave a trace.

    `body` and `ids` give it another shape and another number of tokens.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    raw = {**(QWEN3_CONFIG if family == "qwen3" else EUROBERT_CONFIG), **(body or BODY)}
    if ids is not None:
        marks_from = ids - len(QWEN3_MARKS if family == "qwen3" else EUROBERT_MARKS)
        raw |= {
            key: marks_from + raw[key] - (IDS[family] - (ids - marks_from))
            for key in ("bos_token_id", "eos_token_id")
        }
    made, model = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "eurobert": (EuroBertConfig, EuroBertForMaskedLM),
    }[family]
    given = {
        key: value
        for key, value in raw.items()
        if key not in {"auto_map", "torch_dtype", "transformers_version", "model_type"}
    }
    model(made(**given)).to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(family, ids)))
    marks = {
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
    }
    if family == "eurobert":
        marks = {
            "eos_token": "<|end_of_text|>",
            "pad_token": "<|end_of_text|>",
            "bos_token": "<|begin_of_text|>",
            "mask_token": "<|mask|>",
        }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer" if family == "qwen3" else "PreTrainedTokenizerFast",
        "model_max_length": 131_072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | marks))
    for name in ("configuration_eurobert", "modeling_eurobert") if family == "eurobert" else ():
        trace = canary or folder / "ran"
        (folder / f"{name}.py").write_text(
            f"import pathlib; pathlib.Path({str(trace)!r}).write_text('ran')\n"
        )
    return folder


def tokenizer(family: str, ids: int | None = None) -> dict[str, Any]:
    """A byte-level BPE tokenizer of the family's size, steps and marks; its merges join bytes to
    pairs and pairs to triples.
    """
    marks = QWEN3_MARKS if family == "qwen3" else EUROBERT_MARKS
    count = (ids or IDS[family]) - len(marks)
    letters = sorted(
        ByteLevel.alphabet(),
        key=lambda letter: (not ("a" <= letter <= "z" or letter == "Ġ"), letter),
    )
    pairs = list(islice(product(letters, letters), count - len(letters)))
    triples = islice(
        ((a + b, c) for (a, b), c in product(pairs, letters)), count - len(letters) - len(pairs)
    )
    merges = [*pairs, *triples]
    vocabulary = {
        piece: place for place, piece in enumerate([*letters, *(a + b for a, b in merges)])
    }
    assert len(vocabulary) == count
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    added = [
        {
            "id": count + n,
            "content": mark,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": mark[1] == "|",
        }
        for n, mark in enumerate(marks)
    ]
    post: dict[str, Any] = byte_level
    if family == "eurobert":
        begin, end = marks[:2]
        ends = {
            mark: {"id": mark, "ids": [count + n], "tokens": [mark]}
            for n, mark in enumerate((begin, end))
        }
        single = [
            {"SpecialToken": {"id": begin, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": end, "type_id": 0}},
        ]
        pair = [
            *single,
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": end, "type_id": 1}},
        ]
        template = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": ends,
        }
        post = {"type": "Sequence", "processors": [byte_level, template]}
    split = {
        "type": "Split",
        "pattern": {"Regex": QWEN3_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if family == "qwen3" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": post,
        "decoder": {
            **byte_level,
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "" if family == "qwen3" else None,
            "end_of_word_suffix": "" if family == "qwen3" else None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": family == "eurobert",
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }
