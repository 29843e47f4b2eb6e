"""What every request passes first and every answer last: host, key, counters, headers, and the last
resort for errors.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskdistill.serve.errors import ApiError, answer, as_api_error
from taskdistill.serve.metrics import Metrics
from taskdistill.serve.settings import ServerSettings, is_loopback

OPEN_ROUTES = frozenset({"/", "/health", "/ready", "/docs"})
"""Routes without a key, beside the page's own files."""

PAGE = "/page/"
KEYED_PAGE = frozenset({"/page/ranges.json"})
"""What the page asks for that is the model's, not its own."""

HEAD_BYTES = 32_768
"""Largest head of a request: request line and all headers."""

_WINDOW = 60.0
_ADDRESSES = 4096

_log = logging.getLogger(__name__)


class AuthThrottle:
    """Wrong keys of the last minute, by address, so that keys cannot be guessed quickly."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait(self, address: str, now: float) -> int:
        """Say how long an address is refused. Returns seconds; 0 if it is not refused."""
        start, count = self._seen.get(address, (now, 0))
        return (
            int(start + _WINDOW - now) + 1 if count >= self._limit and now - start < _WINDOW else 0
        )

    def add(self, address: str, now: float) -> None:
        """Count a wrong key."""
        start, count = self._seen.pop(address, (now, 0))
        if now - start >= _WINDOW:
            start, count = now, 0
        self._seen[address] = (start, count + 1)
        while len(self._seen) > _ADDRESSES:
            self._seen.popitem(last=False)


class RequestGuard:
    """ASGI middleware around the application."""

    def __init__(
        self, app: ASGIApp, *, settings: ServerSettings, metrics: Metrics, routes: Collection[str]
    ) -> None:
        """`routes`: paths that counters and log name; any other path is a client's text."""
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self._allowed = {host.lower().removesuffix(".") for host in settings.allowed_hosts}
        self._any_host = settings.public or settings.api_key is not None
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._refusals = AuthThrottle(settings.failed_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, identity = time.monotonic(), uuid.uuid4().hex
        path: str = scope["path"]
        status = 0

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identity
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope, path)
            await self._app(scope, receive, finish)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            shown = as_api_error(error)
            if shown.status >= 500:
                _log.error("request %s: %s in %s", identity, type(error).__name__, _place(error))
                _log.debug("request %s", identity, exc_info=error)
            if status:
                raise
            await answer(shown, path)(scope, receive, finish)
        finally:
            seconds = time.monotonic() - started
            route = path if path in self._routes else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            _log.info(
                "%s %s %s %d %.1f ms", identity, scope["method"], route, status, seconds * 1000
            )

    def _check(self, scope: Scope, path: str) -> None:
        if (
            len(scope.get("raw_path") or b"")
            + sum(len(name) + len(value) for name, value in scope["headers"])
            > HEAD_BYTES
        ):
            raise ApiError(
                431, f"the head of the request is larger than {HEAD_BYTES:,} bytes", close=True
            )
        headers = Headers(scope=scope)
        if not self._any_host:
            host = headers.get("host", "").lower()
            host = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if not is_loopback(host) and host.removesuffix(".") not in self._allowed:
                raise ApiError(
                    421,
                    "this server answers under localhost only; add the name to the setting"
                    " allowed_hosts or set an API key",
                )
        if (
            self._key is None
            or path in OPEN_ROUTES
            or (path.startswith(PAGE) and path not in KEYED_PAGE)
        ):
            return
        now = time.monotonic()
        address = scope["client"][0] if scope.get("client") else ""
        if wait := self._refusals.wait(address, now):
            raise ApiError(
                429, "too many wrong keys from this address; wait", retry_after=wait, close=True
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            self._refusals.add(address, now)
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                close=True,
            )


def _place(error: BaseException) -> str:
    """Say where an error arose, without its message, which may hold a client's text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
