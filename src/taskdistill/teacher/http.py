"""A teacher behind an OpenAI-shaped embeddings endpoint: every reply checked, every passing fault retried."""

from __future__ import annotations

import base64
import binascii
import email.utils
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.teacher.protocol import Identity, unit_rows

BATCH_TEXTS = 64
BATCH_CHARACTERS = 200_000
LONGEST_WAIT = 300.0
"""Seconds; an endpoint that asks for more with Retry-After is left alone until the command is run again."""

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class _Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class HttpTeacher:
    """POST {url}/embeddings; a repeated request costs money but changes nothing.

    The endpoint's address is no part of the identity, so that a server can move; tell two models of one name apart by `revision`.
    The endpoint decides how many tokens of a text it reads.
    """

    url: str
    model: str
    revision: str | None = None
    embedding_dim: int | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    attempts: int = 6
    backoff: float = 1.0
    parallel: int = 4
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as Jina's `task`."""

    def __post_init__(self) -> None:
        """Check the address and make the client.

        Raises:
            BadInput: If the address is not an HTTP one.
        """
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"teacher.url is {self.url!r}; it must start with http:// or https:// and end before /embeddings")
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        self._client = httpx.Client(headers=headers, timeout=self.timeout)

    @property
    def identity(self) -> Identity:
        """Who answers: the model's name and revision."""
        return Identity("http", self.model, self.revision)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts that already carry their instruction.

        Args:
            texts: Any number of texts; sent at most 64 and about 200,000 characters a request, four requests at a time.

        Returns:
            Float32 (n, dim) unit rows, in the order of the texts.

        Raises:
            BadInput: If the endpoint refuses the request or changes the size of its vectors.
            WorkFailed: If a fault has not passed after the retries.
        """
        pool = ThreadPoolExecutor(self.parallel)
        try:
            replies = list(pool.map(self._with_retries, _batches(texts)))
        finally:
            pool.shutdown(cancel_futures=True)
        sizes = {len(row) for reply in replies for row in reply} | ({self.embedding_dim} if self.embedding_dim else set())
        if len(sizes) > 1:
            raise BadInput(
                f"the endpoint {self.url} gave vectors of different sizes for model {self.model!r}: "
                f"{', '.join(str(size) for size in sorted(sizes))}; correct teacher.model or teacher.embedding_dim"
            )
        self.embedding_dim = max(sizes, default=None)
        rows = [row for reply in replies for row in reply]
        return unit_rows(np.stack(rows)) if rows else np.empty((0, self.embedding_dim or 0), np.float32)

    def _with_retries(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._request(texts)
            except _Passing as fault:
                wait = (
                    fault.wait
                    if fault.wait is not None
                    else min(LONGEST_WAIT, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                )
                if attempt == self.attempts or wait > LONGEST_WAIT:
                    asked = f" and asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
                    raise WorkFailed(f"the teacher endpoint {self.url} failed {attempt} times: {fault}{asked}") from None
                time.sleep(wait)
        raise WorkFailed(f"the teacher endpoint {self.url} was given no attempt")

    def _request(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        body = {"model": self.model, "input": list(texts), "encoding_format": "float", **self.extra}
        try:
            response = self._client.post(f"{self.url.rstrip('/')}/embeddings", json=body)
        except httpx.TimeoutException:
            raise _Passing(f"no reply within {self.timeout:g} s") from None
        except httpx.TransportError as error:
            raise _Passing(f"no connection ({type(error).__name__}: {error})") from None
        except httpx.InvalidURL as error:
            raise BadInput(f"teacher.url {self.url!r} is not an address: {error}") from None
        if response.status_code in _PASSING:
            raise _Passing(f"status {response.status_code}: {self._said(response)}", _retry_after(response))
        if response.status_code in (401, 403):
            raise BadInput(
                f"the teacher endpoint {self.url} refuses the key (status {response.status_code}: {self._said(response)}); "
                f"put a valid key into the environment variable that teacher.api_key_env names"
            )
        if response.status_code != 200:
            raise BadInput(
                f"the teacher endpoint {self.url} refuses the request (status {response.status_code}: {self._said(response)}); "
                f"check teacher.url and teacher.model"
            )
        return _vectors(response, len(texts))

    def _said(self, response: httpx.Response) -> str:
        text = " ".join(response.text.split())[:200]
        return text.replace(self.api_key, "***") if self.api_key else text


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _vectors(response: httpx.Response, count: int) -> list[npt.NDArray[np.float32]]:
    """Return the vectors of a reply in the order of `index`."""
    try:
        items = response.json()["data"]
        found = {int(item["index"]): _vector(item["embedding"]) for item in items}
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise _Passing(f"the reply is no list of embeddings ({type(error).__name__}: {error})") from None
    if len(items) != count or sorted(found) != list(range(count)):
        raise _Passing(f"the reply has {len(items)} vectors with {len(found)} distinct indices for {count} texts")
    return [found[index] for index in range(count)]


def _vector(value: Any) -> npt.NDArray[np.float32]:
    """Read a list of numbers (null counts as NaN) or base64 of little-endian float32."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    vector = np.array(value, dtype=np.float32)
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"an embedding has the shape {vector.shape}")
    return vector


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that the endpoint asks for, given as a number or as a date."""
    said = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None
