"""Strings become token ids here and nowhere else: prompt, truncation, special tokens, for teacher,
training and encoding alike.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.backbone import read_json
from taskdistill.model.tokenizer_safety import check_tokenizer

CHARACTERS_PER_TOKEN = 24
"""A text is first cut to this many characters per token allowed, so that a huge text is not
tokenised whole.
"""


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Tokenised texts and how many of them were cut."""

    ids: list[np.ndarray]
    """Token ids of each text, int32."""
    truncated: np.ndarray
    """Whether each text was cut, `(texts,)` of bool."""


class TextTokenizer:
    """A tokenizer with one way to make ids of a text: prompt first, cut at the end, special tokens
    kept.
    """

    def __init__(self, backend: Tokenizer, *, special: bool = True) -> None:
        """Wrap a fast tokenizer.

        `backend`: tokenizer of the `tokenizers` library. `special`: whether the tokenizer's own
        special tokens are added.
        """
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.special = special
        self._limit: int | None = None
        self._lock = threading.Lock()
        self.own_tokens = backend.num_special_tokens_to_add(False) * special
        self.rows = len(self)
        """One more than the largest id that a text can give."""

    @classmethod
    def load(cls, folder: Path, *, special: bool = True) -> TextTokenizer:
        """Read `tokenizer.json` of a model folder.

        Raises BadInput if the file is missing or no tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput(
                f"{folder} has no tokenizer.json; save the model with a fast tokenizer"
                " (AutoTokenizer(...).save_pretrained)"
            )
        rows = check_tokenizer(path)
        try:
            tokenizer = cls(Tokenizer.from_file(str(path)), special=special)
            tokenizer.rows = max(rows, len(tokenizer))
            return tokenizer
        except BaseException as error:  # the library raises bare Exception and Rust panics
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise BadInput(f"{path} is not a valid tokenizer: {error}") from None

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """Return the tokenizer as the text of a `tokenizer.json`, without truncation or padding."""
        spec = json.loads(self.backend.to_str())
        spec["truncation"] = spec["padding"] = None
        return json.dumps(spec, ensure_ascii=False)

    def ids(self, texts: Sequence[str], *, prompt: str, max_length: int) -> TokenizedTexts:
        """Tokenise texts behind a prompt.

        The end of a text is cut where the whole, with prompt and special tokens, would exceed
        `max_length`; the prompt and the end-of-sequence token stay. `max_length`: most tokens of
        one text, special tokens included. Raises BadInput if `max_length` leaves no room for a
        token of text.
        """
        if max_length <= self.own_tokens:
            raise BadInput(
                f"max_length {max_length} leaves no room for text beside {self.own_tokens} special"
                " tokens; give a larger one"
            )
        cap = max_length * CHARACTERS_PER_TOKEN
        cut = [text[:cap] if len(text) > cap else text for text in texts]
        ids, truncated = self._encode([prompt + text for text in cut], max_length)
        for i, text in enumerate(texts):
            if len(text) > cap:
                size = cap
                while not truncated[i] and size < len(text):
                    size *= 8
                    again, flags = self._encode([prompt + text[:size]], max_length)
                    ids[i], truncated[i] = again[0], flags[0]
        return TokenizedTexts(ids, truncated)

    def offsets(self, text: str, *, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise one text whole, with the place of each token.

        Returns ids `(tokens,)` and character extents in `text` `(tokens, 2)`; tokens of the prompt
        and special tokens have `(-1, -1)`.
        """
        with self._lock:
            self._set_limit(None)
            with _whole_characters([text]):
                encoding = self.backend.encode(prompt + text, add_special_tokens=self.special)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) - len(prompt)
        outside = np.array(encoding.special_tokens_mask, dtype=bool) | (spans[:, 1] <= 0)
        spans = np.maximum(spans, 0)
        spans[outside] = -1
        ids = np.array(encoding.ids, dtype=np.int32)
        return ids, spans

    def ends_texts(self) -> bool:
        """Say whether the tokenizer by itself ends every text with a special token.

        Returns False too where no special tokens are added at all.
        """
        with self._lock:
            self._set_limit(None)
            marks = self.backend.encode("a", add_special_tokens=self.special).special_tokens_mask
        return bool(marks) and marks[-1] == 1

    def end_with(self, token: str) -> None:
        """Make the tokenizer end every text with a token, unless it already ends texts with a
        special token by itself.

        `token`: the end-of-sequence token, such as `<|endoftext|>`. Raises BadInput if the
        vocabulary has no such token.
        """
        if self.ends_texts():
            return
        number = self.backend.token_to_id(token)
        if number is None:
            raise BadInput(
                f"the tokenizer has no token {token!r} to end a text with; name one of its special"
                " tokens"
            )
        spec = json.loads(self.backend.to_str())
        spec["post_processor"] = _ending(spec.get("post_processor"), token, number)
        self.backend = Tokenizer.from_str(json.dumps(spec))
        self._limit = None
        self.own_tokens = self.backend.num_special_tokens_to_add(False) * self.special

    def _set_limit(self, limit: int | None) -> None:
        if limit != self._limit:
            if limit is None:
                self.backend.no_truncation()
            else:
                self.backend.enable_truncation(limit)
            self._limit = limit

    def _encode(self, texts: list[str], max_length: int) -> tuple[list[np.ndarray], np.ndarray]:
        with self._lock:
            self._set_limit(max_length)
            try:
                with _whole_characters(texts):
                    encodings = self.backend.encode_batch_fast(
                        texts, add_special_tokens=self.special
                    )
            except BaseException as error:  # a Rust panic is no Exception
                if type(error).__name__ != "PanicException":
                    raise
                raise WorkFailed(
                    f"the tokenizer gave up on a text ({error}); its pattern may be too slow for it"
                ) from None
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        truncated = np.fromiter(
            (bool(encoding.overflowing) for encoding in encodings), dtype=bool, count=len(encodings)
        )
        return ids, truncated


@contextmanager
def _whole_characters(texts: Sequence[str]) -> Iterator[None]:
    """Say which text holds half of a surrogate pair, where the tokenizer only says that it got no
    string.
    """
    try:
        yield
    except TypeError:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                near = text[max(0, error.start - 20) : error.start + 20]
                raise BadInput(
                    f"a text holds half of a surrogate pair, which is no character, in {near!r};"
                    " decode it again or leave it out"
                ) from None
        raise


def end_token(folder: Path) -> str | None:
    """Read which token a model folder ends its sequences with.

    Returns `eos_token` of its tokenizer's settings, or None where none is named.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            result = read_json(folder / name).get("eos_token")
            text = result.get("content") if isinstance(result, dict) else result
            if isinstance(text, str) and text:
                return text
    return None


def _ending(before: dict[str, Any] | None, token: str, number: int) -> dict[str, Any]:
    """Add an end-of-sequence token to the last template of a post-processor, or a template to a
    post-processor without one.
    """
    parts = (
        [] if before is None else before["processors"] if before["type"] == "Sequence" else [before]
    )
    if not (parts and parts[-1]["type"] == "TemplateProcessing"):
        one: list[Any] = [{"Sequence": {"id": "A", "type_id": 0}}]
        two = [*one, {"Sequence": {"id": "B", "type_id": 1}}]
        parts = [
            *parts,
            {"type": "TemplateProcessing", "single": one, "pair": two, "special_tokens": {}},
        ]
    template = parts[-1]
    ends = {kind: {"SpecialToken": {"id": token, "type_id": kind}} for kind in (0, 1)}
    second = next(
        i for i, piece in enumerate(template["pair"]) if piece.get("Sequence", {}).get("id") == "B"
    )
    endings = {
        **template,
        "single": [*template["single"], ends[0]],
        "pair": [*template["pair"][:second], ends[0], *template["pair"][second:], ends[1]],
        "special_tokens": {
            **template["special_tokens"],
            token: {"id": token, "ids": [number], "tokens": [token]},
        },
    }
    return {"type": "Sequence", "processors": [*parts[:-1], endings]} if len(parts) > 1 else endings
