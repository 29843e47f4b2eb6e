"""What an evaluation costs beside the encoding: all-MiniLM-L6-v2 on a retrieval set of 5,000
documents.

    python benchmarks/evaluate_overhead.py # 5,000 documents of mixed lengths, 500 queries python
    benchmarks/evaluate_overhead.py --quick

One side encodes the texts of the set; the other runs the whole evaluation of the same set from its
files: reading, encoding, ranking, metrics, the bootstrap interval, results.json and report.html, in
an empty folder each time. The last line is the second side's time over the first one's; at most 1.1
is wanted.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
from pathlib import Path

from common import (
    MODEL,
    SPEED_COLUMNS,
    finish,
    in_turn,
    load_texts,
    machine,
    options,
    parser,
    speed_rows,
    table,
)

from taskdistill import Encoder
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.report.pages import write_evaluation

QUERY_SHARE = 10
"""Documents for each query."""


def write_set(root: Path, documents: list[str]) -> list[str]:
    """Write a retrieval set whose queries are some words of their documents; return the queries."""
    folder = root / "retrieval" / "some"
    folder.mkdir(parents=True)
    draw = random.Random(0)
    queries = []
    for text in documents[::QUERY_SHARE]:
        words = text.split()
        queries.append(
            " ".join(words[i] for i in sorted(draw.sample(range(len(words)), min(6, len(words)))))
        )
    for name, texts, mark in (("corpus", documents, "d"), ("queries", queries, "q")):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps({"_id": f"{mark}{i}", "text": text}) + "\n"
                for i, text in enumerate(texts)
            )
    lines = [f"q{i}\td{i * QUERY_SHARE}\t1\n" for i in range(len(queries))]
    with gzip.open(folder / "qrels.tsv.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(["query-id\tcorpus-id\tscore\n", *lines])
    return queries


def main() -> None:
    """Run the comparison."""
    asked = options(parser(__doc__, texts=5000, rounds=3), quick_texts=200)
    print(machine(asked.threads))
    encoder = Encoder.load(MODEL, threads=asked.threads)
    drawn, known = load_texts("mixed", asked.texts, asked.data), set[str]()
    documents = []
    for i, text in enumerate(
        drawn
    ):  # a repeated text gets a number, so that every document is another one
        documents.append(f"{i}: {text}" if text in known else text)
        known.add(text)
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place) / "data", Path(place) / "out"
        queries = write_set(root, documents)

        def encode() -> None:
            encoder.encode(queries, prompt_name="query")
            encoder.encode(documents, prompt_name="document")

        def evaluate() -> dict[str, float]:
            shutil.rmtree(out, ignore_errors=True)
            results = evaluate_models([EncoderEmbedder(encoder)], find_eval_sets(root), out)
            write_evaluation(out, results, [])
            record: dict[str, float] = next(iter(results["scores"].values()))["retrieval/some"]
            return record

        sides = in_turn(
            {"encoding alone": encode, "whole evaluation": evaluate},
            asked.rounds,
            warm=not asked.quick,
        )
    alone, whole = sides.values()
    tokens = sum(
        map(
            len,
            encoder.model.tokenizer.ids(
                [*queries, *documents], prompt="", max_length=encoder.max_length
            ).ids,
        )
    )
    title = (
        f"{len(documents):,} documents and {len(queries):,} queries,"
        f" {tokens / (len(queries) + len(documents)):.0f} tokens on average"
    )
    table(
        title,
        SPEED_COLUMNS,
        speed_rows(sides, len(queries) + len(documents), tokens, "encoding alone"),
    )
    print(
        f"nDCG@10 {100 * whole.result['score']:.1f}; scoring alone took"
        f" {whole.result['score_seconds']:.2f} s in the last round"
    )
    print(f"ratio of cpu time: {whole.median_cpu / alone.median_cpu:.2f}")
    finish(
        whole.median / alone.median, {"ratio_cpu": whole.median_cpu / alone.median_cpu}, asked.json
    )


if __name__ == "__main__":
    main()
