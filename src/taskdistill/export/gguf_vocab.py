"""A tokenizer in the terms of GGUF: byte-level BPE as llama.cpp has it, or WordPiece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskdistill.errors import BadInput

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of the format."""


@dataclass(frozen=True, kw_only=True)
class GgufVocab:
    """What the format stores of a tokenizer."""

    model: str
    """`gpt2` for byte-level BPE, `bert` for WordPiece."""
    pre: str
    """Name of llama.cpp's pre-tokenizer."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    """Id put before every text."""
    eos: int | None
    """Id put after every text."""
    special_ids: dict[str, int]
    """`unk`, `pad`, `mask` to id, where the tokenizer has them."""


def translate_tokenizer(spec: Mapping[str, Any], rows: int, name: str) -> GgufVocab:
    """Translate the content of a `tokenizer.json`.

    `rows`: rows of the token table; ids without a token are filled up as unused. Raises BadInput if
    llama.cpp has no tokenizer that cuts texts the same way.
    """
    model = spec["model"]
    bos, eos = _template_tokens(spec.get("post_processor"), name)
    vocab = model["vocab"].items() if isinstance(model["vocab"], dict) else ()
    tokens = {number: token for token, number in vocab}
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    tokens |= {number: token["content"] for number, token in added.items()}
    types = [_token_type(number, tokens, added) for number in range(rows)]
    texts = [tokens.get(number, f"[PAD{number}]") for number in range(rows)]
    merges: list[str] = []
    kind = model.get("type", "BPE")
    if kind == "WordPiece":
        _check_wordpiece(spec, name)
        texts = [_mark_start(text, type_) for text, type_ in zip(texts, types, strict=True)]
        model_name, pre = "bert", "default"
    elif kind == "BPE":
        model_name, pre = "gpt2", _pre_tokenizer(spec, name)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    else:
        raise BadInput(
            f"{name} has a {kind} tokenizer; GGUF is written for byte-level BPE and WordPiece"
        )
    return GgufVocab(
        model=model_name,
        pre=pre,
        tokens=texts,
        types=types,
        merges=merges,
        bos=bos,
        eos=eos,
        special_ids=_special_ids(added),
    )


def _token_type(
    number: int, tokens: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]
) -> int:
    if number in added:
        return CONTROL if added[number]["special"] else USER_DEFINED
    return NORMAL if number in tokens else UNUSED


def _mark_start(token: str, token_type: int) -> str:
    """Mark the start of a word instead of its continuation, as llama.cpp's WordPiece wants it."""
    if token_type != NORMAL:
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def _special_ids(added: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for role in ("unk", "pad", "mask"):
        for number, token in sorted(added.items()):
            if token["content"].strip("[]<>|").lower() == role:
                ids.setdefault(role, number)
    return ids


def _template_tokens(step: Mapping[str, Any] | None, name: str) -> tuple[int | None, int | None]:
    """Read the special tokens before and after a text; the format has room for one on each side."""
    steps = step["processors"] if step and step["type"] == "Sequence" else [step] if step else []
    before: list[int] = []
    after: list[int] = []
    for part in steps:
        if part["type"] in {"BertProcessing", "RobertaProcessing"}:
            before, after = [part["cls"][1]], [part["sep"][1]]
        if part["type"] == "TemplateProcessing":
            before, after = [], []
            side = before
            for entry in part["single"]:
                if "Sequence" in entry:
                    side = after
                else:
                    side += part["special_tokens"][entry["SpecialToken"]["id"]]["ids"]
    if len(before) > 1 or len(after) > 1:
        raise BadInput(
            f"{name} puts {len(before)} tokens before and {len(after)} after a text; GGUF has room "
            "for one on each side"
        )
    return before[0] if before else None, after[0] if after else None


def _pre_tokenizer(spec: Mapping[str, Any], name: str) -> str:
    step = spec.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    by_type = {part.get("type"): part for part in reversed(steps)}
    split = by_type["Split"]["pattern"].get("Regex") if "Split" in by_type else None
    byte_level = by_type.get("ByteLevel")
    if byte_level is not None and not byte_level.get("add_prefix_space"):
        if split is None and byte_level.get("use_regex", True):
            return "gpt-2"
        if split == _QWEN2:
            return "qwen2"
        if split == _LLAMA3:
            # Both names have this pattern; only llama-bpe looks a whole word up before it merges.
            return "llama-bpe" if spec["model"].get("ignore_merges") else "dbrx"
    raise BadInput(
        f"{name}: llama.cpp has no pre-tokenizer like this model's; those of GPT-2, Llama 3 and "
        "Qwen are written"
    )


def _check_wordpiece(spec: Mapping[str, Any], name: str) -> None:
    normalizer = spec.get("normalizer") or {}
    lowercases = normalizer.get("type") == "BertNormalizer" and normalizer.get("lowercase")
    if not lowercases or normalizer.get("strip_accents") is False:
        raise BadInput(
            f"{name}: llama.cpp's WordPiece lowercases and strips accents, this model's tokenizer "
            f"does not ({json.dumps(normalizer)})"
        )
