"""Child processes that need no second to import torch: forks of a process that has imported what
the tests have, and has no threads.

`conftest.py` forks the server of `multiprocessing`'s "forkserver" from the process of the tests
when these are collected. The children of that server are made within milliseconds, may be killed as
any process may, and hold nothing of what the tests have done since. The process of the tests itself
cannot be forked later: it holds threads of autograd, which no fork can have.

What is about the start of Python itself (the command of the shell, `python -m`, an entry point)
needs `subprocess`.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOAD = [
    "taskdistill.cli.main",
    "taskdistill.pipeline.train",
    "taskdistill.pipeline.evaluate_run",
    "taskdistill.model.folder",
]
"""What the server imports where it cannot be forked from here."""
CONTEXT = multiprocessing.get_context("forkserver")


def fork_server() -> None:
    """Make the server of all later children of "forkserver": what is imported here is imported
    there.

    This does what `ForkServer.ensure_running` does, but with a fork in place of a new interpreter.
    From Python 3.14 on server and clients share a key, which that function alone hands over; there
    the server is started as usual and imports `PRELOAD`.
    """
    CONTEXT.set_forkserver_preload(PRELOAD)
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if sys.version_info >= (3, 14) or server._forkserver_pid is not None:
        return
    with socket.socket(socket.AF_UNIX) as listener:
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        listener.bind(address)
        listener.listen()
        alive, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                forkserver.main(listener.detach(), alive, [])
            finally:
                os._exit(0)
        os.close(alive)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = (
        address,
        ours,
        pid,
    )


class Forked:
    """A child that runs a function; used as `subprocess.Popen` is, with both streams in `stdout`.

    Attributes:
        stdout: What the child writes, as text.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the child.

        Args:
            target: A function of a module; its exit code is 1 where it raises, and what it exits
                with where it does.
            arguments: What it is given.
            environment: Variables that are set for it beside those of this process.
        """
        reading, writing = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_enter,
            args=(
                writing,
                {**os.environ, **(environment or {})},
                str(Path.cwd()),
                target,
                arguments,
            ),
        )
        self._process.start()
        writing.close()
        self.stdout = os.fdopen(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code: None while it runs, the negative number of the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float = 280.0) -> tuple[str, None]:
        """Wait for the end and return what was written and not read yet."""
        end = time.monotonic() + timeout
        said = io.StringIO()
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, end - time.monotonic())):
                if not (part := os.read(self.stdout.fileno(), 1 << 16)):
                    break
                said.write(part.decode("utf-8", "replace"))
            else:
                raise subprocess.TimeoutExpired(str(self._process), timeout)
        self.wait(max(1.0, end - time.monotonic()))
        return said.getvalue(), None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self._process.join()


def _enter(
    writing: Connection,
    environment: dict[str, str],
    folder: str,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    for number in (1, 2):
        os.dup2(writing.fileno(), number)
    writing.close()
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 (the stream of the process)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    target(*arguments)


def command(*words: str) -> None:
    """Run a command line as the program does."""
    from taskdistill.cli.main import main

    sys.argv = ["taskdistill", *words]
    main()
