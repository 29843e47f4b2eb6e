"""Exports of models and of an index: certificates, files, weights."""

from __future__ import annotations

from typing import Any

from golden import entry
from golden.summaries import weights_below
from golden.workshop import Workshop

TASKS: dict[str, tuple[str | None, ...]] = {
    "sentence-transformers": (None, "clustering"),
    "jina-v5": (None,),
    "onnx": ("retrieval",),
    "gguf": ("retrieval",),
    "openvino": ("retrieval",),
}
"""Format to the adapters that are merged into the export of each family."""
FAMILIES = {
    "gguf": ("jina",),
    "onnx": ("bert",),
    "openvino": ("bert",),
    "jina-v5": ("qwen3", "eurobert", "bert"),
}


def record(workshop: Workshop) -> dict[str, Any]:
    """Every format, of the families that it takes; one that is refused, or whose package is absent,
    with its message.
    """
    found: dict[str, Any] = {}
    models = {**workshop.models, "jina": entry.write_jina(workshop.path("exports/jina"), "qwen3")}
    for format_name in entry.MODEL_FORMATS:
        for family in FAMILIES.get(format_name, entry.FAMILIES):
            for task in TASKS.get(format_name, (None,)):
                name = f"exports/{format_name}-{family}-{task}"
                out, said = workshop.path(name), workshop.path(f"{name}.json")
                words = (
                    "export",
                    models[family],
                    "--format",
                    format_name,
                    "--out",
                    out,
                    *(("--task", task) if task else ()),
                    "--quiet",
                )
                done = workshop.command(found, *words, result=said, made=out, code=None)
                done["weights"] = weights_below(out)
    index = workshop.path("exports/index")
    wide = entry.write_topic_model(workshop.path("exports/wide"), width=64, noise=0.4, seed=4)
    workshop.command(found, "index", wide, workshop.corpus, "--out", index, "--quiet")
    for engine in entry.INDEX_FORMATS:
        out = workshop.path(f"exports/{engine}")
        done = workshop.command(
            found,
            "export",
            index,
            "--format",
            engine,
            "--out",
            out,
            "--quiet",
            result=workshop.path(f"exports/{engine}.json"),
            made=out,
        )
        done["texts"] = {
            path.name: workshop.mask.text(path.read_text("utf-8")).splitlines()[:60]
            for path in sorted(out.glob("*"))
            if path.suffix in (".py", ".sh", ".sql", ".md")
        }
    return found
