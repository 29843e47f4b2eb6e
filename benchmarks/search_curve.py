"""Binary first pass with rescoring against exact float32 search over the number of rows: a table,
and a picture with --picture.

    python benchmarks/search_curve.py --cache /tmp/vectors.npy --sizes 10000,100000,1000000
    --picture docs/search-curve.svg

Rows, queries and exact search are those of benchmarks/search_speed.py; rows beyond the real ones
are synthetic. Above --held rows the exact search goes through the vectors block by block, its time
is the sum over the blocks, and its memory is what its vectors take. The last line is the time ratio
at the largest size, one query at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import machine
from search_speed import (
    BATCHES,
    TOP_K,
    Exact,
    add_source,
    alternating,
    blocks,
    build,
    by_product,
    index_rows,
    load,
    memory,
    recall_of,
)

COLUMNS = (
    "rows",
    "recall@10",
    "ms, 1 query",
    "exact",
    "ratio",
    "ms, 32 queries",
    "exact",
    "ratio",
    "MiB",
    "exact",
    "ratio",
)


def main() -> None:
    """Measure every size and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source(parser)
    parser.add_argument("--sizes", default="10000,30000,100000,200000,1000000")
    parser.add_argument("--rescore", default="int8")
    parser.add_argument("--oversample", type=int, default=100)
    parser.add_argument(
        "--queries", type=int, default=500, help="queries of which the recall is the mean"
    )
    parser.add_argument(
        "--held", type=int, default=2_000_000, help="most rows held in memory as float32"
    )
    parser.add_argument(
        "--folder", type=Path, help="where indexes are written; default: the temporary folder"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="also write the figures here; figures already there of other sizes are kept",
    )
    parser.add_argument("--picture", type=Path, help="draw the curve into this .svg or .png file")
    options = parser.parse_args()
    queries, vectors, origin = load(options)
    queries = queries[: options.queries]
    print(
        f"vectors: {origin}, {vectors.shape[1]} dimensions, {len(queries)} queries;"
        f" {machine(faiss.omp_get_max_threads(), ['faiss-cpu'])}"
    )
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for rows in map(int, options.sizes.split(",")):
        found = at_size(options, rows, vectors, queries)
        known = sorted(
            [each for each in known if each["rows"] != rows] + [found],
            key=lambda each: each["rows"],
        )
        if options.json:
            options.json.write_text(json.dumps(known, indent=1))
    print(
        f"\n{options.rescore}, oversampling {options.oversample}; the first {len(vectors):,} rows"
        " are real, further ones synthetic\n"
    )
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---:|" * len(COLUMNS))
    for each in known:
        print(line(each))
    if options.picture:
        draw(known, len(vectors), options.picture)
    print(f"ratio: {known[-1]['ms'][0] / known[-1]['exact_ms'][0]:.3f}")


def at_size(
    options: argparse.Namespace, rows: int, vectors: np.ndarray, queries: np.ndarray
) -> dict[str, Any]:
    """Measure one size."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="search-curve-", dir=options.folder) as name:
        folder = Path(name)
        held = np.concatenate(list(blocks(vectors, rows))) if rows <= options.held else None
        index = build(folder / options.rescore, vectors, rows, options.rescore)
        built = time.perf_counter() - started

        def search(part: np.ndarray) -> list[list[int]]:
            return index_rows(index, part, options.oversample)

        if held is None:
            truth, exact = by_blocks(vectors, rows, queries)
            times = {
                batch: alternating(search, lambda part: None, queries, batch)[0]
                for batch in BATCHES
            }
        else:
            searched = Exact(held, queries)
            truth, exact, times = searched.truth, {}, {}
            for batch in BATCHES:
                times[batch], exact[batch] = alternating(
                    search, searched.ways[batch], queries, batch
                )
        recall = recall_of(search(queries), truth)
        taken = memory(folder, held, queries, options.rescore, options.oversample)
    found = {
        "rows": rows,
        "recall": recall,
        "ms": [times[batch] for batch in BATCHES],
        "exact_ms": [exact[batch] for batch in BATCHES],
        "bytes": taken["index"].needed,
        "exact_bytes": 4 * rows * vectors.shape[1] if held is None else taken["exact"].own,
    }
    print(f"{rows:,} rows: built in {built:.0f} s, recall@10 {recall:.4f}", flush=True)
    return found


def by_blocks(
    vectors: np.ndarray, rows: int, queries: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """Return the true top rows and the milliseconds a query of exact search that goes through the
    vectors in blocks.
    """
    times = dict.fromkeys(BATCHES, 0.0)
    best_scores = np.full((len(queries), TOP_K), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), TOP_K), np.int64)
    start = 0
    for block in blocks(vectors, rows):
        for batch in BATCHES:
            times[batch] += alternating(
                lambda part, block=block: by_product(block, part), lambda part: None, queries, batch
            )[0]
        for at in range(0, len(queries), 32):
            part = queries[at : at + 32]
            found = by_product(block, part)
            scores = np.concatenate(
                [best_scores[at : at + 32], np.einsum("qd,qkd->qk", part, block[found])], axis=1
            )
            every = np.concatenate([best_rows[at : at + 32], found + start], axis=1)
            order = np.argsort(-scores, axis=1)[:, :TOP_K]
            best_scores[at : at + 32] = np.take_along_axis(scores, order, axis=1)
            best_rows[at : at + 32] = np.take_along_axis(every, order, axis=1)
        start += len(block)
    return best_rows, times


def line(each: dict[str, Any]) -> str:
    """Return a line of the table."""
    cells = [f"{each['rows']:,}", f"{each['recall']:.4f}"]
    for mine, exact in zip(each["ms"], each["exact_ms"], strict=True):
        cells += [f"{mine:.2f}", f"{exact:.2f}", f"{mine / exact:.3f}"]
    mine, exact = each["bytes"] / 2**20, each["exact_bytes"] / 2**20
    return (
        "| " + " | ".join([*cells, f"{mine:,.0f}", f"{exact:,.0f}", f"{mine / exact:.3f}"]) + " |"
    )


def draw(known: list[dict[str, Any]], real: int, path: Path) -> None:
    """Draw time of one query and recall over the number of rows."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "search"
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    rows = [each["rows"] for each in known]
    upper.plot(
        rows,
        [each["exact_ms"][0] for each in known],
        "--o",
        color="black",
        markerfacecolor="white",
        label="exact float32",
    )
    upper.plot(
        rows,
        [each["ms"][0] for each in known],
        "-o",
        color="black",
        label="binary first pass, rescored",
    )
    upper.set(xscale="log", yscale="log", ylabel="milliseconds a query")
    upper.legend(frameon=False, fontsize=9)
    lower.plot(rows, [each["recall"] for each in known], "-o", color="black")
    lower.axhline(0.99, linewidth=0.8, linestyle=":", color="0.4")
    lower.set(
        xlabel=f"rows; those above {real:,} are synthetic",
        ylabel="recall@10",
        ylim=(min(0.975, *lower.get_ylim()), 1.001),
    )
    for axes in (upper, lower):
        axes.axvline(real, linewidth=0.8, linestyle=":", color="0.4")
        axes.grid(axis="y", linewidth=0.4, color="0.85")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
