"""A tokenizer in the terms of GGUF: byte-level BPE with a pre-tokenizer that llama.cpp has, or lowercasing WordPiece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskdistill.errors import BadInput

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of the format."""


@dataclass(frozen=True)
class GgufVocab:
    """What the format stores of a tokenizer."""

    model: str
    """`gpt2` for byte-level BPE, `bert` for WordPiece."""
    pre: str
    """Name of llama.cpp's pre-tokenizer."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    first: int | None
    """Id put before every text."""
    last: int | None
    """Id put after every text."""
    named: dict[str, int]
    """`unk`, `pad`, `mask` to id, where the tokenizer has them."""


def vocabulary(spec: Mapping[str, Any], rows: int, name: str) -> GgufVocab:
    """Translate a `tokenizer.json`.

    Args:
        spec: Its content.
        rows: Rows of the token table; ids without a token are filled up as unused.
        name: Name of the model, for messages.

    Returns:
        The translation.

    Raises:
        BadInput: If llama.cpp has no tokenizer that cuts texts the same way.
    """
    model = spec["model"]
    first, last = _around(spec.get("post_processor"), name)
    tokens = (
        {number: token for token, number in model["vocab"].items()}
        if isinstance(model["vocab"], dict)
        else {}
    )
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    tokens |= {number: token["content"] for number, token in added.items()}
    kind = model.get("type", "BPE")
    types = [_type(number, tokens, added) for number in range(rows)]
    listed = [tokens.get(number, f"[PAD{number}]") for number in range(rows)]
    if kind == "WordPiece":
        _check_wordpiece(spec, name)
        listed = [_phantom(token, types[number]) for number, token in enumerate(listed)]
        model_name, pre, merges = "bert", "default", []
    elif kind == "BPE":
        model_name, pre = "gpt2", _pre_tokenizer(spec, name)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    else:
        raise BadInput(
            f"{name} has a {kind} tokenizer; GGUF is written for byte-level BPE and WordPiece"
        )
    named = {
        role: number
        for role in ("unk", "pad", "mask")
        if (number := _find(role, added)) is not None
    }
    return GgufVocab(model_name, pre, listed, types, merges, first, last, named)


def _type(number: int, tokens: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    if number in added:
        return CONTROL if added[number]["special"] else USER_DEFINED
    return NORMAL if number in tokens else UNUSED


def _phantom(token: str, kind: int) -> str:
    """Mark the start of a word instead of its continuation, as llama.cpp's WordPiece wants it."""
    if kind != NORMAL:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def _find(role: str, added: Mapping[int, Mapping[str, Any]]) -> int | None:
    return next(
        (
            number
            for number, token in sorted(added.items())
            if token["content"].strip("[]<>|").lower() in {role, f"|{role}|"}
        ),
        None,
    )


def _around(step: Mapping[str, Any] | None, name: str) -> tuple[int | None, int | None]:
    """Find the special tokens before and after a text; more than one on a side has no place in the format."""
    steps = step["processors"] if step and step["type"] == "Sequence" else [step] if step else []
    first: list[int] = []
    last: list[int] = []
    for part in steps:
        if part["type"] in {"BertProcessing", "RobertaProcessing"}:
            first, last = [part["cls"][1]], [part["sep"][1]]
        if part["type"] == "TemplateProcessing":
            where = next(i for i, piece in enumerate(part["single"]) if "Sequence" in piece)
            ids = [
                part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
                if "SpecialToken" in piece
                else []
                for piece in part["single"]
            ]
            first, last = (
                [n for part in ids[:where] for n in part],
                [n for part in ids[where + 1 :] for n in part],
            )
    if len(first) > 1 or len(last) > 1:
        raise BadInput(
            f"{name} puts {len(first)} tokens before and {len(last)} after a text; GGUF has room for one on each side"
        )
    return first[0] if first else None, last[0] if last else None


def _pre_tokenizer(spec: Mapping[str, Any], name: str) -> str:
    step = spec.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    split = next(
        (part["pattern"].get("Regex") for part in steps if part.get("type") == "Split"), None
    )
    byte_level = next((part for part in steps if part.get("type") == "ByteLevel"), None)
    if byte_level is not None and not byte_level.get("add_prefix_space"):
        if split is None and byte_level.get("use_regex", True):
            return "gpt-2"
        if split == _QWEN2:
            return "qwen2"
        if split == _LLAMA3:
            return "llama-bpe" if spec["model"].get("ignore_merges") else "dbrx"
    raise BadInput(
        f"{name}: llama.cpp has no pre-tokenizer like this model's; those of GPT-2, Llama 3 and Qwen are written"
    )


def _check_wordpiece(spec: Mapping[str, Any], name: str) -> None:
    normalizer = spec.get("normalizer") or {}
    if (
        normalizer.get("type") != "BertNormalizer"
        or not normalizer.get("lowercase")
        or normalizer.get("strip_accents") is False
    ):
        raise BadInput(
            f"{name}: llama.cpp's WordPiece lowercases and strips accents, this model's tokenizer does not ({json.dumps(normalizer)})"
        )
