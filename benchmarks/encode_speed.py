"""Encoding all-MiniLM-L6-v2 in float32: the packed stream against sentence-transformers with its
defaults.

    python benchmarks/encode_speed.py # 600 texts of mixed lengths, then 1,200 short ones python
    benchmarks/encode_speed.py --quick

Prints for both kinds of texts the rates, the smallest cosine between the two sides' vectors, and
the share that the packed side reached of this machine's matrix-multiply rate, measured in turn with
the sides. The last line is the ratio on mixed lengths.
"""

from __future__ import annotations

import numpy as np
from common import (
    MODEL,
    SPEED_COLUMNS,
    finish,
    in_turn,
    load_texts,
    machine,
    multiply,
    options,
    parser,
    speed_rows,
    table,
)

from taskdistill import Encoder
from taskdistill.model.backbone import resolve

MATRIX_FLOPS = 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
"""Of one token: six layers of four square maps and the two of the feed-forward part."""


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=600)
    made.add_argument(
        "--token-budget", type=int, default=None, help="tokens of one batch; default: the Encoder's"
    )
    asked = options(made)
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(resolve(MODEL)), device="cpu")
    encoder = Encoder.load(MODEL, threads=asked.threads)
    if asked.token_budget:
        encoder.token_budget = asked.token_budget
    print(machine(asked.threads))
    ratios, found = [], {}
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts if kind == "mixed" else 2 * asked.texts, asked.data)
        ids = encoder.model.tokenizer.ids(texts, prompt="", max_length=encoder.max_length).ids
        tokens = sum(map(len, ids))
        pairs = sum(len(row) ** 2 for row in ids)
        rates: list[dict[str, float]] = []
        sides = in_turn(
            {
                "sentence-transformers, defaults": lambda texts=texts: peer.encode(
                    texts, normalize_embeddings=True
                ),
                "taskdistill, packed": lambda texts=texts: encoder.encode(texts),
                "matrix multiply": lambda rates=rates: rates.append(multiply(asked.threads)),
            },
            asked.rounds,
        )
        sides.pop("matrix multiply")
        sustained = sorted(rate["sustained"] for rate in rates[1:])[asked.rounds // 2]
        best = max(rate["best"] for rate in rates)
        theirs, ours = sides.values()
        cosine = np.sum(theirs.result * ours.result, axis=1)
        flops = tokens * MATRIX_FLOPS + 6 * 4 * 384 * pairs
        rate = flops / ours.median
        table(
            f"{kind}: {len(texts):,} texts, {tokens / len(texts):.1f} tokens on average",
            SPEED_COLUMNS,
            speed_rows(sides, len(texts), tokens, next(iter(sides))),
        )
        print(f"cosine between the sides: min {cosine.min():.6f}")
        print(
            f"matrix multiply alone, in turn with the sides: {sustained / 1e9:.0f} GF/s (fastest"
            f" single call {best / 1e9:.0f}); the packed side: {rate / 1e9:.0f} GF/s,"
            f" {100 * rate / sustained:.0f} % of it ({100 * rate / best:.0f} %)"
        )
        if cosine.min() < 0.9999:
            raise SystemExit("error: the two sides disagree")
        ratios.append(theirs.median / ours.median)
        found[kind] = {
            "ratio": ratios[-1],
            "ratio_cpu": theirs.median_cpu / ours.median_cpu,
            "share_of_sustained_rate": rate / sustained,
            "share_of_fastest_call": rate / best,
            "cosine_min": float(cosine.min()),
        }
    finish(ratios[0], found, asked.json)


if __name__ == "__main__":
    main()
