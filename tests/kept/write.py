"""Write the folders kept here, in the present version of each format; run it only when a format's
version number rises.

python tests/kept/write.py VERSION [NAME...] all formats, or only those named: layouts, static,
store, checkpoint, phase, index, shards
"""

from __future__ import annotations

import sys
from pathlib import Path

from taskdistill.teacher.fill import fill_store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


WORDS = [f"word {number}" for number in range(12)]
"""Texts of the store, the index and the shards."""


def layouts(version: str) -> None:
    """Models: ours, the jina layout of both families, and a sentence-transformers export."""
    import tempfile

    from helpers.tiny_jina import write_repository
    from taskdistill.export.make import export
    from taskdistill.folders import dump_json

    from taskdistill.model.folder import read_model, write_model
    from taskdistill.model.golden import embed_with, golden_vectors

    with tempfile.TemporaryDirectory() as beside:
        for family in ("qwen3", "eurobert"):
            source = write_repository(
                Path(beside) / family, family, tasks=["retrieval", "clustering"]
            )
            model = read_model(source)
            golden = dump_json(golden_vectors(embed_with(model), model.module.tasks))
            export(source, "jina-v5", None, HERE / f"jina-v5-{family}-{version}")
            (HERE / f"jina-v5-{family}-{version}.golden.json").write_text(golden)
            if family == "eurobert":
                model.name = "kept"
                write_model(HERE / f"model-{version}", model, extra_files={"golden.json": golden})
                export(
                    source,
                    "sentence-transformers",
                    "clustering",
                    HERE / f"sentence-transformers-{version}",
                )


def static(version: str) -> None:
    """The instant student's folder, with its golden vectors."""
    from dataclasses import replace

    import torch
    from helpers.tiny_jina import tiny_tokenizer
    from taskdistill.folders import dump_json
    from taskdistill.model.text import TextTokenizer

    from taskdistill.model.folder import Settings, base_space_id, write_model
    from taskdistill.model.golden import embed_with, golden_vectors
    from taskdistill.model.model import Model
    from taskdistill.model.student import StaticModel

    torch.manual_seed(0)
    tokenizer = TextTokenizer(tiny_tokenizer(), special=False)
    settings = Settings(max_length=1_000_000, matryoshka_dims=(8, 32))
    model = Model(
        StaticModel(torch.randn(320, 32)).eval(),
        tokenizer,
        settings,
        name="kept-static",
        source=HERE,
    )
    model.settings = replace(settings, space_id=base_space_id(model))
    write_model(
        HERE / f"static-{version}",
        model,
        extra_files={"golden.json": dump_json(golden_vectors(embed_with(model), []))},
    )


def store(version: str) -> None:
    """A teacher store of two shards."""
    from helpers.teacher_fakes import FakeTeacher

    from taskdistill.teacher.store import open_store

    teacher = FakeTeacher()
    opened = open_store(HERE / f"teacher-store-{version}", teacher.identity, "find it: {text}")
    fill_store(opened, WORDS, teacher, shard_rows=8)


def trained() -> tuple[dict[str, object], object]:
    """Parameters with values that follow from a formula, and an optimiser one step old."""
    import torch

    parameters = {
        "a": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "b": torch.nn.Parameter(torch.ones(3)),
    }
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    return parameters, optimiser


def checkpoint(version: str) -> None:
    """A phase's checkpoint after seven updates."""
    from taskdistill.train.checkpoint import save_checkpoint

    parameters, optimiser = trained()
    save_checkpoint(HERE / f"checkpoints-{version}", 7, parameters, optimiser, {"recipe": "kept"})  # type: ignore[arg-type]


def phase(version: str) -> None:
    """What a finished phase trained."""
    from types import SimpleNamespace

    from taskdistill.train.finished import save_phase

    parameters, _ = trained()
    job = SimpleNamespace(name="stage1", trained=parameters, moving_heads=dict)
    save_phase(HERE / f"phase-{version}", job, {"recipe": "kept"})  # type: ignore[arg-type]


def index(version: str) -> None:
    """A search index with fields and one document deleted."""
    from helpers.search_fakes import FakeEncoder

    from taskdistill.search.build import build_index
    from taskdistill.search.corpus import Document

    documents = [Document(f"d{i}", text, {"even": i % 2 == 0}) for i, text in enumerate(WORDS)]
    made, _ = build_index(FakeEncoder(), documents, HERE / f"search-index-{version}")
    made.delete(["d3"])


def shards(version: str) -> None:
    """Vectors of a corpus in three shards."""
    import tempfile

    from taskdistill.encode.corpus import encode_corpus
    from taskdistill.io.records import TextSource

    with tempfile.TemporaryDirectory() as beside:
        source = Path(beside) / "words.txt"
        source.write_text("\n".join(WORDS) + "\n")
        encode_corpus(
            str(HERE / f"model-{version}"),
            TextSource(str(source)),
            HERE / f"shards-{version}",
            {"task": "retrieval"},
            shard_rows=5,
        )


FORMATS = {
    each.__name__: each for each in (layouts, static, store, checkpoint, phase, index, shards)
}


def main(version: str, names: list[str]) -> None:
    """Write one folder of each format."""
    for name in names or FORMATS:
        FORMATS[name](version)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
