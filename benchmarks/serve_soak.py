"""Whether the server stays as it is for hours: memory, file handles, threads and latency under
steady load, half of it malformed.

    python benchmarks/serve_soak.py [MODEL] [--minutes 10]

The last line is the resident memory at the end over that after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
import urllib.request

from serve_client import Answers, closed_loop, machine, open_loop, request_of, server, text_of

BAD = [
    b"{",
    b"[]",
    b'{"input": []}',
    b'{"input": [1, 2]}',
    b'{"input": NaN}',
    b'{"input": "a", "dimensions": -1}',
    b'{"inputs": "a"}',
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="all-MiniLM-L6-v2")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--load", type=float, default=0.7, help="share of the saturated rate")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    rng = random.Random(3)
    good = [
        (request_of([text_of(rng.randint(5, 60), rng) for _ in range(8)]), 8) for _ in range(200)
    ]
    mixed = [each for request in good for each in (request, (malformed(rng.choice(BAD)), 0))]
    print(machine())
    with server(options.model, options.threads, {}) as (host, port, _):
        saturated = asyncio.run(closed_loop(host, port, good, 8, 5.0)).rate / 8
        rate = 2 * options.load * saturated
        print(
            f"{saturated:.1f} requests/s saturate; {rate:.1f} requests/s are sent, half of them"
            " malformed"
        )
        started, rows = time.monotonic(), []
        while (minute := (time.monotonic() - started) / 60) < options.minutes:
            answers = asyncio.run(
                open_loop(host, port, mixed, rate, min(30.0, 6 * options.minutes))
            )
            rows.append((minute, *state(host, port), answers))
            _, memory, files, _ = rows[-1]
            print(
                f"{minute:6.1f} min  {memory / 2**20:7.1f} MiB  {files:4.0f} files  p99"
                f" {1000 * answers.percentile(0.99):7.1f} ms  {answers.statuses}"
            )
    judge(rows)


def judge(rows: list[tuple[float, float, float, Answers]]) -> None:
    """Compare the end with the beginning."""
    settled = [row for row in rows if row[0] >= 0.1 * rows[-1][0]] or rows
    first, last = settled[0], settled[-1]
    hours = max(1e-9, (last[0] - first[0]) / 60)
    wrong = sum(
        count
        for *_, answers in rows
        for status, count in answers.statuses.items()
        if status not in (200, 400, 429)
    )
    print(
        f"answers other than 200, 400, 429: {wrong}; file handles {first[2]:.0f} -> {last[2]:.0f}"
    )
    print(f"memory grows by {100 * (last[1] / first[1] - 1) / hours:.1f} % an hour")
    print(
        "p99 at the end / at the beginning:"
        f" {last[3].percentile(0.99) / first[3].percentile(0.99):.2f}"
    )
    print(f"ratio: {last[1] / first[1]:.3f}")


def malformed(body: bytes) -> bytes:
    """Return a request with this body."""
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type:"
        f" application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def state(host: str, port: int) -> tuple[float, float]:
    """Return resident bytes and open files of the server."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as reply:
        text = reply.read().decode()
    found = [
        re.search(rf"^process_{name} (\S+)", text, re.MULTILINE)
        for name in ("resident_memory_bytes", "open_fds")
    ]
    return tuple(float(each.group(1)) if each else float("nan") for each in found)  # type: ignore[return-value]


if __name__ == "__main__":
    main()
