"""What the side-by-side benchmarks share: real texts, sides that take turns, what the machine is,
and the table.

Every benchmark is one command, runs its sides in turn in one process, and prints `ratio: X` as its
last line. Ratios of medians within one run are the only thing to compare: absolute rates move with
whatever else the machine does, so the cores that others used meanwhile are printed beside each row.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MODEL = "all-MiniLM-L6-v2"
MIXED = {
    "scored/stsb-en.train": 30,
    "texts/wellformed-queries": 15,
    "texts/wiki-sentences": 35,
    "pairs/reuters-title-body.train": 20,
}
"""Sources of mixed lengths and their shares in percent: about 46 tokens on average, median 24, cut
at 256.
"""
SHORT = {"scored/stsb-en.train": 100}
"""Sentences of about 15 tokens."""
FIELDS = ("text", "positive", "text1", "text2")


def parser(doc: str | None, *, texts: int, rounds: int = 5) -> argparse.ArgumentParser:
    """Make the arguments that every benchmark has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--texts", type=int, default=texts, help="texts of each kind")
    made.add_argument(
        "--rounds", type=int, default=rounds, help="turns of every side; the median is reported"
    )
    made.add_argument("--threads", type=int, default=cores(), help="threads of either side")
    made.add_argument(
        "--data",
        type=Path,
        default=None,
        help="data folder; default ../shared/data, else the standard library's docstrings",
    )
    made.add_argument("--quick", action="store_true", help="a few texts, one round: does it run?")
    made.add_argument("--json", type=Path, help="write the table as JSON")
    return made


def options(made: argparse.ArgumentParser, quick_texts: int = 48) -> argparse.Namespace:
    """Read the command line, shrink it for a smoke run, and set the intra-op threads of every
    library.
    """
    import torch

    found = made.parse_args()
    if found.quick:
        found.texts, found.rounds = min(found.texts, quick_texts), 1
    torch.set_num_threads(found.threads)
    return found


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def load_texts(kind: str, count: int, data: Path | None, seed: int = 0) -> list[str]:
    """Draw real texts of `mixed` or `short` lengths; the same ones for the same seed."""
    root = data or data_folder()
    if not root.is_dir():
        if data is not None:
            raise SystemExit(f"error: no folder {data}")
        return _docstrings(kind, count, seed)
    chosen: list[str] = []
    for name, share in (MIXED if kind == "mixed" else SHORT).items():
        found = list(dict.fromkeys(_read(root / f"{name}.jsonl.gz")))
        random.Random(f"{seed}{name}").shuffle(found)
        chosen += found[: max(1, round(count * share / 100))]
    random.Random(seed).shuffle(chosen)
    return (chosen * (count // len(chosen) + 1))[:count]


def data_folder() -> Path:
    """Give the folder of real data beside this repository; it may be missing."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"


def _read(path: Path) -> Iterable[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if path.name.startswith("reuters"):
                yield row["positive"]
            else:
                yield from (row[name] for name in FIELDS if row.get(name))


def _docstrings(kind: str, count: int, seed: int) -> list[str]:
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8", "replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (
                text := ast.get_docstring(node)
            ):
                found.append(text if kind == "mixed" else text.splitlines()[0])
    random.Random(seed).shuffle(found)
    return (found * (count // len(found) + 1))[:count]


@dataclass
class Side:
    """Timings of one side."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return sorted(self.seconds)[len(self.seconds) // 2]

    @property
    def median_cpu(self) -> float:
        """Median processor seconds of a turn, all threads together."""
        return sorted(self.cpu)[len(self.cpu) // 2]

    @property
    def median_foreign(self) -> float:
        """Median number of cores that other processes used meanwhile."""
        return sorted(self.foreign)[len(self.foreign) // 2]


def in_turn(
    sides: Mapping[str, Callable[[], Any]], rounds: int, *, warm: bool = True
) -> dict[str, Side]:
    """Run every side once unmeasured, then all of them in turn, round after round."""
    found = {name: Side() for name in sides}
    for number in range(rounds + warm):
        for name, work in sides.items():
            begin = (time.perf_counter(), time.process_time(), _busy())
            found[name].result = work()
            wall, own, busy = (
                after - before
                for after, before in zip(
                    (time.perf_counter(), time.process_time(), _busy()), begin, strict=True
                )
            )
            if number >= warm:
                found[name].seconds.append(wall)
                found[name].cpu.append(own)
                found[name].foreign.append(max(0.0, busy - own) / wall)
    return found


def _busy() -> float:
    """Processor seconds that everybody has used since the start of the machine."""
    path = Path("/proc/stat")
    if not path.is_file():
        return time.process_time()
    fields = [int(value) for value in path.read_text("ascii").split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def multiply(threads: int, seconds: float = 1.0) -> dict[str, float]:
    """Measure the float32 matrix-multiply rate of this machine now, in flop/s, on the shapes that a
    small encoder has.

    Every thread multiplies by itself, so that none waits for another. `sustained` is all work over
    all time, for the best shape; `best` the fastest single call of one thread times the threads,
    which no longer work reaches where cores are shared.
    """
    import torch

    before, found = torch.get_num_threads(), {"sustained": 0.0, "best": 0.0}
    torch.set_num_threads(1)
    for rows, inner, columns in (
        (768, 384, 384),
        (768, 384, 1536),
        (768, 1536, 384),
        (1024, 1024, 1024),
    ):
        flops, end = 2 * rows * inner * columns, time.perf_counter() + seconds / 4

        def work(
            rows: int = rows, inner: int = inner, columns: int = columns, end: float = end
        ) -> tuple[int, float]:
            torch.set_num_threads(1)
            a, b, out = (
                torch.randn(rows, inner),
                torch.randn(inner, columns),
                torch.empty(rows, columns),
            )
            count, quickest = 0, float("inf")
            while time.perf_counter() < end or count < 3:
                begin = time.perf_counter()
                torch.mm(a, b, out=out)
                quickest = min(quickest, time.perf_counter() - begin)
                count += 1
            return count, quickest

        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            done = [each.result() for each in [pool.submit(work) for _ in range(threads)]]
        found["sustained"] = max(
            found["sustained"],
            flops * sum(count for count, _ in done) / (time.perf_counter() - start),
        )
        found["best"] = max(found["best"], threads * flops / min(quickest for _, quickest in done))
    torch.set_num_threads(before)
    return found


def machine(threads: int, packages: Sequence[str] = ()) -> str:
    """Describe where this runs: processor, cores, load, threads, versions."""
    names = ("torch", "transformers", "sentence-transformers", "numpy", *packages)
    found = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in names
        if importlib.util.find_spec(name.replace("-", "_"))
    )
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {cores()} cores, load {load}, {threads} threads; python"
        f" {sys.version.split()[0]}, {found}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8", "replace").splitlines() if Path(path).is_file() else []


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]
    print(f"\n{title}")
    for row in (columns, *rows):
        print(
            "  ".join(
                str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


def speed_rows(
    sides: Mapping[str, Side], texts: int, tokens: int, reference: str
) -> list[list[str]]:
    """Write a row a side: rates, ratio to the reference by wall clock and by processor time,
    foreign load.
    """
    base = sides[reference]
    return [
        [
            name,
            f"{texts / side.median:,.0f}",
            f"{tokens / side.median:,.0f}",
            f"{base.median / side.median:.2f}",
            f"{base.median_cpu / side.median_cpu:.2f}",
            f"{side.median_foreign:.1f}",
        ]
        for name, side in sides.items()
    ]


SPEED_COLUMNS = [
    "side",
    "texts/s",
    "tokens/s",
    "ratio",
    "ratio of cpu time",
    "cores used by others",
]


def finish(ratio: float, found: Any, path: Path | None) -> None:
    """Write the JSON if it is wanted, and the last line."""
    if path is not None:
        path.write_text(json.dumps({"ratio": ratio, **found}, indent=2) + "\n", "utf-8")
    print(f"\nratio: {ratio:.2f}")


def in_child(arguments: Sequence[str]) -> dict[str, Any]:
    """Run this benchmark's own file again in a process of its own and read the JSON object of its
    last line.
    """
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def peak_memory() -> int:
    """Read this process's largest resident size so far, in bytes."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def resident_memory() -> int:
    """Read this process's resident size now, in bytes."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
