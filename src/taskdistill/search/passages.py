"""Cut long documents into passages at sentence or paragraph boundaries, keeping where each came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from taskdistill.errors import BadInput, did_you_mean

WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # one ideograph or kana is one word
    r"|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_SENTENCE_END = re.compile(
    r"""[.!?\u2026]+["'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]+["'\u201d\u2019\u300d)\]]*|\n\s*\n"""
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PassageSettings:
    """How a document is cut.

    Attributes:
        unit: What `size` and `overlap` count.
        size: Largest passage.
        overlap: How much of the end of a passage the next one repeats, where the boundaries allow it.
        boundary: Where passages may begin and end; what is longer than `size` without a boundary is cut between words.
    """

    unit: Literal["words", "characters"] = "words"
    size: int = 256
    overlap: int = 32
    boundary: Literal["word", "sentence", "paragraph"] = "sentence"

    def __post_init__(self) -> None:
        if self.unit not in ("words", "characters"):
            raise BadInput(
                f"passages cannot be measured in {self.unit!r}{did_you_mean(self.unit, ('words', 'characters'))}"
            )
        if self.boundary not in ("word", "sentence", "paragraph"):
            raise BadInput(
                f"passages cannot end at {self.boundary!r}{did_you_mean(self.boundary, ('word', 'sentence', 'paragraph'))}"
            )
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise BadInput(
                f"passages of size {self.size} with overlap {self.overlap}; size must be at least 1 and overlap from 0 to size - 1"
            )


def split(text: str, passages: PassageSettings | None) -> list[Span]:
    """Cut a text into passages.

    Args:
        text: The document.
        passages: How to cut, or None for one passage that is the whole text.

    Returns:
        Start and end of each passage in characters, in order; `text[start:end]` is the passage and has no white space at
        its ends. Every word is in at least one. A text of white space has none.
    """
    whole = _trim(text, 0, len(text))
    if whole is None:
        return []
    if passages is None:
        return [(0, len(text))]
    if _measure(text, whole, passages.unit) <= passages.size:
        return [whole]
    return _pack(text, list(_pieces(text, passages)), passages)


def _pieces(text: str, passages: PassageSettings) -> Iterator[Span]:
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


def _pack(text: str, pieces: list[Span], passages: PassageSettings) -> list[Span]:
    sizes = [_measure(text, piece, passages.unit) for piece in pieces]

    def size(first: int, last: int) -> int:
        return (
            sum(sizes[first : last + 1])
            if passages.unit == "words"
            else pieces[last][1] - pieces[first][0]
        )

    found: list[Span] = []
    first = last = 0
    while True:
        total = size(first, last)
        while last + 1 < len(pieces):
            longer = total + sizes[last + 1] if passages.unit == "words" else size(first, last + 1)
            if longer > passages.size:
                break
            total, last = longer, last + 1
        found.append((pieces[first][0], pieces[last][1]))
        if last + 1 == len(pieces):
            return found
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
