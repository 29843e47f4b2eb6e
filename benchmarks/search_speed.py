"""Binary first pass with rescoring against exact float32 search: recall@10, time and memory, in one run.

    python benchmarks/search_speed.py --data ../shared/data --model MODEL --cache /tmp/vectors.npy
    python benchmarks/search_speed.py --curve 10000,100000,1000000

With --data and --model the texts of a data folder are embedded (and kept in --cache); with --cache alone that file is used;
otherwise vectors are synthetic. Rows beyond the real ones are synthetic: real rows (or random centres) plus noise. The
exact search is the faster of a BLAS product with a partial sort and faiss. Times alternate within one process; memory is
that of a child process for each method, above the same process before it opened anything. The last line is the time ratio
of the cheapest setting that reaches --recall.
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
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from taskdistill.compress import normalise
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import IndexSettings

TOP_K = 10
BLOCK = 65_536
QUERIES = 1000


def main() -> None:
    """Run the comparison, or the curve over sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder with real texts")
    parser.add_argument("--model", help="model that embeds them")
    parser.add_argument("--cache", type=Path, help=".npy file of vectors, read if it exists, written otherwise")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384, help="dimensions of synthetic vectors")
    parser.add_argument("--rescore", default="int8,float16", help="precisions to compare")
    parser.add_argument("--oversample", default="10,20,50,100,200")
    parser.add_argument("--recall", type=float, default=0.99, help="recall@10 that the last line is about")
    parser.add_argument("--curve", help="comma-separated numbers of rows: print one line for each")
    parser.add_argument("--first-pass", default="flat", choices=["flat", "ivf"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    vectors, origin = load(options)
    queries, vectors = vectors[:QUERIES], vectors[QUERIES:]
    print(f"vectors: {origin}, {vectors.shape[1]} dimensions, {QUERIES} queries, {faiss.omp_get_max_threads()} threads")
    sizes = [int(size) for size in options.curve.split(",")] if options.curve else [options.rows]
    ratios = [compare(options, size, vectors, queries) for size in sizes]
    print(f"ratio: {ratios[-1]:.3f}")


def compare(options: argparse.Namespace, rows: int, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Compare at one size; return the time ratio of the cheapest setting that reaches the recall, one query at a time."""
    print(f"\n{rows:,} rows ({max(0, rows - len(vectors)):,} of them synthetic)")
    with tempfile.TemporaryDirectory(prefix="search-speed-") as folder:
        held = np.concatenate(list(blocks(vectors, rows))) if rows <= 2_000_000 else None
        truth, exact = exact_search(held, vectors, rows, queries)
        indexes = {}
        for rescore in options.rescore.split(","):
            start = time.perf_counter()
            indexes[rescore] = build(Path(folder) / rescore, vectors, rows, rescore, options.first_pass)
            print(f"{rescore}: built in {time.perf_counter() - start:.0f} s, {stored(indexes[rescore])}")
        settings = [(rescore, int(factor)) for rescore in indexes for factor in options.oversample.split(",")]
        found: dict[tuple[str, int], float] = {}
        print(f"{'setting':>24} {'recall@10':>10} {'ms, 1':>8} {'ratio':>7} {'ms, 32':>8} {'ratio':>7}")
        print(f"{'exact float32':>24} {1.0:>10.4f} {exact[1]:>8.2f} {1.0:>7.3f} {exact[32]:>8.2f} {1.0:>7.3f}")
        for rescore, factor in settings:
            index = indexes[rescore]
            hits = index_rows(index, queries, factor)
            recall = float(np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(hits, truth, strict=True)]))
            ratio, times = {}, {}
            for batch in (1, 32):
                times[batch], reference = alternating(
                    lambda part, index=index, factor=factor: index_rows(index, part, factor),
                    None if held is None else (lambda part: exact_rows(held, part)),
                    queries,
                    batch,
                )
                ratio[batch] = times[batch] / (reference or exact[batch])
            print(
                f"{rescore + ' x' + str(factor):>24} {recall:>10.4f} {times[1]:>8.2f} {ratio[1]:>7.3f} {times[32]:>8.2f} {ratio[32]:>7.3f}",
                flush=True,
            )
            if recall >= options.recall:
                found[rescore, factor] = ratio[1]
        if not found:
            print(f"no setting reaches recall@10 {options.recall}")
            return float("inf")
        rescore, factor = min(found, key=lambda each: found[each])
        print(f"cheapest with recall@10 >= {options.recall}: {rescore} x{factor}")
        if held is not None:
            memory(Path(folder), held, queries, rescore, factor)
        return found[rescore, factor]


def load(options: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Return unit vectors, queries first, and where they are from."""
    if options.cache and options.cache.exists():
        return normalise(np.load(options.cache, mmap_mode="r")), f"real, from {options.cache}"
    if options.data and options.model:
        from taskdistill import Encoder

        found = texts(options.data)[: options.rows + QUERIES]
        vectors = Encoder.load(options.model).encode(found, task=None)
        if options.cache:
            np.save(options.cache, vectors)
        return normalise(vectors), f"real, texts of {options.data} by {options.model}"
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, options.dim))
    rows = centres[rng.integers(0, len(centres), 20_000 + QUERIES)] + 0.8 * rng.standard_normal((20_000 + QUERIES, options.dim))
    return normalise(rows), "synthetic, 2,000 clusters"


def texts(data: Path) -> list[str]:
    """Return the distinct English texts of a data folder, in a fixed random order."""
    found: set[str] = set()
    for file in sorted(data.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if row.get("lang", "en") == "en":
                    found.update(row[key][:512] for key in ("text", "query", "positive", "text1", "text2") if isinstance(row.get(key), str))
    ordered = sorted(text for text in found if text.strip())
    random.Random(7).shuffle(ordered)
    return ordered


def blocks(vectors: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Yield the real vectors, then synthetic ones, up to a number of rows."""
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        real = vectors[start:stop]
        rng = np.random.default_rng(start)
        more = vectors[rng.integers(0, len(vectors), stop - start - len(real))].astype(np.float32)
        more += (0.6 / np.sqrt(vectors.shape[1])) * rng.standard_normal(more.shape, dtype=np.float32)
        yield np.concatenate([real, normalise(more)]) if len(more) else real


def exact_rows(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the top rows by a full product: the faster of two ways for the number of queries."""
    scores = queries @ vectors.T
    top = np.argpartition(scores, len(vectors) - TOP_K, axis=1)[:, -TOP_K:]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def exact_search(held: np.ndarray | None, vectors: np.ndarray, rows: int, queries: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
    """Return the true top rows, and milliseconds a query for batches of 1 and 32, summed over blocks where memory is short."""
    times = {1: 0.0, 32: 0.0}
    best_scores = np.full((len(queries), TOP_K), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), TOP_K), np.int64)
    start = 0
    for block in [held] if held is not None else blocks(vectors, rows):
        for batch in times:
            times[batch] += median_ms(lambda part, block=block: exact_rows(block, part), queries, batch)
        for at in range(0, len(queries), 32):
            part = queries[at : at + 32]
            found = exact_rows(block, part)
            scores = np.concatenate([best_scores[at : at + 32], np.einsum("qd,qkd->qk", part, block[found])], axis=1)
            every = np.concatenate([best_rows[at : at + 32], found + start], axis=1)
            order = np.argsort(-scores, axis=1)[:, :TOP_K]
            best_scores[at : at + 32] = np.take_along_axis(scores, order, axis=1)
            best_rows[at : at + 32] = np.take_along_axis(every, order, axis=1)
        start += len(block)
    return best_rows, times


def build(path: Path, vectors: np.ndarray, rows: int, rescore: str, first_pass: Any) -> Index:
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
        index.add_vectors([Document(str(row), "text") for row in range(start, start + len(block))], block, space_id="benchmark")
        start += len(block)
    index.compact()
    return Index.open(path, first_pass=first_pass)


def stored(index: Index) -> str:
    """Say how many bytes a row the parts take."""
    sizes, rows = index.describe()["bytes"], index.documents
    return f"codes {sizes['codes'] / rows:.0f} B a row, vectors {sizes.get('vectors', 0) / rows:.0f} B, float32 would be {4 * index.settings.dim} B"


def index_rows(index: Index, queries: np.ndarray, oversample: int) -> list[list[int]]:
    """Return the top rows by the index, hits and all."""
    return [[int(hit.id) for hit in hits] for hits in index.search(queries, TOP_K, oversample=oversample)]


def median_ms(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    """Return the median milliseconds a query."""
    return alternating(search, None, queries, batch)[0]


def alternating(
    first: Callable[[np.ndarray], Any], second: Callable[[np.ndarray], Any] | None, queries: np.ndarray, batch: int
) -> tuple[float, float | None]:
    """Return the median milliseconds a query of two ways, timed in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for at in range(0, batch * (20 if batch == 1 else 5), batch):
        for way, kept in zip((first, second), times, strict=True):
            if way is not None:
                start = time.perf_counter()
                way(queries[at : at + batch])
                kept.append(1000 * (time.perf_counter() - start) / batch)
    return float(np.median(times[0])), float(np.median(times[1])) if second else None


def memory(folder: Path, vectors: np.ndarray, queries: np.ndarray, rescore: str, oversample: int) -> None:
    """Print what each method holds in memory, measured in a process of its own."""
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    told = {}
    for method in ("exact", "index"):
        job = {"method": method, "folder": str(folder), "rescore": rescore, "oversample": oversample}
        result = subprocess.run([sys.executable, __file__, "--child", json.dumps(job)], capture_output=True, text=True, check=True)
        told[method] = json.loads(result.stdout)
    exact, index = told["exact"], told["index"]
    print(f"memory of exact search: {exact['own'] / 2**20:.0f} MiB its own")
    print(
        f"memory of the index: {index['own'] / 2**20:.0f} MiB its own and {index['codes'] / 2**20:.0f} MiB of codes that every query reads: "
        f"ratio {(index['own'] + index['codes']) / exact['own']:.3f}"
    )
    print(
        f"  and {index['mapped'] / 2**20:.0f} MiB of mapped pages after {len(queries)} queries, which the system may take back: "
        f"ratio with them {(index['own'] + index['mapped']) / exact['own']:.3f}"
    )


def child(job: dict[str, Any]) -> dict[str, int]:
    """Answer every query by one method; return the bytes of memory that it took."""
    folder, queries = Path(job["folder"]), np.load(Path(job["folder"]) / "queries.npy")
    small = np.eye(64, dtype=np.float32)
    exact_rows(small, small)
    faiss.knn_hamming(np.zeros((2, 48), np.uint8), np.zeros((100, 48), np.uint8), 5)
    before = resident()
    codes = 0
    if job["method"] == "exact":
        vectors = np.load(folder / "vectors.npy")
        for at in range(0, len(queries)):
            exact_rows(vectors, queries[at : at + 1])
    else:
        index = Index.open(folder / job["rescore"])
        codes = sum(segment.codes.nbytes for segment in index.snapshot.segments)
        for at in range(0, len(queries)):
            index_rows(index, queries[at : at + 1], job["oversample"])
    after = resident()
    return {"own": after["RssAnon"] - before["RssAnon"], "mapped": after["RssFile"] - before["RssFile"], "codes": codes}


def resident() -> dict[str, int]:
    """Return the process's resident bytes, its own and mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}


if __name__ == "__main__":
    main()
