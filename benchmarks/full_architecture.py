"""The recipe of jina-embeddings-v5-text-small at the architecture of Qwen3-0.6B: some steps of
every phase, through `train` itself.

    python benchmarks/full_architecture.py # 28 layers of 1,024, a vocabulary of 151,669, random
    weights, 3 steps python benchmarks/full_architecture.py --peak 495 # on a card: the share of its
    data sheet's TFLOP/s (or TF32's) as well python benchmarks/full_architecture.py --quick --json
    out.json

The student starts from a folder in the form of the Hub, the teacher is a local model of one layer
that gives vectors of 2,560, and the recipe is recipes/jina-v5-small.yaml: its losses, weights,
thetas, prompts, ranks and averaging. Only what decides the amount of work is set anew: steps, batch
sizes, and the texts, which are docstrings of the standard library. On a CPU passes are float32 with
batches of 2 rows and long texts of 128 tokens, so that a student of 596 million weights with its
gradient and moments (9.5 GB) stays below 12 GiB; on a card they are those of the recipe, with 64
rows and 4,096 tokens. What is written: seconds of the whole phase with its checkpoint, tokens a
second over whole steps, the share of the matrix-multiply rate that was measured on the same device,
and the largest memory.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from common import in_child, machine, peak_memory, resident_memory, table

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "tests")
)  # which write the Hub's folders without the Hub
from helpers import tiny_hub

from taskdistill.device import device_name
from taskdistill.model.backbone import build_backbone
from taskdistill.pipeline.profile import matrix_rate, where_time_went
from taskdistill.pipeline.train import train
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.train.arithmetic import choose_arithmetic, training_device
from taskdistill.train.distributed import SINGLE
from taskdistill.train.log import read_lines

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "jina-v5-small.yaml"
BODY = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}
"""Of Qwen3-0.6B, beside layers and width."""
LONG = ("arxiv", "mldr")
"""Sources of the recipe whose texts are long; all others are read from the file of their kind."""
LABELS = 4


@dataclass
class Meter:
    """Watches a run: when each of its phases begins, and the largest memory until the next."""

    device: torch.device
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    _now: str = "start"
    _since: float = field(default_factory=time.monotonic)

    def stage(self, name: str) -> None:
        """End a phase and begin the next."""
        self.close()
        self._now = name.partition(":")[0]
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the phase that runs."""
        self.phases[self._now] = {"seconds": time.monotonic() - self._since, **self._memory()}
        self._since = time.monotonic()
        Path("/proc/self/clear_refs").write_text("5")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _memory(self) -> dict[str, float]:
        found = {"gib": peak_memory() / 2**30, "gib_after": resident_memory() / 2**30}
        return found | (
            {"gib_card": torch.cuda.max_memory_allocated(self.device) / 2**30}
            if self.device.type == "cuda"
            else {}
        )

    def note(self, text: str) -> None:
        """Show a fact."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def count(self, done: int, total: int) -> None:
        """Ignore a count."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step."""
        said = (
            f"step {record['step']}: {record['tokens']} tokens, loss {record['loss']:.3f},"
            f" {sum(record['seconds'].values()):.1f} s"
        )
        print(f"  {said}", file=sys.stderr, flush=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Ignore results."""


def write_models(
    folder: Path, *, layers: int, width: int, vocabulary: int, teacher_width: int
) -> None:
    """Write the student's folder as the Hub has it, and a teacher of one layer with the same
    tokenizer as sentence-transformers has it.
    """
    body = {**BODY, "hidden_size": width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    if width < 512:
        body |= {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 2 * width,
        }
    tiny_hub.write("qwen3", folder / "student", body=body, ids=vocabulary)
    tall = {
        **body,
        "hidden_size": teacher_width,
        "num_hidden_layers": 1,
        "intermediate_size": 4 * teacher_width,
    }
    tiny_hub.write("qwen3", folder / "teacher", body=tall, ids=vocabulary)
    (folder / "teacher" / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": teacher_width,
        "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False,
    }
    (folder / "teacher" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(parts)
    ]
    (folder / "teacher" / "modules.json").write_text(json.dumps(modules))


def docstrings() -> list[tuple[str, str]]:
    """Give first line and rest of the standard library's docstrings, in an order at random."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8", "replace"))):
            text = (
                ast.get_docstring(node)
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                else None
            )
            if text and "\n\n" in text:
                first, _, rest = text.partition("\n\n")
                found.append((" ".join(first.split()[:8]), " ".join(rest.split())))
    random.Random(0).shuffle(found)
    return found


def write_data(
    folder: Path, *, count: int, long_count: int, long_tokens: int
) -> dict[str, dict[str, Any]]:
    """Write rows of every kind that the recipe reads, and give its sources by kind.

    The tokenizer joins at most three letters, so a long text has a token for about two of its
    letters.
    """
    folder.mkdir()
    texts = docstrings()
    round_ = itertools.cycle(texts)
    draw = random.Random(1)

    def short(text: str) -> str:
        return text[:30]

    def long() -> str:
        made = ""
        while len(made) < 2 * long_tokens:
            made += " ".join(next(round_)) + " "
        return made[: 2 * long_tokens]

    chosen = texts[:count]
    negatives = [[short(draw.choice(chosen)[1]) for _ in range(7)] for _ in chosen]
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "pairs": (
            {"query": a, "positive": short(b), "negatives": others}
            for (a, b), others in zip(chosen, negatives, strict=True)
        ),
        "long": ({"query": a, "positive": long()} for a, _ in texts[:long_count]),
        "scored": ({"text1": a, "text2": short(b), "score": draw.random()} for a, b in chosen),
        "labelled": (
            {"text": a, "label": f"label {n % LABELS}"} for n, (a, _) in enumerate(chosen)
        ),
    }
    for kind, each in rows.items():
        (folder / f"{kind}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in each), "utf-8"
        )
    return {
        kind: {
            "path": f"{kind}.jsonl",
            "kind": "pairs" if kind == "long" else kind,
            "languages": ["en"],
        }
        for kind in rows
    }


def derive(
    folder: Path,
    *,
    steps: int,
    rows: int,
    long_rows: int,
    width: int,
    teacher_width: int,
    on_cpu: bool,
) -> dict[str, Any]:
    """Read the recipe and set anew where its models and data are and how much work there is."""
    raw: dict[str, Any] = yaml.safe_load(RECIPE.read_text("utf-8"))
    kinds = {
        name: "long" if name in LONG else said["kind"]
        for name, said in raw["data"]["sources"].items()
    }
    for name, phase in (("stage1", raw["stage1"]), ("long", raw["long"]), *raw["adapters"].items()):
        weights: dict[str, float] = {}
        for source, weight in phase["sources"].items():
            weights[kinds[source]] = weights.get(kinds[source], 0.0) + weight
        batches = {
            kinds[source]: [long_rows, tokens]
            for source, (_, tokens) in phase.get("long_sources", {}).items()
        }
        phase |= {
            "sources": weights,
            "steps": steps,
            "batch_size": long_rows if name == "long" else rows,
        }
        phase |= {"long_sources": batches} if batches else {}
        if on_cpu:
            phase["micro_batch_tokens"] = 128
    raw["data"] = {"root": str(folder / "data"), "sources": {}}
    raw["teacher"] |= {"model": str(folder / "teacher"), "embedding_dim": teacher_width}
    raw["student"] |= {
        "init": str(folder / "student"),
        "matryoshka_dims": [n for n in raw["student"]["matryoshka_dims"] if n <= width],
    }
    return (
        raw
        | {"threads": 1, "name": "full-architecture"}
        | ({"precision": "auto"} if on_cpu else {})
    )


def measure(log: Path, meter: Meter, rate: float) -> list[dict[str, Any]]:
    """Join what the log and the meter know of each phase."""
    shares = where_time_went(log, rate)["phases"]
    steps: dict[str, list[dict[str, Any]]] = {}
    for _, record in read_lines(log):
        if "step" in record and isinstance(record.get("seconds"), dict):
            steps.setdefault(record["phase"], []).append(record)
    return [
        {
            "phase": name,
            "steps": len(each),
            "losses": [record["loss"] for record in each],
            "skipped": sum(record["skipped"] for record in each),
            "tokens": sum(record["tokens"] for record in each),
            "tokens_per_second": (
                sum(record["tokens"] for record in each) / shares[name]["step_seconds"]
            ),
            "share_of_rate": shares[name]["steps"],
            "share_of_rate_in_passes": shares[name]["passes"],
            "flops_per_second": 1e9 * shares[name]["gflop"] / shares[name]["step_seconds"],
            **meter.phases[name],
        }
        for name, each in steps.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--steps", type=int, default=3, help="of every phase")
    made.add_argument("--layers", type=int, default=28)
    made.add_argument("--width", type=int, default=1024)
    made.add_argument("--vocabulary", type=int, default=tiny_hub.IDS["qwen3"])
    made.add_argument(
        "--teacher-width", type=int, default=2560, help="dimensions of the teacher's vectors"
    )
    made.add_argument("--batch-size", type=int, help="rows of a batch; 2 on a CPU, 64 on a card")
    made.add_argument(
        "--long-batch-size", type=int, help="rows of a batch of long texts; 2 on a CPU, 8 on a card"
    )
    made.add_argument(
        "--long-tokens", type=int, help="tokens of a long text; 128 on a CPU, 4,096 on a card"
    )
    made.add_argument("--device", default="auto")
    made.add_argument(
        "--peak",
        type=float,
        help="TFLOP/s of the card's data sheet, in the arithmetic of the passes",
    )
    made.add_argument("--scratch", type=Path, help="folder for models and run; 25 GB at full size")
    made.add_argument("--quick", action="store_true", help="a tiny student: does it run?")
    made.add_argument("--json", type=Path, help="write the figures as JSON")
    made.add_argument("--only-write", type=Path, help=argparse.SUPPRESS)
    asked = made.parse_args(arguments)
    if asked.quick:
        asked.layers, asked.width, asked.vocabulary, asked.teacher_width, asked.long_tokens = (
            2,
            32,
            600,
            48,
            64,
        )
    sizes = {
        "layers": asked.layers,
        "width": asked.width,
        "vocabulary": asked.vocabulary,
        "teacher_width": asked.teacher_width,
    }
    if asked.only_write is not None:
        write_models(asked.only_write, **sizes)
        print("{}")
        return
    device = training_device(asked.device, SINGLE)
    on_cpu = device.type == "cpu"
    rows, long_rows = (
        asked.batch_size or (2 if on_cpu else 64),
        asked.long_batch_size or (2 if on_cpu else 8),
    )
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        folder = Path(scratch)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
        if asked.quick:
            write_models(folder, **sizes)
        else:
            in_child(["--only-write", str(folder), *flags])  # whose memory is not that of the run
        count = (
            16 if on_cpu else 2_000
        )  # of all texts the teacher's vectors are made, and of some the ranges of int8
        sources = write_data(
            folder / "data",
            count=count,
            long_count=max(long_rows * 2, count // 50),
            long_tokens=asked.long_tokens or (128 if on_cpu else 4096),
        )
        amounts = {"steps": asked.steps, "rows": rows, "long_rows": long_rows}
        raw = derive(
            folder, **amounts, width=asked.width, teacher_width=asked.teacher_width, on_cpu=on_cpu
        )
        raw["data"]["sources"], raw["device"] = sources, asked.device
        recipe = parse_recipe(raw)
        meter = Meter(device)
        train(
            recipe, folder / "run", progress=meter, assess=lambda run, model, static: {}
        )  # there is nothing to score
        meter.close()
        arithmetic = choose_arithmetic(recipe.precision, device)
        dtype = arithmetic.compute or torch.float32
        rate = matrix_rate(threads=1, device=device, dtype=dtype)
        found = measure(folder / "run" / "log.jsonl", meter, rate)
        config = json.loads((folder / "student" / "config.json").read_text())
        weights = sum(
            p.numel()
            for p in build_backbone({**config, "auto_map": None}, device="meta").parameters()
        )
    print(machine(1))
    lines = [
        [
            each["phase"],
            str(each["steps"]),
            f"{each['tokens']:,}",
            f"{each['seconds']:,.1f}",
            f"{each['tokens_per_second']:,.1f}",
            f"{100 * each['share_of_rate']:.0f} % / {100 * each['share_of_rate_in_passes']:.0f} %",
            *([f"{each['flops_per_second'] / asked.peak / 1e10:.0f} %"] if asked.peak else []),
            f"{each.get('gib_card', each['gib']):.2f}",
        ]
        for each in found
    ]
    title = (
        f"{weights:,} weights, {device_name(device)}, {arithmetic}; matrices are multiplied at"
        f" {rate / 1e9:,.0f} GF/s"
    )
    columns = ["phase", "steps", "tokens", "seconds", "tokens/s", "share of that: steps / passes"]
    table(title, [*columns, *(["of the data sheet"] if asked.peak else []), "GiB at most"], lines)
    most = max(each["gib"] for each in meter.phases.values())
    print(f"\nlargest memory of the process: {most:.2f} GiB")
    if any(each["skipped"] for each in found):
        raise SystemExit("error: steps were skipped, their losses or gradients were not finite")
    if asked.json is not None:
        said = {
            "weights": weights,
            "device": str(device),
            "rate": rate,
            "gib": most,
            "phases": found,
            "stages": meter.phases,
        }
        asked.json.write_text(json.dumps(said, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
