"""Vectors of three backbones: tasks, prompts, precisions, truncations, token ids, late chunking,
windows, eight bits, other layouts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from golden import entry
from golden.summaries import summarize
from golden.workshop import Workshop

TEXTS = [
    "The old ship sails near the island.",
    "what is the verdict of the judge?",
    "bread",
    "a planet and a comet, with a telescope: the night",
    "straße ÄÖÜ é e\u0301 火星 👩‍🚀",
    "the the the a of and in to",
    "heart blood bone nerve " * 30,
    "  two   spaces\tand a tab\nand a line ",
]
LONG = "the ship and the whale near the harbour. a star in the sky of the night. " * 9


def record(workshop: Workshop) -> dict[str, Any]:
    """Every part of what an encoder gives."""
    found: dict[str, Any] = {}
    for family, folder in workshop.models.items():
        encoder = entry.Encoder.load(folder, threads=1)
        found |= {
            f"{family} {key}": value
            for key, value in {**_calls(encoder), **_long(encoder), **_about(encoder)}.items()
        }
        eight = entry.Encoder.load(folder, threads=1, backend="int8")
        for task in (None, "retrieval"):
            found[f"{family} back end int8 {task}"] = summarize(eight.encode(TEXTS, task=task))
        two = entry.Encoder.load(folder, threads=2, token_budget=40)
        found[f"{family} two threads, small batches"] = summarize(
            two.encode(TEXTS * 4, task="retrieval")
        )
    student = entry.Encoder.load(workshop.student, threads=1)
    found["projected"] = summarize(student.project(student.encode(TEXTS)))
    found["projected prefixes"] = summarize(student.project(student.encode(TEXTS, truncate_dim=16)))
    for family in ("qwen3", "eurobert"):
        folder = entry.write_jina(workshop.path(f"jina/{family}"), family)
        encoder = entry.Encoder.load(folder, threads=1)
        for task in entry.TASKS:
            for prompt in ("query", "document"):
                found[f"jina layout {family} {task} {prompt}"] = summarize(
                    encoder.encode(entry.JINA_TEXTS, task=task, prompt_name=prompt)
                )
        found[f"jina layout {family} ids"] = entry.token_ids(
            encoder, entry.JINA_TEXTS, "Query: ", 64
        )
    return found


def _calls(encoder: entry.Encoder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in (None, *entry.TASKS):
        for prompt in ("query", "document"):
            for precision in entry.PRECISIONS:
                for dim in (8, 16, None):
                    vectors = encoder.encode(
                        TEXTS, task=task, prompt_name=prompt, precision=precision, truncate_dim=dim
                    )
                    found[f"{task} {prompt} {precision} {dim or 32}"] = summarize(vectors)
    found["first numbers"] = [
        [value.hex() for value in row[:4].astype(float).tolist()]
        for row in encoder.encode(TEXTS, task="retrieval")
    ]
    found["literal prompt"] = summarize(encoder.encode(TEXTS, prompt="topic of "))
    found["at most 8 tokens"] = summarize(encoder.encode(TEXTS, max_length=8))
    found["odd size"] = summarize(encoder.encode(TEXTS, truncate_dim=13, precision="binary"))
    tasks = [None, *entry.TASKS, None, "retrieval", "clustering"]
    found["a task a text"] = summarize(encoder.encode(TEXTS, task=tasks))
    found["stream"] = [
        summarize(rows) for rows in encoder.encode_stream(iter(TEXTS), window=3, task="clustering")
    ]
    found["no texts"] = summarize(encoder.encode([]))
    for prompt in ("", "Query: "):
        found[f"ids after {prompt!r}"] = entry.token_ids(encoder, TEXTS, prompt, 64)
    ids = [np.array(row, np.int32) for row in entry.token_ids(encoder, TEXTS, "", 24)]
    found["of ids"] = summarize(encoder.encode_ids(ids, task="retrieval"))
    found["of ids, pooled"] = summarize(encoder.encode_ids(ids, pooled=True))
    found["token states"] = summarize(encoder.token_states(ids[0], task="text-matching").numpy())
    return found


def _long(encoder: entry.Encoder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {
        "": {"chunk_tokens": 16},
        " retrieval": {"chunk_tokens": 16, "task": "retrieval", "prompt_name": "query"},
        " int8 16": {
            "chunk_tokens": 20,
            "task": "retrieval",
            "precision": "int8",
            "truncate_dim": 16,
        },
        " overlap": {"chunk_tokens": 10, "max_length": 40, "overlap": 8},
        " spans": {"spans": [(0, 40), (40, 74), (74, 200)], "task": "clustering"},
        " spans within words": {"spans": [(1, 2), (5, 7), (9, 9 + 30)], "task": "retrieval"},
    }
    for name, options in cases.items():
        for key, value in entry.chunks_of(entry.encode_chunks(encoder, LONG, **options)).items():
            found[f"chunks{name}, {key}"] = value if isinstance(value, int) else summarize(value)
    for name, options in {
        "": {},
        " of 24, overlap 6": {"window": 24, "overlap": 6, "task": "retrieval"},
        " binary": {"precision": "binary"},
    }.items():
        windows = entry.encode_windows(encoder, [LONG, "short", LONG[:200]], **options)
        found[f"windows{name}"] = {
            "vectors": summarize(windows.vectors),
            "windows": windows.windows.tolist(),
        }
    return found


def _about(encoder: entry.Encoder) -> dict[str, Any]:
    return {
        "about": {
            "tasks": list(encoder.tasks),
            "embedding_dim": encoder.embedding_dim,
            "matryoshka_dims": list(encoder.matryoshka_dims),
            "max_length": encoder.max_length,
            "prompts": dict(encoder.prompts),
            "space_id": encoder.space_id,
            "model_hash": encoder.model_hash,
        }
    }
