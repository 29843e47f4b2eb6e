"""A teacher behind an OpenAI-shaped embeddings endpoint: every reply checked, every passing fault
retried.

What a single reply cannot show (vectors in another order, another model behind the name) is found
by `teacher.recheck`.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import math
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.json import JsonError, read_object
from taskdistill.teacher.protocol import TeacherIdentity, unit_rows

BATCH_TEXTS = 64
BATCH_CHARACTERS = 200_000
LONGEST_WAIT = 300.0
"""Seconds; an endpoint that asks for more with Retry-After is left alone until the command is run
again.
"""
ABSURD_WAIT = 7 * 24 * 3600.0
"""Seconds; a Retry-After beyond it is not meant."""
LARGEST_REPLY = 128 << 20
"""Bytes: 64 vectors of 16,384 numbers take a fifth of it."""
REPLY_ELEMENTS = 4_000_000
"""Most numbers of a reply, and what stands around them."""

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class _Retryable(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(kw_only=True)
class HttpTeacher:
    """POST {url}/embeddings; a repeated request costs money but changes nothing.

    The endpoint's address is no part of the identity, so that a server can move; tell two models of
    one name apart by `revision`. The endpoint decides how many tokens of a text it reads.
    """

    url: str
    model: str
    revision: str | None = None
    embedding_dim: int | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    """Seconds until the whole reply of a request must be there."""
    attempts: int = 6
    backoff: float = 1.0
    parallel: int = 4
    extra: Mapping[str, object] = field(default_factory=dict)
    """Further fields of every request, such as Jina's `task`."""

    def __post_init__(self) -> None:
        """Check the address and make the client.

        Raises BadInput if the address is not an HTTP one.
        """
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(
                f"teacher.url is {self.url!r}; it must start with http:// or https:// and end"
                " before /embeddings"
            )
        self._idle: deque[_Line] = deque()

    @property
    def identity(self) -> TeacherIdentity:
        """Who answers: the model's name and revision."""
        return TeacherIdentity(kind="http", model=self.model, revision=self.revision)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts that already carry their instruction.

        `texts`: any number of texts; sent at most 64 and about 200,000 characters a request, four
        requests at a time. Returns Float32 (n, dim) unit rows, in the order of the texts. Raises
        BadInput if the endpoint refuses the request or changes the size of its vectors. Raises
        WorkFailed if a fault has not passed after the retries.
        """
        return self._join(self._ask(list(_batches(texts)), self.attempts))

    def requests(self, texts: Sequence[str]) -> list[int]:
        """Say in which requests texts would be sent. Returns texts of each request, in order."""
        return [len(batch) for batch in _batches(texts)]

    def embed_apart(
        self, groups: Sequence[Sequence[str]], *, retry: bool
    ) -> npt.NDArray[np.float32]:
        """Embed groups of texts, each in a request of its own.

        `groups`: texts that already carry their instruction, few enough for a request. Returns
        Float32 (n, dim) unit rows, group after group. Raises BadInput as `embed`. Raises WorkFailed
        as `embed`.
        """
        return self._join(self._ask(groups, self.attempts if retry else 1))

    def _ask(
        self, groups: Sequence[Sequence[str]], attempts: int
    ) -> list[list[npt.NDArray[np.float32]]]:
        pool = ThreadPoolExecutor(self.parallel)
        try:
            return list(pool.map(lambda texts: self._with_retries(texts, attempts), groups))
        finally:
            pool.shutdown(cancel_futures=True)

    def _join(self, replies: list[list[npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
        sizes = {len(row) for reply in replies for row in reply} | (
            {self.embedding_dim} if self.embedding_dim else set()
        )
        if len(sizes) > 1:
            raise BadInput(
                f"the endpoint {self.url} gave vectors of different sizes for model {self.model!r}:"
                f" {', '.join(str(size) for size in sorted(sizes))}; correct teacher.model or"
                " teacher.embedding_dim"
            )
        self.embedding_dim = max(sizes, default=None)
        rows = [row for reply in replies for row in reply]
        return (
            unit_rows(np.stack(rows))
            if rows
            else np.empty((0, self.embedding_dim or 0), np.float32)
        )

    def _with_retries(self, texts: Sequence[str], attempts: int) -> list[npt.NDArray[np.float32]]:
        for attempt in range(1, attempts + 1):
            try:
                return self._request(texts)
            except _Retryable as fault:
                # Drawn at random, so that parallel requests that failed together do not come back
                # together.
                least = min(LONGEST_WAIT, self.backoff * 2 ** (attempt - 1)) * random.uniform(
                    0.5, 1.0
                )
                wait = max(least, fault.wait or 0.0)
                if attempt == attempts or wait > LONGEST_WAIT:
                    pause = f" and asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
                    raise WorkFailed(
                        f"the teacher endpoint {self.url} failed {attempt} times: {fault}{pause}"
                    ) from None
                time.sleep(wait)
        raise WorkFailed(f"the teacher endpoint {self.url} was given no attempt")

    def _request(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        body = {"model": self.model, "input": list(texts), "encoding_format": "float", **self.extra}
        status, headers, data = self._post(body)
        if status in _PASSING:
            raise _Retryable(f"status {status}: {self._reason(data)}", _retry_after(headers))
        if status in (401, 403):
            raise BadInput(
                f"the teacher endpoint {self.url} refuses the key (status {status}:"
                f" {self._reason(data)}); put a valid key into the environment variable that"
                " teacher.api_key_env names"
            )
        if status != 200:
            raise BadInput(
                f"the teacher endpoint {self.url} refuses the request (status {status}:"
                f" {self._reason(data)}); check teacher.url and teacher.model"
            )
        return _vectors(data, len(texts))

    def _post(self, body: Mapping[str, object]) -> tuple[int, httpx.Headers, bytes]:
        """Send a request and read its whole reply within the time that there is for both."""
        late = f"no whole reply within {self.timeout:g} s"
        line = self._take_line()
        try:
            with line.deadline(self.timeout) as passed:
                try:
                    with line.client.stream(
                        "POST",
                        f"{self.url.rstrip('/')}/embeddings",
                        json=body,
                        extensions=line.extensions,
                    ) as response:
                        parts, size = [], 0
                        for part in response.iter_bytes():
                            parts.append(part)
                            size += len(part)
                            if size > LARGEST_REPLY:
                                raise _Retryable(
                                    f"the reply is larger than {LARGEST_REPLY >> 20} MiB"
                                )
                            if passed():
                                raise _Retryable(late)
                except httpx.TimeoutException:
                    raise _Retryable(late) from None
                except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as error:
                    raise _Retryable(
                        late if passed() else f"no connection ({type(error).__name__}: {error})"
                    ) from None
                except httpx.InvalidURL as error:
                    raise BadInput(f"teacher.url {self.url!r} is not an address: {error}") from None
            self._idle.append(line)
            return response.status_code, response.headers, b"".join(parts)
        except BaseException:
            # Half a reply may still be on the wire: the connection is of no use to anybody else.
            line.client.close()
            raise

    def _take_line(self) -> _Line:
        """Return a connection that nobody uses."""
        with suppress(IndexError):
            return self._idle.pop()
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return _Line(httpx.Client(headers=headers, timeout=self.timeout))

    def _reason(self, data: bytes) -> str:
        text = " ".join(data[:2000].decode("utf-8", "replace").split())[:200]
        return text.replace(self.api_key, "***") if self.api_key else text


class _Line:
    """A client for one request at a time, whose connection may be cut: what httpx bounds is each
    read, not a whole reply.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.extensions = {"trace": self._trace}
        self._socket: socket.socket | None = None

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Callable[[], bool]]:
        """Cut the connection when the time is over; yields a function that says whether it is."""
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield lambda: time.monotonic() >= end
        finally:
            timer.cancel()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "connect_unix_socket.complete")):
            self._socket = info["return_value"].get_extra_info("socket")

    def _cut(self) -> None:
        if self._socket is not None:
            # A copy of the descriptor, for closing this socket must not close that of httpx.
            with suppress(OSError), socket.socket(fileno=os.dup(self._socket.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)


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


def _vectors(data: bytes, count: int) -> list[npt.NDArray[np.float32]]:
    """Return the vectors of a reply in the order of `index`."""
    try:
        items = read_object(data.decode("utf-8"), max_elements=REPLY_ELEMENTS, constants=True)[
            "data"
        ]
        if not isinstance(items, list):
            raise ValueError(f"`data` is a {type(items).__name__}")
        result = {_index(item["index"]): _vector(item["embedding"]) for item in items}
    except (JsonError, ValueError, KeyError, TypeError, OverflowError, binascii.Error) as error:
        raise _Retryable(
            f"the reply is no list of embeddings ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    if len(items) != count or sorted(result) != list(range(count)):
        raise _Retryable(
            f"the reply has {len(items)} vectors with {len(result)} distinct indices for {count}"
            " texts"
        )
    return [result[index] for index in range(count)]


def _vector(value: object) -> npt.NDArray[np.float32]:
    """Read a list of numbers (null counts as NaN) or base64 of little-endian float32."""
    if isinstance(value, str):
        vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    elif not isinstance(value, list) or not {type(each) for each in value} <= {
        int,
        float,
        type(None),
    }:
        raise ValueError("an embedding is no list of numbers")
    else:
        with np.errstate(
            over="ignore"
        ):  # what float32 does not hold is infinite, and goes to the quarantine
            vector = np.array(value, dtype=np.float64).astype(np.float32)
    if not vector.size:
        raise ValueError("an embedding is empty")
    return vector


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"an index is {value!r:.40}")
    return value


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that the endpoint asks for, given as a number or as a date; None for what
    is neither or absurd.
    """
    header = headers.get("Retry-After", "")[:100]
    seconds = math.nan
    try:
        seconds = float(header)
    except ValueError:
        with suppress(ValueError, TypeError, OverflowError):
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
    return seconds if abs(seconds) < ABSURD_WAIT else None
