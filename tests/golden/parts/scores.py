"""Results of every evaluation task type, with the compression matrix, languages, prompts,
contamination; and of the needle test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from golden import entry
from golden.compare import SCORES
from golden.workshop import Workshop

TOLERANCE = SCORES
"""Of a model that is random, as here, two centres of k-means may be so near that elsewhere a text
changes its cluster.
"""
SETS = (
    *(
        "retrieval/qa",
        "retrieval/town-en",
        "retrieval/town-xx",
        "reranking/rank",
        "sts/sts",
        "pair-classification/same",
        "bitext/twin",
    ),
    *(
        "summarisation/news",
        "clustering/clu-topics",
        "clustering/topics",
        "classification/topics",
        "multilabel/many",
    ),
)
HEADING = re.compile(r"<h[1-4][^>]*>(.*?)</h[1-4]>", re.DOTALL)


def record(workshop: Workshop) -> dict[str, Any]:
    """Every part of results.json, by the command that made it."""
    data, bert, topics = workshop.data, workshop.models["bert"], workshop.topics
    prompts = workshop.path("prompts.txt")
    prompts.write_text("\nQuery: \ntopic of \n")
    out = workshop.path("scores/all")
    sets = [word for name in SETS for word in ("--eval-set", name)]
    found: dict[str, Any] = {}
    done = workshop.run(
        "evaluate",
        topics,
        bert,
        f"{bert}#adapters=off&name=base",
        "--data",
        data,
        "--out",
        out,
        *sets,
        "--dims",
        "8,16",
        "--precisions",
        "float32,float16,int8,binary",
        "--prompts",
        prompts,
        "--train-data",
        data,
        "--reference",
        "topics",
        "--full-train",
        "--quiet",
        made=out,
    )
    found["evaluate on every task type"] = done
    results = workshop.read(out / "results.json")
    scores = results.pop("scores")
    found |= {f"results: {key}": value for key, value in results.items()}
    found |= {
        f"score of {model} on {name}": value
        for model, sets_of in scores.items()
        for name, value in sets_of.items()
    }
    found["headings of the report"] = headings(out / "report.html")
    small = ("--data", data, "--eval-set", "retrieval/qa", "--max-queries", 8, "--quiet", "--out")
    workshop.command(
        found,
        "evaluate",
        topics,
        *small,
        workshop.path("scores/few"),
        made=workshop.root / "scores/few",
        result=workshop.path("few.json"),
    )
    dev = workshop.path("scores/dev")
    workshop.command(
        found,
        "evaluate",
        topics,
        "--data",
        data,
        "--split",
        "dev",
        "--no-languages",
        "--out",
        dev,
        "--quiet",
        result=workshop.path("dev.json"),
    )
    texts = workshop.path("scores/texts.jsonl")
    done = workshop.command(
        found, "evaluate", "--data", data, "--eval-set", "sts/sts", "--write-texts", texts
    )
    done["texts"] = texts.read_text("utf-8").splitlines()[:5]
    needle = workshop.path("scores/needle")
    words = (
        "needle",
        topics,
        bert,
        "--lengths",
        "64,96",
        "--documents",
        6,
        "--out",
        needle,
        "--quiet",
    )
    workshop.command(found, *words, made=needle, result=workshop.path("needle.json"))
    found["headings of the needle report"] = headings(needle / "report.html")
    missing = set(entry.TASK_TYPES) - {name.split("/")[0] for name in SETS}
    if missing:
        raise AssertionError(
            f"no evaluation set of type {', '.join(sorted(missing))} is recorded: add one to the"
            " workshop's data and to SETS"
        )
    return found


def headings(path: Path) -> list[str]:
    """Headings of a page, without what stands in tags."""
    return [
        re.sub(r"<[^>]+>", "", heading).strip()
        for heading in HEADING.findall(path.read_text("utf-8"))
    ]
