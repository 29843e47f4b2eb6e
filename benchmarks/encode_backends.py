"""Encoding in float32: the packed stream against onnxruntime and OpenVINO, all on texts sorted by
length.

    python benchmarks/encode_backends.py # all-MiniLM-L6-v2, mixed lengths, then short texts python
    benchmarks/encode_backends.py --family qwen3 # or eurobert: random weights, 6 layers x 384, for
    the table of `auto` python benchmarks/encode_backends.py --quick

Each engine runs in two ways: as it is commonly used, in batches of 32 texts of similar length with
its own threads, and through this package's back end, in batches by tokens with one thread a batch.
Prints the smallest cosine to the packed side. The last line is the ratio, on mixed lengths, of the
packed stream to the faster of the engines as commonly used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
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
from taskdistill.model.backbone import build_backbone, resolve
from taskdistill.model.folder import read_model
from taskdistill.model.model import Model
from taskdistill.model.onnx_graph import ERRORS_ONLY, make_graph, padded_batches
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

BATCH = 32
ENGINES = ("onnxruntime", "openvino")


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=500)
    made.add_argument(
        "--family",
        choices=("bert", "qwen3", "eurobert"),
        default="bert",
        help="backbone; bert is all-MiniLM-L6-v2 itself",
    )
    asked = options(made)
    model = model_of(asked.family)
    encoder = Encoder(model, threads=asked.threads)
    others = {name: Encoder(model, threads=asked.threads, backend=name) for name in ENGINES}
    sides = {"taskdistill, packed": encoder.encode} | {
        f"{name}, batches of {BATCH}, its threads": common_use(encoder, name, asked.threads)
        for name in ENGINES
    }
    sides |= {f"{name}, as a back end here": other.encode for name, other in others.items()}
    print(machine(asked.threads, ENGINES))
    found, ratios = {}, []
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts if kind == "mixed" else 2 * asked.texts, asked.data)
        tokens = sum(map(len, ids_of(encoder, texts)))
        done = in_turn(
            {name: lambda work=work, texts=texts: work(texts) for name, work in sides.items()},
            asked.rounds,
        )
        ours = done["taskdistill, packed"]
        title = f"{kind}: {len(texts):,} texts, {tokens / len(texts):.1f} tokens on average"
        table(title, SPEED_COLUMNS, speed_rows(done, len(texts), tokens, "taskdistill, packed"))
        cosine = min(
            float(np.sum(ours.result * side.result, axis=1).min()) for side in done.values()
        )
        print(f"smallest cosine to the packed side: {cosine:.6f}")
        if cosine < 0.9999:
            raise SystemExit("error: the sides disagree")
        ratios.append(
            min(done[name].median for name in list(sides)[1 : 1 + len(ENGINES)]) / ours.median
        )
        found[kind] = {
            "ratio": ratios[-1],
            "cosine_min": cosine,
            "seconds": {name: side.median for name, side in done.items()},
        }
    finish(ratios[0], found, asked.json)


def model_of(family: str) -> Model:
    """Read all-MiniLM-L6-v2, or put a random backbone of its size behind its tokenizer."""
    model = read_model(resolve(MODEL))
    if family == "bert":
        return model
    torch.manual_seed(0)
    shape = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    }
    shape |= {
        "vocab_size": model.tokenizer.rows,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    own = {"head_dim": 64} if family == "qwen3" else {"mask_token_id": 4}
    model.module = TransformerModel(
        build_backbone({"model_type": family, **shape, **own}), Pooling.MEAN
    )
    return model


def ids_of(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    """Tokenise texts as the encoder does."""
    return encoder.model.tokenizer.ids(
        texts, prompt=encoder.prompt_text(None), max_length=encoder.max_length
    ).ids


def common_use(encoder: Encoder, engine: str, threads: int) -> Callable[[list[str]], np.ndarray]:
    """Open an engine as most programs do, and give a function that sorts texts, pads batches of
    them and runs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        make_graph(encoder.model, path, truncation_default=engine == "onnxruntime")
        run = (
            _onnxruntime(path, threads)
            if engine == "onnxruntime"
            else _openvino(path, threads, encoder.embedding_dim)
        )

    def encode(texts: list[str]) -> np.ndarray:
        ids = ids_of(encoder, texts)
        order = np.argsort([-len(row) for row in ids], kind="stable")
        out = np.zeros((len(texts), encoder.embedding_dim), np.float32)
        done = np.concatenate(
            [run(batch) for batch in padded_batches([ids[i] for i in order], BATCH)]
        )
        out[order] = done
        return out

    return encode


def _onnxruntime(path: Path, threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["embeddings"], batch)[0]


def _openvino(
    path: Path, threads: int, width: int
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.compile_model(str(path), "CPU", hints)
    whole = {"truncate_dim": np.array([width], np.int64)}
    return lambda batch: compiled(batch | whole)["embeddings"].copy()


if __name__ == "__main__":
    main()
