"""What the server counts, in a Prometheus registry of its own; no label ever holds a
client's text.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from taskdistill.serve.batcher import DynamicBatcher
from taskdistill.serve.scheduler import ScheduledBatch

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 64, 128, 256, 512, 768, 1024, 4096, 16_384, 65_536)


class Metrics:
    """Counters, histograms and gauges of one server."""

    def __init__(self) -> None:
        """Register everything with a registry of its own, so that two servers fit into
        one process.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        prefix, registry = "taskdistill", self.registry
        self.requests = Counter(
            "requests", "Answers", ["route", "status"], namespace=prefix, registry=registry
        )
        self.seconds = Histogram(
            "request_seconds",
            "Time to answer",
            ["route"],
            namespace=prefix,
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter(
            "texts", "Texts embedded", ["task"], namespace=prefix, registry=registry
        )
        self.tokens = Counter(
            "tokens", "Tokens embedded", ["task"], namespace=prefix, registry=registry
        )
        self.dropped = Counter(
            "dropped_texts",
            "Texts not computed because the client had gone",
            namespace=prefix,
            registry=registry,
        )
        self.reloads = Counter(
            "reloads", "Reloads of the model", ["outcome"], namespace=prefix, registry=registry
        )
        self.batch_tokens = Histogram(
            "batch_tokens",
            "Tokens of a batch",
            namespace=prefix,
            buckets=_TOKENS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "batch_seconds",
            "Time to compute a batch",
            namespace=prefix,
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, batcher: Callable[[], DynamicBatcher]) -> None:
        """Read gauges from a queue whenever the metrics are asked for."""
        for name, text, value in (
            ("queue_texts", "Texts waiting", lambda: batcher().texts),
            ("queue_tokens", "Tokens waiting", lambda: batcher().tokens),
            ("worker_panics", "Workers replaced after a panic", lambda: batcher().worker_failures),
        ):
            Gauge(name, text, namespace="taskdistill", registry=self.registry).set_function(value)

    def batch(self, batch: ScheduledBatch, seconds: float) -> None:
        """Count a computed batch."""
        task = batch.task or "base"
        self.texts.labels(task).inc(len(batch.items))
        self.tokens.labels(task).inc(batch.tokens)
        self.batch_tokens.observe(batch.tokens)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        text: bytes = generate_latest(self.registry)
        return text
