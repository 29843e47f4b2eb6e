"""What the other commands print, write and name their files: plan, encode, adapt, shrink, merge,
mine, probe, info, data.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from golden import entry
from golden.compare import SCORES
from golden.summaries import summarize, weights_below
from golden.workshop import Workshop

TOLERANCE = SCORES


def record(workshop: Workshop) -> dict[str, Any]:
    """Command line to its exit code, output, result and files."""
    found: dict[str, Any] = {}
    workshop.command(
        found, "plan", workshop.recipe_file, "--quiet", result=workshop.path("commands/plan.json")
    )
    workshop.command(found, "plan", workshop.recipe_file, "--set", "stage1.steps=9", "--quiet")
    # Terms and projection that a recipe leaves open follow where the student starts from: cut from
    # its teacher, of another space, at random.
    config = f"student.config={json.dumps(entry.tiny_config('bert'))}"
    for start in (
        ("student.layers=null",),
        (f"student.init={workshop.topics}",),
        ("student.init=config", "student.layers=null", config),
    ):
        tokenizer = (
            ("--set", f"student.tokenizer={workshop.teacher}", "--set", "student.pooling=mean")
            if "student.init=config" in start
            else ()
        )
        settings = [
            word for each in (*start, "stage1.projection_init=auto") for word in ("--set", each)
        ]
        workshop.command(found, "plan", workshop.recipe_file, *settings, *tokenizer)
    for step, phase in ((0, "stage1"), (3, "adapters.retrieval"), (1, "adapters.classification")):
        words = ("data", "inspect", workshop.recipe_file, "--step", step, "--phase", phase)
        workshop.command(found, *words, *(("--row", 1) if phase == "adapters.retrieval" else ()))
    _encode(workshop, found)
    _adapt(workshop, found)
    _make_smaller(workshop, found)
    _mine(workshop, found)
    words = (
        "compare-teachers",
        workshop.teacher,
        workshop.topics,
        "--data",
        workshop.data,
        "--eval-set",
        "retrieval/qa",
        "--eval-set",
        "sts/sts",
        "--max-texts",
        60,
    )
    out = workshop.path("commands/probe")
    workshop.command(
        found,
        *words,
        "--steps",
        10,
        "--out",
        out,
        "--quiet",
        result=workshop.path("commands/probe.json"),
        made=out,
    )
    for name, folder in {
        "model": workshop.student,
        "teacher": workshop.teacher,
        "mined": workshop.root / "commands/mined-teacher",
    }.items():
        workshop.command(found, "info", folder, result=workshop.path(f"commands/info-{name}.json"))
    words = ("info", workshop.models["bert"], "--verify", "--backend", "torch", "--backend", "int8")
    workshop.command(found, *words, result=workshop.path("commands/verify.json"))
    return found


def _encode(workshop: Workshop, found: dict[str, Any]) -> None:
    model, texts = workshop.models["bert"], workshop.texts
    rows = entry.write_jsonl(
        workshop.path("commands/rows.jsonl"),
        [{"id": n, "said": f"the ship {n}"} for n in range(5)] + [{"id": 5}],
    )
    cases: dict[str, tuple[object, ...]] = {
        "a.npy": (texts,),
        "b.npy": (
            texts,
            "--task",
            "retrieval",
            "--prompt",
            "query",
            "--dim",
            16,
            "--precision",
            "int8",
        ),
        "c.parquet": (texts, "--precision", "binary"),
        "d.jsonl": (rows, "--column", "said"),
        "e.jsonl": (texts, "--chunks", 6, "--overlap", 2, "--max-length", 16),
        "f.parquet": (texts, "--windows", "--max-length", 12),
        "g.npy": (texts, "--max-length", 6, "--backend", "int8", "--task", "clustering"),
        "shards": (texts, "--shard-rows", 10, "--merge", workshop.root / "commands/merged.npy"),
    }
    for name, options in cases.items():
        out = workshop.path(f"commands/encoded/{name}")
        result = workshop.path(f"commands/encoded-{name}.json")
        done = workshop.command(
            found, "encode", model, *options, "--out", out, "--quiet", result=result, made=out
        )
        for path in [out] if out.is_file() else sorted(out.rglob("*.npy")):
            done[f"content of {path.name}"] = _content(path)
    workshop.command(
        found,
        "info",
        workshop.root / "commands/encoded/shards",
        result=workshop.path("commands/info-shards.json"),
    )


def _content(path: Path) -> Any:
    """Of arrays the summary, of rows the names of fields and the summaries of vectors."""
    if path.suffix == ".npy":
        return summarize(np.load(path))
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    else:
        import pyarrow.parquet as parquet

        rows = parquet.read_table(path).to_pylist()
    columns: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        first = values[0]
        numbers = isinstance(first, list | bytes | int | float)
        if isinstance(first, bytes):
            values = [list(value) for value in values]
        columns[name] = (
            summarize(np.array(values))
            if numbers and all(value is not None for value in values)
            else [str(value) for value in values[:6]]
        )
    return columns


def _adapt(workshop: Workshop, found: dict[str, Any]) -> None:
    folder = workshop.copy(workshop.student, "commands/adapted")
    few = [
        word
        for field in ("steps=4", "rank=2", "alpha=2", "batch_size=6", "max_length=24")
        for word in ("--set", field)
    ]
    data = workshop.data
    for name, task, rows in (
        ("topics", "classification", "labelled/topics.train.jsonl.gz"),
        ("graded", "text-matching", "scored/sts.train.jsonl.gz"),
        ("qa", "retrieval", "pairs/qa.train.jsonl.gz"),
    ):
        words = (
            "adapt",
            folder,
            data / rows,
            "--task",
            task,
            "--name",
            name,
            *few,
            "--seed",
            5,
            "--quiet",
        )
        kind = ("--kind", "scored") if name == "graded" else ()
        workshop.command(found, *words, *kind, result=workshop.path(f"commands/adapt-{name}.json"))
    found["adapted: weights"] = weights_below(folder / "adapters")
    found["adapted: files"] = workshop.files(folder)


def _make_smaller(workshop: Workshop, found: dict[str, Any]) -> None:
    texts = entry.write_jsonl(
        workshop.path("commands/some.jsonl"),
        [{"text": line} for line in workshop.texts.read_text().splitlines()[:9]],
    )
    out = workshop.path("commands/shrunk")
    words = (
        "shrink",
        workshop.topics,
        "--texts",
        texts,
        "--vocabulary",
        "--layers",
        1,
        "--width",
        24,
        "--data",
        workshop.data,
        "--eval-set",
        "sts/sts",
    )
    done = workshop.command(
        found,
        *words,
        "--out",
        out,
        "--quiet",
        result=workshop.path("commands/shrink.json"),
        made=out,
    )
    done["weights"] = weights_below(out)
    other = entry.write_topic_model(workshop.path("commands/sibling"), width=32, noise=0.2, seed=4)
    for method in ("uniform", "greedy", "spherical", "last"):
        out = workshop.path(f"commands/merged-{method}")
        words = (
            "merge",
            workshop.topics,
            other,
            "--data",
            workshop.data,
            "--eval-set",
            "sts/sts",
            "--method",
            method,
            "--out",
            out,
            "--quiet",
        )
        done = workshop.command(
            found, *words, result=workshop.path(f"commands/merge-{method}.json")
        )
        done["weights"], done["files"] = (
            (weights_below(out), workshop.files(out)) if out.is_dir() else ({}, [])
        )


def _mine(workshop: Workshop, found: dict[str, Any]) -> None:
    cases: dict[str, tuple[object, ...]] = {
        "teacher": ("--candidates", "lone", "--margin", 0.0),
        "model": (
            "--model",
            workshop.topics,
            "--no-relative-margin",
            "--pick",
            "random",
            "--last",
            20,
        ),
    }
    for name, options in cases.items():
        out = workshop.path(f"commands/mined-{name}")
        words = (
            "mine",
            workshop.recipe_file,
            "--source",
            "qa",
            "--negatives",
            3,
            *options,
            "--out",
            out,
            "--quiet",
        )
        done = workshop.command(
            found, *words, result=workshop.path(f"commands/mined-{name}.json"), made=out
        )
        rows = [
            json.loads(line)
            for line in gzip.decompress((out / "pairs/qa.train.jsonl.gz").read_bytes()).splitlines()
        ]
        done["negatives"] = [row.get("negatives", []) for row in rows[:12]]
