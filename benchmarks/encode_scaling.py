"""How time and memory grow with the number of texts, from 10,000 to 1,000,000: file in, file out.

    python benchmarks/encode_scaling.py # a static model and a transformer of 2 layers x 128, random
    weights python benchmarks/encode_scaling.py --counts 10000,100000 python
    benchmarks/encode_scaling.py --quick

Each run is a process of its own that encodes a .jsonl file into a .npy file, as `taskdistill
encode` does. Prints seconds for each 1,000 texts, and the peak of resident memory and what of it
came after the model was loaded. The last line is the larger of two ratios, of the largest run to
the smallest: microseconds a text, and peak memory; 1 is linear time and flat memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from common import (
    finish,
    in_child,
    load_texts,
    machine,
    options,
    parser,
    peak_memory,
    resident_memory,
    table,
)

COUNTS = (10_000, 100_000, 1_000_000)
DISTINCT = 5_000
KINDS = {"static": "static, 384", "transformer": "transformer, 2 layers x 128"}


def main() -> None:
    """Run the comparison, or one side of it."""
    made = parser(__doc__, texts=0, rounds=1)
    made.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of texts")
    made.add_argument(
        "--transformer-limit", type=int, default=100_000, help="most texts for the transformer"
    )
    made.add_argument(
        "--child", nargs=3, metavar=("KIND", "SOURCE", "OUT"), help="encode one file and report"
    )
    asked = options(made)
    if asked.child:
        print(json.dumps(encode(*asked.child, threads=asked.threads)))
        return
    counts = [200, 800] if asked.quick else [int(word) for word in asked.counts.split(",")]
    print(machine(asked.threads))
    distinct = load_texts("short", DISTINCT, asked.data)
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            source = Path(folder) / f"{count}.jsonl"
            with source.open("w", encoding="utf-8") as stream:
                stream.writelines(
                    json.dumps({"text": distinct[i % DISTINCT]}) + "\n" for i in range(count)
                )
            for kind, name in KINDS.items():
                if kind == "transformer" and count > asked.transformer_limit:
                    continue
                out = Path(folder) / "out.npy"
                said = in_child(
                    ["--threads", str(asked.threads), "--child", kind, str(source), str(out)]
                )
                found.setdefault(kind, {})[count] = said
                rows.append(
                    [
                        name,
                        f"{count:,}",
                        f"{said['seconds']:.1f}",
                        f"{1e6 * said['seconds'] / count:.0f}",
                        f"{said['peak'] / 1e6:.0f}",
                        f"{(said['peak'] - said['loaded']) / 1e6:.0f}",
                    ]
                )
                out.unlink()
            source.unlink()
    table(
        "file to file",
        ["model", "texts", "seconds", "us a text", "peak MB", "above the loaded model"],
        sorted(rows),
    )
    ratios = {}
    for kind, runs in found.items():
        small, large = min(runs), max(runs)
        ratios[kind] = {
            "time": runs[large]["seconds"] / large / (runs[small]["seconds"] / small),
            "memory": runs[large]["peak"] / runs[small]["peak"],
        }
        print(
            f"{KINDS[kind]}, {large:,} against {small:,} texts: time a text"
            f" {ratios[kind]['time']:.2f}, peak {ratios[kind]['memory']:.2f}"
        )
    finish(
        max(max(each.values()) for each in ratios.values()),
        {"runs": found, "ratios": ratios},
        asked.json,
    )


def encode(kind: str, source: str, out: str, *, threads: int) -> dict[str, float]:
    """Encode a file in this process and report seconds and bytes; a first small call leaves warming
    up out of the time.
    """
    import torch
    from common import MODEL

    from taskdistill import Encoder
    from taskdistill.encode.files import encode_file
    from taskdistill.io.records import TextSource
    from taskdistill.model.backbone import build_backbone, resolve
    from taskdistill.model.model import Model
    from taskdistill.model.settings import ModelSettings
    from taskdistill.model.student import StaticModel, TransformerModel
    from taskdistill.model.tokenizer import TextTokenizer
    from taskdistill.types import Pooling

    torch.manual_seed(0)
    tokenizer = TextTokenizer.load(resolve(MODEL), special=kind == "transformer")
    if kind == "static":
        module: StaticModel | TransformerModel = StaticModel(torch.randn(len(tokenizer), 384))
    else:
        shape = {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = {
            "model_type": "bert",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            **shape,
        }
        module = TransformerModel(build_backbone(config), Pooling.MEAN)
    encoder = Encoder(
        Model(
            module=module,
            tokenizer=tokenizer,
            settings=ModelSettings(max_length=256),
            name=kind,
            source=Path(),
        ),
        threads=threads,
    )
    encoder.encode(["warm", "up"])
    loaded, begin = resident_memory(), time.perf_counter()
    counts = encode_file(encoder, TextSource(source), Path(out), {})
    return {
        "texts": counts.used,
        "seconds": time.perf_counter() - begin,
        "loaded": loaded,
        "peak": peak_memory(),
    }


if __name__ == "__main__":
    sys.exit(main())
