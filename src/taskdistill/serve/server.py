"""Run the server: listen, answer, and on SIGTERM finish what was accepted."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.memory import limit_malloc_arenas
from taskdistill.serve.app import make_app
from taskdistill.serve.connection import guarded
from taskdistill.serve.middleware import HEAD_BYTES
from taskdistill.serve.settings import ServerSettings, check_host
from taskdistill.serve.site import SearchIndex

_OTHER_FILES = 128
"""File handles left for everything that is no connection."""


def serve(
    encoder: Encoder,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    index: SearchIndex | None = None,
    settings: ServerSettings | None = None,
    load: Callable[[], Encoder] | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve a model until SIGTERM or SIGINT; returns when all that was accepted is answered.

    Args:
        port: Port; 0 for any free one.
        settings: Limits; None for the defaults.
        load: Reads the model again on SIGHUP; None if it cannot be.
        started: Called with the server's address when it listens.

    Raises:
        BadInput: If the address cannot be listened on, or must not be without a key.
    """
    settings = settings or ServerSettings()
    check_host(host, settings)
    limit_malloc_arenas()
    app = make_app(encoder, index, settings, load)
    listening = _listen(host, port)
    address = listening.getsockname()
    server = make_server(app, settings)
    if started is not None:
        started(
            f"http://{'[' + address[0] + ']' if ':' in address[0] else address[0]}:{address[1]}"
        )
    server.run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn's server, which tells the application that it stops or reads its model again, and
    ends with status 0 when it was asked to.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, read the model again on SIGHUP."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        holder = self.config.app.state.holder  # type: ignore[union-attr]
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        before[signal.SIGHUP] = signal.signal(
            signal.SIGHUP, lambda number, frame: holder.ask_reload()
        )
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second SIGINT stops at once."""
        self.config.app.state.holder.draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, settings: ServerSettings) -> Server:
    """Configure uvicorn for an application of `make_app`.

    Returns a server; give `run` a listening socket.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    max_connections = (
        settings.connections
        if files == resource.RLIM_INFINITY
        else max(8, min(settings.connections, files - _OTHER_FILES))
    )
    config = uvicorn.Config(
        app,
        http=guarded(settings.head_seconds, max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=max(1, int(settings.head_seconds)),
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )
    return Server(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
        listening.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # inherited; head and body are two writes
        return listening
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BadInput(
            f"cannot listen on {host} port {port}: {reason}; choose another with --port"
        ) from None
