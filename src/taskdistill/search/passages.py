"""Cut long documents into passages at sentence or paragraph boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskdistill.errors import BadInput, did_you_mean

WORD = re.compile(
    # One ideograph or kana is one word.
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_SENTENCE_END = re.compile(
    r"""[.!?\u2026]+["'\u201d\u2019)\]]*(?=\s)"""
    r"""|[\u3002\uff01\uff1f]+["'\u201d\u2019\u300d)\]]*|\n\s*\n"""
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")

UNITS = ("words", "characters")
BOUNDARIES = ("word", "sentence", "paragraph")

Span = tuple[int, int]
"""Start and end of a passage in its text, in characters."""


@dataclass(frozen=True, kw_only=True)
class PassageSettings:
    """How a document is cut."""

    unit: Literal["words", "characters"] = "words"
    """What `size` and `overlap` count."""
    size: int = 256
    """Largest passage."""
    overlap: int = 32
    """How much of a passage's end the next one repeats, where the boundaries allow it."""
    boundary: Literal["word", "sentence", "paragraph"] = "sentence"
    """Where passages may begin and end; what is too long without one is cut between words."""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise BadInput(
                f"passages cannot be measured in {self.unit!r}{did_you_mean(self.unit, UNITS)}"
            )
        if self.boundary not in BOUNDARIES:
            raise BadInput(
                f"passages cannot end at {self.boundary!r}{did_you_mean(self.boundary, BOUNDARIES)}"
            )
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise BadInput(
                f"passages of size {self.size} with overlap {self.overlap}; size must be at least "
                "1 and overlap from 0 to size - 1"
            )


def word_passages(words: int | None) -> PassageSettings | None:
    """Return passages of so many words with a short overlap, or None for whole documents."""
    return None if words is None else PassageSettings(size=words, overlap=min(32, words // 8))


def split(text: str, passages: PassageSettings | None) -> list[Span]:
    """Cut a text into passages, in order; every word is in at least one.

    `passages`: how to cut, or None for one passage that is the whole text. Returns passages without
    white space at their ends; none for a text of white space.
    """
    trimmed = _trim(text, 0, len(text))
    if trimmed is None:
        return []
    if passages is None:
        return [(0, len(text))]
    if _measure(text, trimmed, passages.unit) <= passages.size:
        return [trimmed]
    return _pack(text, list(_segments(text, passages)), passages)


def _segments(text: str, passages: PassageSettings) -> Iterator[Span]:
    """Yield spans no longer than a passage, each ending at a boundary where there is one."""
    if passages.boundary == "word":
        yield from _words(text, (0, len(text)), passages)
        return
    pattern = _PARAGRAPH_END if passages.boundary == "paragraph" else _SENTENCE_END
    start = 0
    for end in [*(match.end() for match in pattern.finditer(text)), len(text)]:
        span = _trim(text, start, end)
        start = end
        if span is None:
            continue
        if _measure(text, span, passages.unit) <= passages.size:
            yield span
        else:
            yield from _words(text, span, passages)


def _words(text: str, span: Span, passages: PassageSettings) -> Iterator[Span]:
    """Yield the words of a span; by characters, words longer than a passage are cut."""
    limit = passages.size if passages.unit == "characters" else len(text)
    for match in WORD.finditer(text, *span):
        for start in range(match.start(), match.end(), limit):
            yield start, min(start + limit, match.end())


def _pack(text: str, segments: list[Span], passages: PassageSettings) -> list[Span]:
    """Join consecutive spans into passages as long as they fit."""
    by_words = passages.unit == "words"
    sizes = [_measure(text, span, passages.unit) for span in segments]

    def size(first: int, last: int) -> int:
        # Words add up; characters between two spans count too.
        if by_words:
            return sum(sizes[first : last + 1])
        return segments[last][1] - segments[first][0]

    spans: list[Span] = []
    first = last = 0
    while True:
        total = size(first, last)
        while last + 1 < len(segments):
            longer = total + sizes[last + 1] if by_words else size(first, last + 1)
            if longer > passages.size:
                break
            total, last = longer, last + 1
        spans.append((segments[first][0], segments[last][1]))
        if last + 1 == len(segments):
            return spans
        # The overlap shrinks until the next passage has room for at least one new span.
        begin = last + 1
        while (
            begin - 1 > first
            and size(begin - 1, last) <= passages.overlap
            and size(begin - 1, last + 1) <= passages.size
        ):
            begin -= 1
        first, last = begin, last + 1


def _measure(text: str, span: Span, unit: str) -> int:
    return span[1] - span[0] if unit == "characters" else sum(1 for _ in WORD.finditer(text, *span))


def _trim(text: str, start: int, end: int) -> Span | None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None
