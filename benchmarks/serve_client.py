"""A small HTTP client for the server's benchmarks: keep-alive connections, closed and open loops,
almost no cost of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

COMMON = """the of and a to in is it that was for on are with as at be this from have or by one
had not
but what all were when we there can an your which their said if do will each about how up out them
then she many some so these would other into has more her two like him see time could no make
than first been its who now people my made over did down only way find use may water long little
very after words called just where most know house temperature measured kitchen yesterday
government telephone musical mountain agreement"""
WORDS = COMMON.split()

SERVER = """
import json, sys
from taskdistill.encode.encoder import Encoder
from taskdistill.serve.server import serve
from taskdistill.serve.settings import Settings
model, threads, settings = sys.argv[1], int(sys.argv[2]) or None, json.loads(sys.argv[3])
encoder = Encoder.load(model, threads=threads)
started = lambda url: print(url, flush=True)
serve(encoder, port=0, settings=Settings(**settings), started=started)
"""


@dataclass
class Answers:
    """What a load was answered with."""

    seconds: float = 0.0
    texts: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    times: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float, texts: int) -> None:
        """Count one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.times.setdefault(status, []).append(seconds)
        self.texts += texts if status == 200 else 0

    @property
    def rate(self) -> float:
        """Texts embedded a second."""
        return self.texts / self.seconds

    def percentile(self, share: float, status: int = 200) -> float:
        """Return the seconds within which a share of the answers of a status came."""
        times = sorted(self.times.get(status, ()))
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def text_of(words: int, rng: random.Random) -> str:
    """Return a text of so many words."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def request_of(texts: Sequence[str]) -> bytes:
    """Return the bytes of a request for these texts."""
    body = json.dumps(
        {"input": list(texts), "encoding_format": "base64", "truncate": True}
    ).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type:"
        f" application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@contextmanager
def server(
    model: str, threads: int, settings: dict[str, object]
) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """Start a server in a process of its own; yields host, port and process."""
    command = [sys.executable, "-c", SERVER, model, str(threads), json.dumps(settings)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            host, port = child.stdout.readline().strip().removeprefix("http://").split(":")
            yield host, int(port), child
        finally:
            child.terminate()
            child.wait(30)


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, float]:
        """Return status and seconds; 0 if the connection broke."""
        started = time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address, limit=1 << 24)
            reader, writer = self._streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if b"connection: close" in head:
                self.close()
            return int(head[9:12]), time.perf_counter() - started
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, time.perf_counter() - started

    def close(self) -> None:
        """Close; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(
    host: str, port: int, requests: Sequence[tuple[bytes, int]], clients: int, seconds: float
) -> Answers:
    """Let each client send its next request when the last is answered."""
    answers = Answers()
    started = time.perf_counter()

    async def client(at: int) -> None:
        connection = Connection(host, port)
        while time.perf_counter() - started < seconds:
            request, texts = requests[at % len(requests)]
            status, took = await connection.send(request)
            answers.add(status, took, texts)
            at += clients
        connection.close()

    await asyncio.gather(*(client(at) for at in range(clients)))
    answers.seconds = time.perf_counter() - started
    return answers


async def open_loop(
    host: str,
    port: int,
    requests: Sequence[tuple[bytes, int]],
    per_second: float,
    seconds: float,
    settle: float = 0.0,
) -> Answers:
    """Send requests at a rate, whatever the answers; only texts answered after `settle` seconds and
    within `seconds` from then count.
    """
    answers = Answers(seconds=seconds)
    idle: list[Connection] = []
    rng = random.Random(0)
    started = time.perf_counter()

    async def one(request: bytes, texts: int) -> None:
        connection = idle.pop() if idle else Connection(host, port)
        status, took = await connection.send(request)
        counts = settle <= time.perf_counter() - started <= settle + seconds
        answers.add(status, took, texts if counts else 0)
        idle.append(connection)

    pending, due, at = set(), 0.0, 0
    while due < settle + seconds:
        pause = due - (time.perf_counter() - started)
        if pause > 0:
            await asyncio.sleep(pause)
        task = asyncio.ensure_future(one(*requests[at % len(requests)]))
        pending.add(task)
        task.add_done_callback(pending.discard)
        at += 1
        due += rng.expovariate(per_second)
    if pending:
        await asyncio.wait(pending)
    for connection in idle:
        connection.close()
    return answers


def machine() -> str:
    """Say what the figures were taken on."""
    import torch

    return (
        f"cores {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, python"
        f" {sys.version.split()[0]}"
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
