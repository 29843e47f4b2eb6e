"""How much of the bare encoder the server passes on, and how it behaves when more comes than it can
do.

    python benchmarks/serve_load.py [MODEL] [--seconds 8] [--rounds 5]

Everything runs on loopback: a server in a process of its own, a small client here. All figures are
ratios within one run, measured in turns (bare encoder, server, bare encoder, ...) and the best of
all rounds, because a shared machine changes its speed from minute to minute. The last line is HTTP
throughput at the best concurrency over the bare encoder's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from statistics import median

from serve_client import closed_loop, cpu_seconds, machine, open_loop, request_of, server, text_of

from taskdistill.encode.encoder import Encoder

QUEUE = {"queue_seconds": 2.0}
"""Overload is reached in seconds, not in minutes, and the requests in flight stay few."""

CHUNK = 256
"""Texts of one call of the bare encoder: many batches, sorted by length."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="all-MiniLM-L6-v2")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=16, help="in a request")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[4, 8, 16], help="concurrencies to try"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of the encoder, in both; 0 for all cores"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    texts = [text_of(rng.randint(8, 60), rng) for _ in range(64 * options.texts)]
    groups = [texts[i : i + options.texts] for i in range(0, len(texts), options.texts)]
    requests = [(request_of(group), len(group)) for group in groups]
    single = [(request_of([text_of(12, rng)]), 1) for _ in range(200)]
    long = [(request_of([text_of(600, rng) for _ in range(4)]), 4) for _ in range(20)]
    encoder = Encoder.load(options.model, threads=options.threads or None)
    print(f"{encoder.name}, {encoder.threads} threads, seed {options.seed}; {machine()}")
    rows: list[tuple[str, str, str]] = []
    with server(options.model, options.threads, QUEUE) as (host, port, child):

        def closed(what, clients, seconds=options.seconds):
            return asyncio.run(closed_loop(host, port, what, clients, seconds))

        closed(requests, 2, 1.0)
        encoder.encode(texts[:64])
        bare, peak, alone = 0.0, 0.0, {}
        unloaded, one_client, costs = [], [], []
        for turn in range(options.rounds):
            clients = options.clients[turn % len(options.clients)]
            before = time.process_time()
            rate, done = bare_rate(encoder, texts, options.seconds / 2)
            bare, cost = max(bare, rate), (time.process_time() - before) / done
            before = cpu_seconds(child.pid)
            answers = closed(requests, clients, options.seconds / 2)
            rate = answers.rate
            costs.append(cost / ((cpu_seconds(child.pid) - before) / answers.texts))
            alone[clients] = max(alone.get(clients, 0.0), rate)
            peak = max(peak, rate)
            unloaded.append(bare_latency(encoder, 30))
            one_client.append(closed(single, 1, options.seconds / 4).percentile(0.5))
        best = max(alone, key=lambda each: alone[each])
        rows.append(
            (
                "HTTP throughput / bare encoder",
                f"{peak / bare:.2f}",
                f"{peak:.0f} / {bare:.0f} texts/s at {best} clients; aim 0.85",
            )
        )
        rows.append(
            (
                "CPU time a text, bare encoder / server",
                f"{median(costs):.2f}",
                f"{' '.join(f'{each:.2f}' for each in costs)}",
            )
        )
        p50 = median(one_client) / median(unloaded)
        rows.append(
            (
                "p50 of one client / bare encoder",
                f"{p50:.2f}",
                f"{1000 * median(one_client):.1f} ms; aim 1.5",
            )
        )
        for times, aim in ((2, 0.90), (10, 0.80)):
            answers = asyncio.run(
                open_loop(
                    host, port, requests, times * peak / options.texts, options.seconds, settle=3.0
                )
            )
            statuses = dict(sorted(answers.statuses.items()))
            rows.append(
                (
                    f"goodput at {times}x saturation / peak",
                    f"{answers.rate / peak:.2f}",
                    f"statuses {statuses}; aim {aim}",
                )
            )
            rows.append(
                (
                    f"429 at {times}x, p99",
                    f"{1000 * answers.percentile(0.99, 429):.1f} ms",
                    "aim 50 ms",
                )
            )
        without, beside = [], []
        for _ in range(options.rounds):
            without.append(closed(single, 1, options.seconds / 2))
            beside.append(asyncio.run(both(host, port, single, long, options.seconds / 2)))
        ratio = pooled(beside) / pooled(without)
        rows.append(
            (
                "short texts' p99 beside long ones / without",
                f"{ratio:.2f}",
                f"{1000 * pooled(beside):.1f} ms; aim 3",
            )
        )
        print(
            f"CPU seconds: server {cpu_seconds(child.pid):.0f}, client and bare encoder"
            f" {time.process_time():.0f}; {machine()}"
        )
    for name, value, note in rows:
        print(f"{name:<46}{value:>10}   {note}")
    print(f"ratio: {peak / bare:.3f}")


async def both(host, port, single, long, seconds):
    """Return the answers to short texts while two clients send long ones."""
    short, _ = await asyncio.gather(
        closed_loop(host, port, single, 1, seconds), closed_loop(host, port, long, 2, seconds)
    )
    return short


def pooled(answers) -> float:
    """Return the 99th percentile over several rounds."""
    times = sorted(took for each in answers for took in each.times.get(200, ()))
    return times[int(0.99 * (len(times) - 1))]


def bare_rate(encoder: Encoder, texts: list[str], seconds: float) -> tuple[float, int]:
    """Return texts a second and the texts encoded."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        encoder.encode(texts[:CHUNK])
        done += CHUNK
    return done / (time.perf_counter() - started), done


def bare_latency(encoder: Encoder, count: int) -> float:
    """Return the median seconds of one short text."""
    rng, times = random.Random(2), []
    for _ in range(count):
        text = text_of(12, rng)
        started = time.perf_counter()
        encoder.encode([text])
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    main()
