"""The README of an export: the model's own card, with what was exported, how close it comes and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskdistill.export.parity import COLUMNS, rows
from taskdistill.model.folder import Model
from taskdistill.report.model_card import make_card

FILE = "README.md"

_USE: Mapping[str, str] = {
    "sentence-transformers": 'SentenceTransformer(folder).encode(["{prompt}a text"], normalize_embeddings=True)',
    "jina-v5": 'Encoder.load(folder).encode(["a text"], task="{task}")     # taskdistill; vLLM merges the task of --hf-overrides',
    "onnx": 'InferenceSession("model.onnx").run(None, {{"input_ids": ids, "attention_mask": mask}})     # of "{prompt}a text"',
    "openvino": 'Core().compile_model("openvino_model.xml", "CPU")([ids, mask, truncate_dim])     # of "{prompt}a text"',
    "gguf": 'llama-embedding -m model-q8_0.gguf --embd-normalize 2 -p "{prompt}a text"',
}
"""Format to one line that loads it."""


def write_readme(
    folder: Path,
    model: Model,
    format_name: str,
    task: str | None,
    tasks: Sequence[str],
    results: Sequence[Mapping[str, Any]],
) -> None:
    """Write the README of an export.

    Args:
        folder: The export's folder.
        model: The model; where its own folder has a card, that is taken over whole.
        format_name: The format.
        task: The adapter that was merged; None for the base, or for a format that holds all of `tasks`.
        tasks: Adapters that the model had.
        results: The certificate's `results`.
    """
    source = model.source / FILE
    own = source.read_text("utf-8") if source.is_file() else _plain(model, tasks)
    prompt = model.settings.prompts.get("document", "")
    what = (
        f"adapter `{task}`, merged into the base"
        if task
        else f"base and adapters {', '.join(tasks)}"
        if format_name == "jina-v5"
        else "base"
    )
    lines = [
        "## This export",
        f"Format {format_name}: {what}. Written by `taskdistill export MODEL --format {format_name}{f' --task {task}' if task else ''} --out DIR`.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in rows(results)),
        "",
        "```",
        _USE[format_name].format(prompt=prompt, task=tasks[0] if tasks else ""),
        "```",
        "",
    ]
    (folder / FILE).write_text(own.rstrip() + "\n\n" + "\n".join(lines), "utf-8")


def _plain(model: Model, tasks: Sequence[str]) -> str:
    settings = model.settings
    said = {
        "prompts": settings.prompts,
        "max_length": settings.max_length,
        "matryoshka_dims": settings.matryoshka_dims,
    }
    said |= {"rope_theta": settings.rope_theta, "teacher": settings.teacher}
    parameters = sum(
        p.numel() for name, p in model.module.named_parameters() if "lora_" not in name
    )
    return make_card(
        name=model.name,
        settings=said,
        tasks=tasks,
        embedding_dim=model.module.embedding_dim,
        parameters=parameters,
    )
