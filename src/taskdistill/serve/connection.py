"""uvicorn's connection with three guards: a head must arrive in time, replies must be read, idle
connections give way.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from taskdistill.serve.middleware import HEAD_BYTES

_log = logging.getLogger(__name__)


class GuardedProtocol(H11Protocol):
    """One connection. Made by `guarded`, which sets the limits as class attributes."""

    head_seconds = 15.0
    max_connections = 1000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, in place of the one idle longest if there are too many."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        self._unread = 0
        self._expect_head()
        if len(self.connections) > self.max_connections:
            idle = [
                each
                for each in self.connections
                if isinstance(each, GuardedProtocol) and each.awaits_client and each is not self
            ]
            if idle:
                min(idle, key=lambda each: each._idle_since).abort()
            else:
                self._refuse(429, "too many connections; try again", retry_after=1)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def awaits_client(self) -> bool:
        """Whether the client has to send something next: a head, or the rest of a body."""
        return not self.busy or bool(self.cycle.more_body)

    def abort(self) -> None:
        """Close at once."""
        self.connections.discard(self)
        self.transport.abort()

    def handle_events(self) -> None:
        """Read what has arrived; a head that is complete stops the clock."""
        super().handle_events()
        if self.busy and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._idle_since = self.loop.time()
        self._expect_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or a head that is too large."""
        received = len(self.conn.trailing_data[0])
        if received > HEAD_BYTES:
            self._refuse(431, f"the head of the request is larger than {HEAD_BYTES:,} bytes")
        else:
            self._refuse(400, "this is no valid HTTP request")

    def _expect_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _late(self) -> None:
        """Close a connection that sends nothing; give one that still reads its reply more time."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread != self._unread:
            self._unread = unread
            self._expect_head()
        else:
            self.abort()

    def _refuse(self, status: int, message: str, retry_after: int | None = None) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        body = orjson.dumps(
            {"error": {"message": message, "type": kind, "param": None, "code": None}}
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if retry_after is not None:
            headers.append((b"retry-after", str(retry_after).encode()))
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def guarded(head_seconds: float, max_connections: int) -> type[GuardedProtocol]:
    """Make a connection class with limits.

    `head_seconds`: time for the head of a request, from the connection's start or the last reply.
    Returns a class for uvicorn's `http` setting.
    """
    limits: dict[str, Any] = {"head_seconds": head_seconds, "max_connections": max_connections}
    return type("Connection", (GuardedProtocol,), limits)
