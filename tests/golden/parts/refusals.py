"""Some eighty bad inputs, each with its message and exit code."""

from __future__ import annotations

import gzip
import json
import shutil
from typing import Any

from golden.workshop import Workshop

RECIPE_FAULTS = (
    *(
        "stage1.step=3",
        "stage1.steps=0",
        "stage1.steps=many",
        "stage1.sources.nothing=1",
        "stage1.sources.qa=-1",
        "seed=-1",
        "precision=float8",
    ),
    *(
        "stage1.weights.distil=1",
        "stage1.weights.hidden=1",
        "stage1.weights.distill=0",
        "stage1.menu.corners=4",
        "stage1.projection=none",
    ),
    *(
        "stage1.schedule=square",
        "adapters.retrieval.weights.cosent=1",
        "adapters.clustering.temperature=0.1",
        "adapters.retrieval.sharpen.focal=-1",
    ),
    *(
        "adapters.clasification.steps=3",
        "adapters.retrieval.average.weight=2",
        "student.matryoshka_dims=[8,99]",
        "student.layers=[7]",
        "student.init=config",
    ),
    *(
        "teacher.model=TMP/nowhere",
        "teacher.kind=telepathy",
        "teacher.api_key_env=KEY",
        "teacher.api_key_env=NOT_SET",
        "several=heads",
    ),
    *(
        "data.root=TMP/nowhere",
        "data.sources.qa.path=pairs/none.jsonl",
        "data.sources.qa.kind=scored",
        "evaluation.dev=[sts/none]",
        "evaluation.sets=[x/*]",
    ),
    *(
        "static.noise=0.5",
        "static.weights.cosin=1",
        "long.projection_init=identity",
        "device=abacus",
        "nonsense",
        "stage1.rope_theta=1000",
    ),
)
"""Overrides of the tiny recipe that `plan` refuses."""


def record(workshop: Workshop) -> dict[str, Any]:
    """Command line to exit code and message."""
    found: dict[str, Any] = {}
    for fault in RECIPE_FAULTS:
        workshop.command(
            found,
            "plan",
            workshop.recipe_file,
            "--set",
            fault.replace("TMP", str(workshop.root)),
            "--quiet",
            code=None,
        )
    for words in [*_usage(workshop), *_options(workshop), *_files(workshop), *_folders(workshop)]:
        workshop.command(found, *words, code=None)
    if taken := [name for name, done in found.items() if done["code"] == 0]:
        raise AssertionError(f"not refused: {'; '.join(taken)}")
    return {name: {"code": done["code"], "err": done["err"]} for name, done in found.items()}


def _usage(workshop: Workshop) -> list[tuple[object, ...]]:
    model = workshop.models["bert"]
    return [
        ("nothing",),
        ("trian", "x.yaml"),
        ("train",),
        ("train", workshop.root / "absent.yaml", "--out", workshop.root / "refused"),
        ("encode", model, workshop.texts),
        ("encode", model, workshop.texts, "--out", "x.npy", "--precision", "int9"),
        ("encode", model, workshop.texts, "--out", "x.npy", "--dimm", "3"),
        ("evaluate", model),
        ("plan", workshop.recipe_file, "--quite"),
        ("plan", workshop.recipe_file, "--gpu", "a100"),
        ("index", "delete", workshop.root / "no-index"),
        ("data", "inspect", workshop.recipe_file, "--step", "x"),
    ]


def _options(workshop: Workshop) -> list[tuple[object, ...]]:
    model, data, texts, out = (
        workshop.models["bert"],
        workshop.data,
        workshop.texts,
        workshop.root / "refused.npy",
    )
    new, recipe = workshop.root / "refused", workshop.recipe_file
    return [
        ("encode", model, texts, "--out", out, "--task", "retreival"),
        ("encode", model, texts, "--out", out, "--dim", 99),
        ("encode", model, texts, "--out", out, "--windows", "--chunks", 5),
        ("encode", model, texts, "--out", out, "--overlap", 5),
        ("encode", model, texts, "--out", out, "--processes", 2),
        ("encode", model, texts, "--out", out, "--max-length", 4, "--refuse-truncation"),
        ("encode", model, texts, "--out", workshop.root / "refused.txt"),
        ("encode", workshop.topics, texts, "--out", out, "--task", "retrieval"),
        ("encode", workshop.topics, texts, "--out", out, "--precision", "int8"),
        ("evaluate", model, "--out", new),
        ("evaluate", model, "--data", data, "--out", new, "--split", "train"),
        ("evaluate", model, "--data", data, "--out", new, "--eval-set", "sts/stts"),
        ("evaluate", model, "--data", data, "--out", new, "--dims", "8,x"),
        ("evaluate", model, "--data", data, "--out", new, "--precisions", "int9"),
        ("evaluate", model, "--data", data, "--out", new, "--reference", "other"),
        ("evaluate", model, model, "--data", data, "--out", new),
        ("needle", model, "--lengths", "64,many", "--out", new),
        ("needle", model, "--kinds", "neddle", "--out", new),
        ("adapt", model, data / "labelled/topics.train.jsonl.gz", "--task", "classification"),
        (
            "adapt",
            model,
            data / "labelled/topics.train.jsonl.gz",
            "--task",
            "retrieval",
            "--name",
            "x",
        ),
        (
            "adapt",
            model,
            data / "labelled/topics.train.jsonl.gz",
            "--task",
            "classification",
            "--name",
            "x",
            "--set",
            "ranks=3",
        ),
        (
            "adapt",
            model,
            data / "labelled/topics.train.jsonl.gz",
            "--task",
            "classification",
            "--name",
            "x",
            "--column",
            "label",
        ),
        ("export", model, "--format", "onx", "--out", new),
        ("export", model, "--format", "jina-v5", "--task", "retrieval", "--out", new),
        ("export", model, "--format", "gguf", "--out", new),
        ("export", model, "--format", "onnx", "--name", "x", "--out", new),
        ("merge", model, workshop.topics, "--data", data, "--out", new),
        ("merge", model, model, "--data", data, "--out", new, "--last-weight", 0.3),
        ("mine", recipe, "--source", "quest", "--out", new),
        ("mine", recipe, "--source", "qa", "--out", new, "--pick", "easiest"),
        ("mine", recipe, "--source", "lone", "--out", new),
        ("shrink", model, "--texts", texts, "--out", new, "--eval-set", "sts/sts"),
        ("shrink", workshop.topics, "--texts", texts, "--out", new, "--layers", 9),
        ("compare-teachers", model, "--data", data, "--out", new, "--max-texts", 1),
        ("serve", model, "--limit", "allowed_hosts=x"),
        ("serve", model, "--host", "0.0.0.0", "--port", "0"),
        ("serve", model, "--api-key-env", "NOT_SET"),
        ("ablate", recipe, "--out", new),
        ("ablate", recipe, "--out", new, "--arms", "E"),
        ("data", "inspect", recipe, "--phase", "stage2"),
        ("data", "inspect", recipe, "--step", 99),
        ("info", model, "--backend", "int8"),
        ("info", model, "--repair"),
    ]


def _files(workshop: Workshop) -> list[tuple[object, ...]]:
    model, out = workshop.models["bert"], workshop.root / "refused.npy"
    bad = workshop.path("bad")
    bad.mkdir()
    whole = gzip.compress(b'{"text": "one"}\n' * 400, mtime=0)
    files = {
        "empty.txt": b"",
        "latin.txt": "stra\xdfe\n".encode("latin-1"),
        "broken.jsonl": b'{"text": "one"}\n{"text": \n',
        "field.jsonl": b'{"said": "one"}\n',
        "list.jsonl": b'["one"]\n',
        "number.jsonl": b'{"text": 3}\n',
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "not.parquet": b"PAR0 and so on",
        "columns.csv": b"id,said\n1,one\n",
        "image.png": b"\x89PNG",
    }
    for name, content in files.items():
        (bad / name).write_bytes(content)
    found: list[tuple[object, ...]] = [
        ("encode", model, bad / name, "--out", out, "--quiet") for name in files
    ]
    found += [
        ("index", model, bad / name, "--out", workshop.root / "refused", "--quiet")
        for name in ("empty.txt", "field.jsonl", "list.jsonl")
    ]
    (bad / "recipe.yaml").write_text("name: x\nname: y\n")
    (bad / "tabs.yaml").write_text("name: [x\n")
    return [*found, *(("plan", bad / name) for name in ("recipe.yaml", "tabs.yaml", "image.png"))]


def _folders(workshop: Workshop) -> list[tuple[object, ...]]:
    index = workshop.path("refused-index")
    workshop.run(
        "index",
        workshop.models["bert"],
        workshop.data / "retrieval/town-en/corpus.jsonl",
        "--out",
        index,
        "--quiet",
    )
    changed, weights, foreign = (
        workshop.path(f"damaged-{name}") for name in ("manifest", "weights", "foreign")
    )
    for folder in (changed, weights):
        shutil.copytree(workshop.models["bert"], folder)
    manifest = json.loads((changed / "taskdistill.json").read_text())
    (changed / "taskdistill.json").write_text(json.dumps(manifest | {"kind": "another"}))
    content = bytearray((weights / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (weights / "model.safetensors").write_bytes(bytes(content))
    foreign.mkdir()
    (foreign / "mine.txt").write_text("not yours")
    texts, data = workshop.texts, workshop.data
    return [
        *(
            ("encode", folder, texts, "--out", workshop.root / "refused.npy", "--quiet")
            for folder in (changed, weights, foreign, workshop.root / "absent")
        ),
        *(("info", folder) for folder in (changed, weights, foreign, workshop.root / "absent")),
        (
            "index",
            workshop.models["bert"],
            data / "retrieval/qa/corpus.jsonl.gz",
            "--out",
            foreign,
            "--quiet",
        ),
        (
            "index",
            workshop.models["qwen3"],
            data / "retrieval/qa/corpus.jsonl.gz",
            "--out",
            index,
            "--quiet",
        ),
        ("train", workshop.recipe_file, "--out", foreign, "--quiet"),
        ("export", workshop.models["bert"], "--format", "sentence-transformers", "--out", foreign),
        ("search", index, "ship", "--model", workshop.topics),
        ("search", index, "ship", "--filter", "nothing=1"),
        ("search", index, "ship", "--filter", "nothing"),
        ("search", index, "ship", "--hybrid"),
        ("search", index, ""),
        ("search", workshop.models["bert"], "ship"),
        ("search", "tune", index, "--dev", data / "retrieval/town-en", "--dims", "x"),
        ("search", "tune", index, "--dev", foreign),
        (
            "migrate",
            index,
            workshop.models["bert"],
            "--dev",
            data / "retrieval/town-en",
            "--out",
            workshop.root / "refused",
        ),
        ("migrate", "state", index),
        ("tiers", workshop.topics, "--dev", data / "retrieval/town-en"),
        ("index", "delete", workshop.topics, "d1"),
    ]
