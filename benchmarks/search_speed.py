"""Binary first pass with rescoring against exact float32 search: recall@10, time and memory, in one
run.

    python benchmarks/search_speed.py --data ../shared/data --model MODEL --cache /tmp/vectors.npy

With --data and --model the texts of a data folder are embedded (and kept in --cache); with --cache
alone that file is used; otherwise vectors are synthetic. Rows beyond the real ones are synthetic:
real rows (or random centres) plus noise. The exact search is the faster of a BLAS product with a
partial sort and faiss, for each number of queries at a time. Times alternate within one process;
memory is that of a child process for each method, above the same process before it opened anything.
The last line is the time ratio of the cheapest setting that reaches --recall, one query at a time.
benchmarks/search_curve.py draws the same over the number of rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import machine

from taskdistill.quantization import normalize
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import IndexSettings

TOP_K = 10
BLOCK = 65_536
QUERIES = 1000
BATCHES = {1: 30, 32: 9}
"""Queries at a time, and how often each way is timed with so many."""
TURN = 3
"""Calls in a turn: a way in use finds in the caches what its last call left there."""
REST = 0.05
"""Seconds before each turn: threads of BLAS look for work for a while after theirs is done, and
would slow the other way down.
"""


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source(parser)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rescore", default="int8,float16", help="precisions to compare")
    parser.add_argument("--oversample", default="10,20,50,100,200")
    parser.add_argument(
        "--recall", type=float, default=0.99, help="recall@10 that the last line is about"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    queries, vectors, origin = load(options)
    print(
        f"vectors: {origin}, {vectors.shape[1]} dimensions, {len(queries)} queries;"
        f" {machine(faiss.omp_get_max_threads(), ['faiss-cpu'])}"
    )
    print(f"{options.rows:,} rows, {max(0, options.rows - len(vectors)):,} of them synthetic")
    with tempfile.TemporaryDirectory(prefix="search-speed-") as name:
        folder = Path(name)
        held = np.concatenate(list(blocks(vectors, options.rows)))
        exact = Exact(held, queries)
        found = [
            row
            for rescore in options.rescore.split(",")
            for row in settings_of(
                build(folder / rescore, vectors, options.rows, rescore),
                rescore,
                options.oversample,
                exact,
                queries,
            )
        ]
        reached = [row for row in found if row.recall >= options.recall]
        if not reached:
            print(f"no setting reaches recall@10 {options.recall}\nratio: inf")
            return
        best = min(reached, key=lambda row: row.ratio[1])
        print(f"cheapest with recall@10 >= {options.recall}: {best.rescore} x{best.oversample}")
        print_memory(memory(folder, held, queries, best.rescore, best.oversample))
    print(f"ratio: {best.ratio[1]:.3f}")


@dataclass(frozen=True)
class Row:
    """What one setting of the index gave, by the number of queries at a time."""

    rescore: str
    oversample: int
    recall: float
    times: dict[int, float]
    ratio: dict[int, float]


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where vectors are from."""
    parser.add_argument("--data", type=Path, help="data folder with real texts")
    parser.add_argument("--model", help="model that embeds them")
    parser.add_argument(
        "--cache", type=Path, help=".npy file of vectors, read if it exists, written otherwise"
    )
    parser.add_argument(
        "--texts", type=int, default=200_000, help="texts to embed, beside those of the queries"
    )
    parser.add_argument("--dim", type=int, default=384, help="dimensions of synthetic vectors")


def settings_of(
    index: Index, rescore: str, oversample: str, exact: Exact, queries: np.ndarray
) -> list[Row]:
    """Measure one index with several oversampling factors and print a line for each."""
    print(f"{rescore}: {stored(index)}")
    print(
        f"{'setting':>16} {'recall@10':>10} {'ms, 1':>8} {'exact':>8} {'ratio':>7} {'ms, 32':>8}"
        f" {'exact':>8} {'ratio':>7}"
    )
    rows = []
    for factor in map(int, oversample.split(",")):
        recall = recall_of(index_rows(index, queries, factor), exact.truth)
        times, ratio, reference = {}, {}, {}
        for batch in BATCHES:
            times[batch], reference[batch] = alternating(
                lambda part, factor=factor: index_rows(index, part, factor),
                exact.ways[batch],
                queries,
                batch,
            )
            ratio[batch] = times[batch] / reference[batch]
        rows.append(Row(rescore, factor, recall, times, ratio))
        told = " ".join(
            f"{times[batch]:>8.2f} {reference[batch]:>8.2f} {ratio[batch]:>7.3f}"
            for batch in BATCHES
        )
        print(f"{rescore + ' x' + str(factor):>16} {recall:>10.4f} {told}", flush=True)
    return rows


def recall_of(found: list[list[int]], truth: np.ndarray) -> float:
    """Return the mean share of the true top rows that were found."""
    return float(
        np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found, truth.tolist(), strict=True)])
    )


def load(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Return unit vectors of queries and of rows, and where they are from."""
    if options.cache and options.cache.exists():
        vectors, origin = np.load(options.cache, mmap_mode="r"), f"real, from {options.cache.name}"
    elif options.data and options.model:
        from taskdistill import Encoder

        found = texts(options.data)[: options.texts + QUERIES]
        vectors, origin = (
            Encoder.load(options.model).encode(found, task=None),
            f"real, {len(found):,} texts by {options.model}",
        )
        if options.cache:
            np.save(options.cache, vectors)
    else:
        rng = np.random.default_rng(0)
        count = 20_000 + QUERIES
        centres = rng.standard_normal((2000, options.dim))
        vectors = centres[rng.integers(0, len(centres), count)] + 0.8 * rng.standard_normal(
            (count, options.dim)
        )
        origin = "synthetic, 2,000 clusters"
    unit = normalize(vectors)
    return unit[:QUERIES], unit[QUERIES:], origin


def texts(data: Path) -> list[str]:
    """Return the distinct English texts of a data folder, in a fixed random order."""
    found: set[str] = set()
    for file in sorted(data.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if row.get("lang", "en") == "en":
                    found.update(
                        row[key][:512]
                        for key in ("text", "query", "positive", "text1", "text2")
                        if isinstance(row.get(key), str)
                    )
    ordered = sorted(text for text in found if text.strip())
    random.Random(7).shuffle(ordered)
    return ordered


def blocks(vectors: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Yield the real vectors, then synthetic ones, up to a number of rows; noise is drawn from a
    pool, for speed.
    """
    pool = np.random.default_rng(0).standard_normal((BLOCK, vectors.shape[1]), dtype=np.float32)
    pool *= 0.6 / np.sqrt(vectors.shape[1])
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        real = vectors[start:stop]
        rng = np.random.default_rng(start)
        more = vectors[rng.integers(0, len(vectors), stop - start - len(real))]
        more += pool[rng.permutation(BLOCK)[: len(more)]]
        more /= np.sqrt(np.einsum("ij,ij->i", more, more))[:, None]
        yield np.concatenate([real, more]) if len(more) else real


class Exact:
    """Exact search of vectors in memory: the true top rows, and the faster way for each number of
    queries at a time.
    """

    def __init__(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Search all queries once and time the two ways."""
        self.truth = np.concatenate(
            [by_product(vectors, queries[at : at + 32]) for at in range(0, len(queries), 32)]
        )
        self.ways: dict[int, Callable[[np.ndarray], Any]] = {}
        for batch in BATCHES:
            product, faiss_ = (
                (lambda part: by_product(vectors, part)),
                (lambda part: by_faiss(vectors, part)),
            )
            first, second = alternating(product, faiss_, queries, batch)
            self.ways[batch] = product if first <= second else faiss_
            print(
                f"exact search, {batch} at a time: product and partial sort {first:.2f} ms a query,"
                f" faiss {second:.2f} ms"
            )


def by_product(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the top rows by a full product and a partial sort."""
    scores = queries @ vectors.T
    top = np.argpartition(scores, len(vectors) - TOP_K, axis=1)[:, -TOP_K:]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def by_faiss(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the top rows by faiss."""
    rows: np.ndarray = faiss.knn(queries, vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return rows


def build(path: Path, vectors: np.ndarray, rows: int, rescore: str) -> Index:
    """Write an index of one-word documents whose ids are their rows."""
    settings = IndexSettings(
        model="benchmark",
        model_hash="benchmark",
        space_id="benchmark",
        task=None,
        document_prompt="document",
        query_prompt="query",
        dim=vectors.shape[1],
        rescore=rescore,
        passages=None,
    )
    index, start = Index.create(path, settings), 0
    for block in blocks(vectors, rows):
        index.add_vectors(
            [Document(str(row), "text") for row in range(start, start + len(block))],
            block,
            space_id="benchmark",
        )
        start += len(block)
    index.compact()
    return Index.open(path)


def stored(index: Index) -> str:
    """Say how many bytes a row the parts take."""
    sizes, rows = index.describe()["bytes"], index.documents
    return (
        f"codes {sizes['codes'] / rows:.0f} B a row, vectors {sizes.get('vectors', 0) / rows:.0f}"
        f" B, float32 would be {4 * index.settings.dim} B"
    )


def index_rows(index: Index, queries: np.ndarray, oversample: int) -> list[list[int]]:
    """Return the top rows by the index, hits and all."""
    return [
        [int(hit.id) for hit in hits]
        for hits in index.search(queries, TOP_K, oversample=oversample)
    ]


def alternating(
    first: Callable[[np.ndarray], Any],
    second: Callable[[np.ndarray], Any],
    queries: np.ndarray,
    batch: int,
) -> tuple[float, float]:
    """Return the median milliseconds a query of two ways, timed in turns of some calls each."""
    times: tuple[list[float], list[float]] = ([], [])
    parts = [
        queries[at : at + batch]
        for at in range(0, batch * BATCHES[batch], batch)
        if at + batch <= len(queries)
    ]
    if not parts:
        raise SystemExit(
            f"error: {len(queries)} queries are too few to ask {batch} at a time; give more with"
            " --queries"
        )
    for turn in range(0, len(parts), TURN):
        for way, kept in zip((first, second), times, strict=True):
            time.sleep(REST)
            for part in parts[turn : turn + TURN]:
                start = time.perf_counter()
                way(part)
                kept.append(1000 * (time.perf_counter() - start) / batch)
    return float(np.median(times[0])), float(np.median(times[1]))


@dataclass(frozen=True)
class Memory:
    """Bytes that a process took to answer every query: its own, and of mapped files."""

    own: int
    mapped: int
    codes: int
    """Of the binary codes, part of `mapped`: every query reads all of them."""

    @property
    def needed(self) -> int:
        """What must be in memory for a search to be fast."""
        return self.own + self.codes


def memory(
    folder: Path, vectors: np.ndarray | None, queries: np.ndarray, rescore: str, oversample: int
) -> dict[str, Memory]:
    """Measure what each method holds, in a process of its own; the exact one only if its vectors
    are given.
    """
    np.save(folder / "queries.npy", queries)
    if vectors is not None:
        np.save(folder / "vectors.npy", vectors)
    told = {}
    for method in ("exact", "index") if vectors is not None else ("index",):
        job = {
            "method": method,
            "folder": str(folder),
            "rescore": rescore,
            "oversample": oversample,
        }
        result = subprocess.run(
            [sys.executable, search_file(), "--child", json.dumps(job)],
            capture_output=True,
            text=True,
            check=True,
        )
        told[method] = Memory(**json.loads(result.stdout))
    return told


def search_file() -> str:
    """Return the path of this program, also where another imports it."""
    return str(Path(__file__).resolve())


def print_memory(told: dict[str, Memory]) -> None:
    """Say what each method held."""
    exact, index = told["exact"], told["index"]
    mib = 2**20
    print(f"memory of exact search: {exact.own / mib:.0f} MiB")
    print(
        f"memory of the index: {index.own / mib:.0f} MiB of its own and {index.codes / mib:.0f} MiB"
        f" of codes that every query reads: ratio {index.needed / exact.own:.3f}"
    )
    print(
        f"  with all {index.mapped / mib:.0f} MiB of pages mapped by the end, which the system may"
        f" take back: ratio {(index.own + index.mapped) / exact.own:.3f}"
    )


def child(job: dict[str, Any]) -> dict[str, int]:
    """Answer every query by one method; return the bytes of memory that it took."""
    folder, queries = Path(job["folder"]), np.load(Path(job["folder"]) / "queries.npy")
    small = np.eye(64, dtype=np.float32)
    by_product(small, small)
    faiss.knn_hamming(np.zeros((2, 48), np.uint8), np.zeros((100, 48), np.uint8), 5)
    before = resident()
    codes = 0
    if job["method"] == "exact":
        vectors = np.load(folder / "vectors.npy")
        for at in range(20):
            by_product(vectors, queries[at : at + 1])
    else:
        index = Index.open(folder / job["rescore"])
        codes = sum(segment.codes.nbytes for segment in index.snapshot.segments)
        for at in range(0, len(queries)):
            index_rows(index, queries[at : at + 1], job["oversample"])
    after = resident()
    return {
        "own": after["RssAnon"] - before["RssAnon"],
        "mapped": after["RssFile"] - before["RssFile"],
        "codes": codes,
    }


def resident() -> dict[str, int]:
    """Return the process's resident bytes, its own and mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")
    }


if __name__ == "__main__":
    main()
