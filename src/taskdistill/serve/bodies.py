"""Request bodies: bounded while they arrive, then read as strict JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from taskdistill.io.json import JsonError, read_object
from taskdistill.serve.errors import ApiError
from taskdistill.serve.settings import ServerSettings

SMALL = 65_536
"""Bytes of a body that are always read; only what is beyond counts for the bound on all of them, so
that a few large ones that do not end keep no small one out.
"""

MAX_ELEMENTS = 50_000
"""Most elements of a body: its texts and fields are far fewer, and so many are read in some
hundredths of a second.
"""


class BodyReader:
    """Reads bodies; all that are in memory at one moment share one bound."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._held = 0

    async def json(self, request: Request) -> dict[str, Any]:
        """Read the body of a request as one JSON object.

        Raises ApiError 413 for a body too large, 408 for one too slow, 415 for another type or a
        compressed one, 429 if too many bodies are being read, 400 for what is no strict JSON
        object.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                f"the Content-Type is {kind[:60]!r}; send JSON with Content-Type: application/json",
                close=True,
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415,
                "compressed bodies are not read; send the JSON plainly, without Content-Encoding",
                close=True,
            )
        size = held = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                parts: list[bytes] = []
                announced = request.headers.get("content-length", "")
                self._check(int(announced) if announced.isdecimal() and len(announced) < 20 else 0)
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    self._held -= held
                    held = max(0, size - SMALL)
                    self._held += held
                    self._check(size)
            return strict_json(b"".join(parts))
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._settings.body_seconds:g} s", close=True
            ) from None
        except ClientDisconnect:
            raise ApiError(400, "the client left before the body had arrived", close=True) from None
        finally:
            self._held -= held

    def _check(self, size: int) -> None:
        if size > self._settings.body_bytes:
            raise ApiError(
                413,
                f"the body is larger than {self._settings.body_bytes:,} bytes; send fewer texts a"
                " request",
                close=True,
            )
        if size > SMALL and self._held > self._settings.all_body_bytes:
            raise ApiError(
                429, "too many requests are being read; try again", retry_after=1, close=True
            )


def strict_json(data: bytes) -> dict[str, Any]:
    """Read one JSON object: no NaN, no key twice, no half of a character, no nesting, number or
    size beyond the bounds.

    Raises ApiError 400, saying what is wrong without repeating the text.
    """
    try:
        return read_object(data.decode("utf-8"), max_elements=MAX_ELEMENTS)
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is not UTF-8 at byte {error.start}", code="invalid_json"
        ) from None
    except JsonError as fault:
        message = fault.reason if "key" in fault.reason else str(fault)
        raise ApiError(
            400,
            f'the body cannot be used: {message}; send an object such as {{"input": "text"}}',
            code="invalid_json",
        ) from None
