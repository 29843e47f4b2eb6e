"""Encoding with windowed attention: the packed stream against sentence-transformers, at the shape
of ModernBERT-base.

    python benchmarks/encode_windows.py # 22 layers of 768, windows of 64 tokens on each side, every
    third layer global python benchmarks/encode_windows.py --layers 6 --quick

The weights are random, so only speed and equality are measured. Texts are real and of mixed
lengths: sentences, questions, news, and documents of up to 1,024 tokens. The other side is
sentence-transformers with its defaults, which sorts texts by length and pads batches of 32. Both
sides have the same folder, tokenizer, texts and threads, and run in turn. The last line is the
ratio.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
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

SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_attention_heads": 12,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "max_position_embeddings": 8192,
}
LONG_SHARE = 0.2
"""Share of texts that are documents of several windows."""
LONGEST = 1024


def mixed_texts(count: int, data: Path | None) -> list[str]:
    """Draw texts of mixed lengths; a fifth of them are several joined, as documents are."""
    texts = load_texts("mixed", 4 * count, data)
    long = round(LONG_SHARE * count)
    random = np.random.default_rng(0)
    documents = []
    for _ in range(long):
        size = int(random.integers(6, 30))
        chosen = random.choice(len(texts), size=size, replace=False)
        documents.append(" ".join(texts[i] for i in chosen))
    short = texts[: count - long]
    order = random.permutation(count)
    both = short + documents
    return [both[i] for i in order]


def write_model(folder: Path, layers: int) -> None:
    """Write a random ModernBERT of the given depth as a sentence-transformers folder, with the
    tokenizer of the embedded model.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoModel, AutoTokenizer, ModernBertConfig

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(resolve(MODEL)))
    ids = {
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **SHAPE,
        **ids,
    )
    source = folder / "source"
    AutoModel.from_config(config).save_pretrained(source)
    tokenizer.model_max_length = LONGEST
    tokenizer.save_pretrained(source)
    body = Transformer(str(source), max_seq_length=LONGEST)
    model = SentenceTransformer(
        modules=[body, Pooling(SHAPE["hidden_size"], "mean"), Normalize()], device="cpu"
    )
    model.save_pretrained(str(folder / "model"), create_model_card=False)


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=160, rounds=3)
    made.add_argument("--layers", type=int, default=22, help="layers of the model")
    asked = options(made, quick_texts=16)
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), asked.layers)
        peer = SentenceTransformer(str(Path(scratch) / "model"), device="cpu")
        encoder = Encoder.load(Path(scratch) / "model", threads=asked.threads)
    texts = mixed_texts(asked.texts, asked.data)
    lengths = np.array(
        [
            len(row)
            for row in encoder.model.tokenizer.ids(
                texts, prompt="", max_length=encoder.max_length
            ).ids
        ]
    )
    print(machine(asked.threads))
    sides = in_turn(
        {
            "sentence-transformers, defaults": lambda: peer.encode(
                texts, normalize_embeddings=True
            ),
            "taskdistill, packed": lambda: encoder.encode(texts),
        },
        asked.rounds,
    )
    theirs, ours = sides.values()
    cosine = np.sum(theirs.result * ours.result, axis=1)
    quarters = ", ".join(str(int(value)) for value in np.percentile(lengths, [25, 50, 75, 100]))
    title = (
        f"{len(texts):,} texts, {lengths.mean():.1f} tokens on average; quarters {quarters};"
        f" {asked.layers} layers"
    )
    table(
        title, SPEED_COLUMNS, speed_rows(sides, len(texts), int(lengths.sum()), next(iter(sides)))
    )
    print(f"cosine between the sides: min {cosine.min():.6f}")
    if cosine.min() < 0.9999:
        raise SystemExit("error: the two sides disagree")
    found = {
        "ratio_cpu": theirs.median_cpu / ours.median_cpu,
        "cosine_min": float(cosine.min()),
        "tokens": json.loads(f"[{quarters}]"),
    }
    finish(theirs.median / ours.median, found, asked.json)


if __name__ == "__main__":
    main()
