"""What a tokenizer file may ask for: known steps, regular expressions that end, output no longer
than a small multiple of its input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput

SIZE_LIMIT = 64_000_000
"""Bytes of a tokenizer.json; the largest in use, of 260,000 tokens, have about 35 million."""

MODELS = frozenset({"BPE", "WordPiece", "Unigram", "WordLevel"})
NORMALIZERS = frozenset(
    {
        "Sequence",
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Lowercase",
        "StripAccents",
        "Strip",
        "Prepend",
        "Replace",
        "Precompiled",
        "ByteLevel",
    }
)
PRE_TOKENIZERS = frozenset(
    {
        "Sequence",
        "BertPreTokenizer",
        "ByteLevel",
        "Whitespace",
        "WhitespaceSplit",
        "Metaspace",
        "Punctuation",
        "Digits",
        "Split",
        "UnicodeScripts",
    }
)
POST_PROCESSORS = frozenset(
    {"Sequence", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel"}
)

REPLACEMENT_LIMIT = 8
"""Characters that a normaliser may put in place of one match or before a text."""

REPLACE_LIMIT = 16
"""Replace steps of one tokenizer; only two of them may lengthen a text."""

PATTERN_LIMIT = 2_000
SPECIAL_LIMIT = 64
"""Special tokens put around one text."""

WORD_LIMIT = 1_000
"""Largest `max_input_chars_per_word`: WordPiece takes time quadratic in it."""

TOKEN_LIMIT = 4_000_000


def check_tokenizer(path: Path) -> int:
    """Check a `tokenizer.json` before the tokenizer is built.

    Returns one more than the largest token id, so that it can be compared with the rows of the
    token table. Raises BadInput if it is too large or cut short, or a step, pattern or id is not
    one that is accepted.
    """
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise BadInput(
            f"{path} has {size} bytes, at most {SIZE_LIMIT} are accepted; it is no tokenizer"
        )
    try:
        spec = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} is not valid JSON ({error}), perhaps cut short; copy it again"
        ) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise BadInput(
            f"{path} holds no tokenizer: an object with `model` is needed; copy it again"
        )
    try:
        _check_steps(path, spec)
        return _rows(path, spec)
    except (TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{path} is malformed ({type(error).__name__}: {error}); copy it again"
        ) from None


def _check_steps(path: Path, spec: Mapping[str, Any]) -> None:
    growing = replaces = 0
    for step in _steps(path, spec.get("normalizer"), "normalizers", NORMALIZERS):
        if step["type"] in {"Replace", "Prepend"}:
            content = step["content"] if step["type"] == "Replace" else step["prepend"]
            if len(content) > REPLACEMENT_LIMIT:
                raise BadInput(
                    f"{path}: a normaliser puts in {len(content)} characters at once, at most"
                    f" {REPLACEMENT_LIMIT} are accepted"
                )
            replaces += 1
            plain = step.get("pattern", {}).get("String", "")
            growing += len(content) > max(1, len(plain))
        if "pattern" in step:
            _check_pattern(path, step["pattern"])
    if replaces > REPLACE_LIMIT or growing > 2:
        raise BadInput(
            f"{path}: {replaces} replacements, {growing} of which lengthen the text; at most"
            f" {REPLACE_LIMIT} and 2 are accepted"
        )
    for step in _steps(path, spec.get("pre_tokenizer"), "pretokenizers", PRE_TOKENIZERS):
        if "pattern" in step:
            _check_pattern(path, step["pattern"])
    for step in _steps(path, spec.get("post_processor"), "processors", POST_PROCESSORS):
        ids = [token["ids"] for token in (step.get("special_tokens") or {}).values()]
        if (
            max([len(step.get("single") or []), len(step.get("pair") or []), *map(len, ids)])
            > SPECIAL_LIMIT
        ):
            raise BadInput(f"{path}: a text would get more than {SPECIAL_LIMIT} special tokens")


def _steps(path: Path, step: Any, inner: str, known: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """Walk through sequences of steps, refusing types that are not known."""
    if step is None:
        return
    if step["type"] not in known:
        raise BadInput(
            f"{path} asks for the step {step['type']!r}; accepted here are"
            f" {', '.join(sorted(known))}"
        )
    if step["type"] == "Sequence":
        for part in step[inner]:
            yield from _steps(path, part, inner, known)
        return
    yield step


def _check_pattern(path: Path, pattern: Mapping[str, str]) -> None:
    text = pattern.get("Regex")
    if text is None:
        return
    if reason := slow_pattern(text):
        raise BadInput(
            f"{path}: the regular expression {text[:80]!r} {reason}, which can take for ever; use a"
            " plain split such as those of GPT-2 or Qwen"
        )


def slow_pattern(text: str) -> str | None:
    """Say why a regular expression could need time exponential, or a high power, in the length of a
    text.

    The patterns of published tokenizers pass: they repeat single characters or classes only.
    Returns the reason, or None if it is accepted.
    """
    if len(text) > PATTERN_LIMIT:
        return f"has {len(text)} characters"
    bare = _without_classes(text)
    if re.search(r"\)(?:[*+]|\{\d*,\}|\{\d*,?\d{2,}\})", bare):
        return "repeats a group"
    if re.search(r"\\[1-9]|\\k<|\(\?[&R0-9]|\\g<", bare):
        return "refers back to a group"
    if re.search(r"\{\d{4,}|,\d{4,}\}", bare):
        return "repeats more than 999 times"
    for branch in re.split(r"\|", bare):
        if len(re.findall(r"(?<!\()[*+]|\{\d+,\}", branch)) > 5:
            return "repeats more than five things in a row"
    return None


def _without_classes(text: str) -> str:
    """Replace escapes and character classes by one letter, so that what is left shows groups and
    repetitions.
    """
    out, i = [], 0
    while i < len(text):
        if text[i] == "\\" and i + 1 < len(text):
            braced = re.match(r"\\[pPx]\{[^}]*\}", text[i:])
            keep = text[i + 1].isdigit() or text[i + 1] in "kg"
            out.append(text[i : i + 2] if keep else "c")
            i += braced.end() if braced else 2
        elif text[i] == "[":
            depth, i = 1, i + 1
            while i < len(text) and depth:
                depth += (text[i] == "[") - (text[i] == "]")
                i += 2 if text[i] == "\\" else 1
            out.append("c")
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def _rows(path: Path, spec: Mapping[str, Any]) -> int:
    model = spec["model"]
    if model.get("type", "BPE") not in MODELS:
        raise BadInput(
            f"{path} has a model of type {model.get('type')!r}; accepted are"
            f" {', '.join(sorted(MODELS))}"
        )
    if model.get("max_input_chars_per_word", 0) > WORD_LIMIT:
        raise BadInput(
            f"{path}: max_input_chars_per_word is {model['max_input_chars_per_word']}, at most"
            f" {WORD_LIMIT} is accepted"
        )
    vocabulary = model["vocab"]
    ids = (
        list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    )
    ids += [token["id"] for token in spec.get("added_tokens") or []]
    ids += [
        number
        for step in _steps(path, spec.get("post_processor"), "processors", POST_PROCESSORS)
        for number in _special_ids(step)
    ]
    if any(type(number) is not int or not 0 <= number < TOKEN_LIMIT for number in ids):
        raise BadInput(f"{path} holds a token id that is not between 0 and {TOKEN_LIMIT}")
    return max(ids, default=-1) + 1


def _special_ids(step: Mapping[str, Any]) -> list[int]:
    if step["type"] in {"BertProcessing", "RobertaProcessing"}:
        return [step["sep"][1], step["cls"][1]]
    return [
        number for token in (step.get("special_tokens") or {}).values() for number in token["ids"]
    ]
