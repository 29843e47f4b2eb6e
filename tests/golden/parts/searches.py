"""Indexes and their hits: filters, hybrid search, refinement, passages, precisions; tuning, tiers,
migration, deletion, compaction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golden import entry
from golden.workshop import Workshop

QUERY = "the ship and the harbour near an island"
SEARCHES: tuple[tuple[object, ...], ...] = (
    (),
    ("-k", 3, "--oversample", 1),
    ("-k", 4, "--filter", "topic=sea"),
    ("-k", 4, "--filter", "year>=1995", "--filter", "new=true"),
    ("-k", 5, "--hybrid"),
    ("-k", 5, "--refine"),
    ("-k", 5, "--hybrid", "--refine", "--filter", "year<1996"),
)


def record(workshop: Workshop) -> dict[str, Any]:
    """Every command around an index."""
    found: dict[str, Any] = {}
    index = workshop.path("indexes/main")
    said = workshop.path("indexes/main.json")
    workshop.command(
        found,
        "index",
        workshop.topics,
        workshop.corpus,
        "--out",
        index,
        "--bm25",
        "--quiet",
        result=said,
        made=index,
    )
    found["manifest"] = workshop.read(index / "taskdistill.json")
    for number, options in enumerate(SEARCHES):
        workshop.command(
            found,
            "search",
            index,
            QUERY,
            *options,
            result=workshop.path(f"indexes/hits-{number}.json"),
        )
    _precisions(workshop, found)
    _changes(workshop, found, index)
    _tuning(workshop, found)
    _migration(workshop, found)
    return found


def _precisions(workshop: Workshop, found: dict[str, Any]) -> None:
    for rescore, dim in (("none", 32), ("int8", 16), ("float16", 8), ("float32", 13)):
        index = workshop.path(f"indexes/{rescore}")
        words = (
            "index",
            workshop.models["bert"],
            workshop.corpus,
            "--out",
            index,
            "--dim",
            dim,
            "--rescore-precision",
            rescore,
            "--quiet",
        )
        workshop.command(found, *words, result=workshop.path(f"indexes/{rescore}.json"))
        workshop.command(
            found,
            "search",
            index,
            QUERY,
            "-k",
            5,
            result=workshop.path(f"indexes/{rescore}-hits.json"),
        )
    rows = [
        {"key": n, "said": f"{'the old ship. ' * 8}{'a new star. ' * 8}number {n}"}
        for n in range(3)
    ]
    corpus = entry.write_jsonl(workshop.path("indexes/long.jsonl"), rows)
    index = workshop.path("indexes/passages")
    fields = (
        "--text-field",
        "said",
        "--id-field",
        "key",
        "--passage-words",
        10,
        "--base",
        "--quiet",
    )
    workshop.command(
        found,
        "index",
        workshop.models["bert"],
        corpus,
        "--out",
        index,
        *fields,
        result=workshop.path("indexes/passages.json"),
    )
    workshop.command(
        found, "search", index, "star", "-k", 2, result=workshop.path("indexes/passage-hits.json")
    )
    teachers = workshop.path("indexes/teachers")
    workshop.command(
        found, "index", workshop.teacher, workshop.corpus, "--out", teachers, "--quiet"
    )
    workshop.command(
        found,
        "search",
        teachers,
        QUERY,
        "-k",
        4,
        "--model",
        workshop.student,
        result=workshop.path("indexes/projected.json"),
    )


def _changes(workshop: Workshop, found: dict[str, Any], index: Path) -> None:
    changed = workshop.copy(index, "indexes/changed")
    workshop.command(found, "index", "delete", changed, "d0", "d9", "unknown")
    rows = [
        {"id": "d1", "text": "a wholly new text of a ship", "topic": "sea"},
        {"id": "n1", "text": "one more ship in the harbour", "topic": "sea"},
    ]
    more = entry.write_jsonl(workshop.path("indexes/more.jsonl"), rows)
    workshop.command(
        found,
        "index",
        workshop.topics,
        more,
        "--out",
        changed,
        "--quiet",
        result=workshop.path("indexes/more.json"),
        made=changed,
    )
    workshop.command(
        found, "search", changed, QUERY, result=workshop.path("indexes/changed-hits.json")
    )
    workshop.command(found, "index", "compact", changed, made=changed)
    workshop.command(found, "search", changed, QUERY, "--hybrid", code=2)
    workshop.command(
        found, "search", changed, QUERY, "-k", 8, result=workshop.path("indexes/compact-hits.json")
    )
    workshop.command(found, "info", changed, result=workshop.path("indexes/info.json"))


def _tuning(workshop: Workshop, found: dict[str, Any]) -> None:
    index, dev = workshop.path("indexes/tuned"), workshop.data / "retrieval/town-en"
    workshop.command(
        found, "index", workshop.topics, dev / "corpus.jsonl", "--out", index, "--quiet"
    )
    words = ("search", "tune", index, "--dev", dev, "--quiet")
    workshop.command(
        found, *words, "--dims", "8,16,32", result=workshop.path("indexes/tuning.json")
    )
    workshop.command(
        found,
        *words,
        "--dims",
        "16",
        "--precisions",
        "none,int8",
        "--no-hybrid",
        "--tolerance",
        100,
        "--shrink",
        made=index,
    )
    workshop.command(
        found, "search", index, "ship", result=workshop.path("indexes/tuned-hits.json")
    )
    tiers = ("tiers", workshop.student, "--teacher", workshop.teacher, "--dev", dev, "--quiet")
    workshop.command(found, *tiers, result=workshop.path("indexes/tiers.json"))


def _migration(workshop: Workshop, found: dict[str, Any]) -> None:
    old, new, out = (
        workshop.path("indexes/old"),
        workshop.path("indexes/new"),
        workshop.path("indexes/migration"),
    )
    dev = workshop.large_set
    corpus = dev / "corpus.jsonl"
    other = entry.write_topic_model(workshop.path("newer"), width=32, noise=0.3, seed=9)
    workshop.command(
        found,
        "index",
        workshop.topics,
        corpus,
        "--out",
        old,
        "--rescore-precision",
        "float32",
        "--quiet",
    )
    words = ("migrate", old, other, "--dev", dev, "--into", new, "--quiet")
    workshop.command(
        found,
        *words,
        "--out",
        workshop.root / "indexes/refused",
        "--threshold",
        2,
        result=workshop.path("indexes/refused.json"),
        code=1,
    )
    workshop.command(
        found,
        *words,
        "--out",
        out,
        "--threshold",
        0,
        result=workshop.path("indexes/migration.json"),
        made=out,
    )
    workshop.command(
        found, "search", out, QUERY, "-k", 4, result=workshop.path("indexes/migration-hits.json")
    )
    rows = corpus.read_text().splitlines()[:10]
    part = workshop.path("indexes/part.jsonl")
    part.write_text("\n".join(rows) + "\n")
    workshop.command(
        found, "index", other, part, "--out", new, "--rescore-precision", "float32", "--quiet"
    )
    workshop.command(
        found, "search", out, QUERY, "-k", 5, result=workshop.path("indexes/both-hits.json")
    )
    workshop.command(found, "migrate", "state", out)
    workshop.command(found, "migrate", "state", out, "--to", "new", code=1)
    workshop.command(found, "migrate", "state", out, "--to", "old")
    workshop.command(
        found, "search", out, QUERY, "-k", 6, result=workshop.path("indexes/old-hits.json")
    )
