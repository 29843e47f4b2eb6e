"""Encoding all-MiniLM-L6-v2 in eight bits against sentence-transformers with its defaults in
float32.

    python benchmarks/encode_int8.py # 600 texts of mixed lengths, then 1,200 short ones python
    benchmarks/encode_int8.py --quality retrieval/xquad-en,sts/stsb-en,sts/sickr # scores instead of
    speed python benchmarks/encode_int8.py --quick

Prints mean and smallest cosine of every text timed to its float32 vector, and fails below a mean of
0.998. The packed stream in float32 runs beside them. The last line is the ratio on mixed lengths.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import (
    MODEL,
    SPEED_COLUMNS,
    data_folder,
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
from taskdistill.encode.check import int8_cosines
from taskdistill.model.backbone import resolve

MEAN = 0.998


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=600)
    made.add_argument(
        "--model", default=MODEL, help="model folder; the peer runs all-MiniLM-L6-v2 in any case"
    )
    made.add_argument(
        "--quality",
        help="evaluation sets, by comma: score both number types on them, without timing",
    )
    asked = options(made)
    if asked.quality:
        quality(asked)
        return
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(resolve(MODEL)), device="cpu")
    exact = Encoder.load(asked.model, threads=asked.threads)
    small = Encoder.load(asked.model, threads=asked.threads, backend="int8")
    said = int8_cosines(small)
    print(machine(asked.threads))
    print(
        f"cosine to float32 on the {said.texts} calibration texts: mean {said.mean:.4f}, smallest"
        f" {said.smallest:.4f}"
    )
    found = {}
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts if kind == "mixed" else 2 * asked.texts, asked.data)
        tokens = sum(
            map(len, exact.model.tokenizer.ids(texts, prompt="", max_length=exact.max_length).ids)
        )
        sides = in_turn(
            {
                "sentence-transformers, defaults": lambda texts=texts: peer.encode(
                    texts, normalize_embeddings=True
                ),
                "taskdistill, packed, float32": lambda texts=texts: exact.encode(texts),
                "taskdistill, packed, int8": lambda texts=texts: small.encode(texts),
            },
            asked.rounds,
        )
        theirs, _, ours = sides.values()
        cosine = np.sum(theirs.result * ours.result, axis=1)
        title = f"{kind}: {len(texts):,} texts, {tokens / len(texts):.1f} tokens on average"
        table(title, SPEED_COLUMNS, speed_rows(sides, len(texts), tokens, next(iter(sides))))
        print(f"cosine of int8 to float32: mean {cosine.mean():.5f}, smallest {cosine.min():.5f}")
        if cosine.mean() < MEAN:
            raise SystemExit(f"error: the mean cosine is below {MEAN}")
        found[kind] = {
            "ratio": theirs.median / ours.median,
            "ratio_cpu": theirs.median_cpu / ours.median_cpu,
            "cosine_mean": float(cosine.mean()),
            "cosine_min": float(cosine.min()),
        }
    finish(found["mixed"]["ratio"], found, asked.json)


def quality(asked: argparse.Namespace) -> None:
    """Score the model in float32 and in int8 on evaluation sets, each with its own task's adapter
    if there is one.
    """
    from taskdistill.evaluate.datasets import find_eval_sets
    from taskdistill.evaluate.models.encoder import EncoderEmbedder
    from taskdistill.evaluate.runner import evaluate_models

    sets = find_eval_sets(asked.data or data_folder(), asked.quality.split(","))
    kinds = {"float32": "torch", "int8": "int8"}
    models = [
        EncoderEmbedder(
            Encoder.load(asked.model, threads=asked.threads, backend=backend), name=name
        )
        for name, backend in kinds.items()
    ]
    scores: dict[str, list[str]] = {}
    evaluate_models(
        models,
        sets,
        note=lambda line: scores.setdefault(line.split()[0], [line.split()[-2]]).append(
            line.split()[-1]
        ),
    )
    table(
        f"{asked.model}: scores",
        ["set", "metric", *kinds],
        [[name, *found] for name, found in scores.items()],
    )


if __name__ == "__main__":
    main()
