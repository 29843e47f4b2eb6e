"""Encoding with a three-layer student of all-MiniLM-L6-v2 against sentence-transformers running the
teacher.

    python benchmarks/student_speed.py python benchmarks/student_speed.py --model
    runs/quickstart/model # a trained student instead of the cut one

The cut student (layers 0, 2 and 5, untrained) costs what a trained one of its shape costs. The last
line is the ratio on mixed lengths.
"""

from __future__ import annotations

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
from taskdistill.model.backbone import resolve
from taskdistill.model.folder import read_model
from taskdistill.model.layers import keep_layers

LAYERS = [0, 2, 5]


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=600)
    made.add_argument(
        "--model",
        default=None,
        help="model folder of a student; default: the teacher cut to three layers",
    )
    asked = options(made)
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(resolve(MODEL)), device="cpu")
    if asked.model is None:
        cut = read_model(resolve(MODEL))
        keep_layers(cut.module.backbone, LAYERS)
        encoder = Encoder(cut, threads=asked.threads)
    else:
        encoder = Encoder.load(asked.model, threads=asked.threads)
    print(machine(asked.threads))
    found = {}
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts if kind == "mixed" else 2 * asked.texts, asked.data)
        tokens = sum(map(len, encoder.model.tokenizer.ids(texts, prompt="", max_length=256).ids))
        sides = in_turn(
            {
                "sentence-transformers, teacher": lambda texts=texts: peer.encode(
                    texts, normalize_embeddings=True
                ),
                "taskdistill, student": lambda texts=texts: encoder.encode(texts, max_length=256),
            },
            asked.rounds,
        )
        theirs, ours = sides.values()
        rows = speed_rows(sides, len(texts), tokens, next(iter(sides)))
        table(
            f"{kind}: {len(texts):,} texts, {tokens / len(texts):.1f} tokens on average",
            SPEED_COLUMNS,
            rows,
        )
        found[kind] = {
            "ratio": theirs.median / ours.median,
            "ratio_cpu": theirs.median_cpu / ours.median_cpu,
        }
    finish(found["mixed"]["ratio"], found, asked.json)


if __name__ == "__main__":
    main()
