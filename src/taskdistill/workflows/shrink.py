"""A smaller model folder from a bigger one without training: fewer layers, narrower layers, fewer tokens; quality and size of each step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskdistill.data.readers import SUFFIXES, Fault, read_records
from taskdistill.device import AUTO, CPU, compute_of, placement, resolve_device, resolve_dtype
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.atomic import check_free
from taskdistill.model.backbone import read_json, resolve
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.golden import FILE, cosines, embed_with, golden_vectors
from taskdistill.model.model import Model
from taskdistill.model.prune import choose_layers, keep_only, narrow
from taskdistill.model.prune_vocabulary import prune_embeddings, prune_tokenizer, used_tokens
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.save_model import int8_ranges
from taskdistill.progress import Progress
from taskdistill.seeding import check_seed
from taskdistill.stats.intervals import Units, paired_difference
from taskdistill.workflows.training_texts import TEXT_FIELDS

WHOLE = "as it was"


@dataclass(frozen=True)
class ShrinkRequest:
    """What to shrink, and on which texts to decide it."""

    vocabulary: bool = False
    """Whether tokens that occur in none of the texts are dropped."""
    layers: int | None = None
    """Layers to keep, chosen by a search."""
    width: int | None = None
    """Neurons of each feed-forward part to keep."""
    languages: tuple[str, ...] | None = None
    """Use only texts whose `lang` is one of these."""
    sample: int = 400
    """Texts that decide about layers and neurons, and as many others on which the change is measured."""
    seed: int = 17


def shrink(
    source: str,
    texts: Path,
    out: Path,
    wanted: ShrinkRequest,
    progress: Progress,
    *,
    data: Path | None = None,
    sets: Sequence[str] | None = None,
    threads: int | None = None,
    device: str = AUTO,
    dtype: str = AUTO,
) -> dict[str, Any]:
    """Write a smaller model folder, and say after each step what it has cost.

    Args:
        source: Model folder, Hub id or `all-MiniLM-L6-v2`.
        texts: File or folder of rows whose texts the model is for.
        data: Folder of development sets to score each step on; None measures only how far vectors move.
        sets: Names of these sets; None for all.
        device: Where the model runs while it is looked at.
        dtype: Arithmetic in which it is scored; what is dropped is decided in float32.

    Returns:
        Plain data: a row for the model as it was and for each step, with parameters, megabytes, tokens, layers, the mean cosine to the
        vectors of the model as it was on texts that decided nothing, scores, and their differences to it with intervals.

    Raises:
        BadInput: If nothing is to be shrunk, `out` exists, or the model cannot be shrunk so.
    """
    check_free(out)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    model = read_model(resolve(source))
    _check(model, wanted)
    model.module.to(place)
    progress.note(placement(place, kind))
    chosen = find_eval_sets(data, sets, split="dev") if data is not None else []
    result = read_texts(texts, wanted.languages)
    rng = np.random.default_rng(check_seed(wanted.seed))
    sampled = [result[i] for i in rng.permutation(len(result))[: 2 * wanted.sample].tolist()]
    deciding, held_out = sampled[: (len(sampled) + 1) // 2], sampled[(len(sampled) + 1) // 2 :]
    progress.note(
        f"{len(result):,} distinct texts; {len(deciding)} decide, the change is measured on {len(held_out)} others"
    )
    before = embed_with(model)(held_out, None)
    meter = _Meter(before, held_out, chosen, threads, compute_of(kind))
    rows = [meter.row(WHOLE, model)]
    prompt, module, facts = (
        model.settings.prompts.get("document", ""),
        model.module,
        dict[str, Any](),
    )
    if isinstance(module, TransformerModel) and (
        wanted.layers is not None or wanted.width is not None
    ):
        ids = model.tokenizer.ids(
            deciding, prompt=prompt, max_length=min(256, model.settings.max_length)
        ).ids
        if wanted.layers is not None:
            progress.stage(f"choosing {wanted.layers} layers")
            facts["layers"], _ = choose_layers(module, ids, wanted.layers, progress.count)
            keep_only(module, facts["layers"])
            rows.append(meter.row(f"layers {', '.join(map(str, facts['layers']))}", model))
        if wanted.width is not None:
            progress.stage(f"choosing {wanted.width} neurons of each feed-forward part")
            narrow(module, ids, wanted.width)
            rows.append(meter.row(f"{wanted.width} neurons a layer", model))
    with tempfile.TemporaryDirectory() as side:
        if wanted.vocabulary:
            progress.stage(f"counting the tokens of {len(result):,} texts")
            model = _fewer_tokens(model, result, Path(side))
            rows.append(meter.row(f"{len(model.tokenizer):,} tokens", model))
        model.module.to(CPU)
        _write(
            model,
            out,
            facts | {"shrunk_from": Path(source).name, "steps": rows},
            deciding,
            rows,
            vectors_move=len(rows) > 1 + wanted.vocabulary,
        )
    return {"model": str(out), "rows": rows, **facts}


def read_texts(path: Path, languages: Sequence[str] | None = None) -> list[str]:
    """Read the distinct texts of a file of rows, or of all such files below a folder.

    Args:
        languages: Keep rows whose `lang` is listed; None keeps all.

    Returns:
        The texts, in order of first use.

    Raises:
        BadInput: If there are fewer than two.
    """
    files = (
        sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES))
        if path.is_dir()
        else [path]
    )
    result: dict[str, None] = {}
    for file in files:
        for _, record in read_records(file):
            if isinstance(record, Fault) or (
                languages is not None and record.get("lang") not in languages
            ):
                continue
            for field in TEXT_FIELDS:
                value = record.get(field)
                each = (
                    [value] if isinstance(value, str) else value if isinstance(value, list) else []
                )
                result.update(
                    dict.fromkeys(text for text in each if isinstance(text, str) and text.strip())
                )
    if len(result) < 2:
        languages_text = f" in the languages {', '.join(languages)}" if languages else ""
        raise BadInput(
            f"{path} has {len(result)} texts{languages_text}; give rows with a text under {', '.join(TEXT_FIELDS)}"
        )
    return list(result)


def _check(model: Model, requested: ShrinkRequest) -> None:
    if not (requested.vocabulary or requested.layers is not None or requested.width is not None):
        raise BadInput("nothing to shrink; give --vocabulary, --layers or --width")
    if requested.layers is None and requested.width is None:
        return
    if not isinstance(model.module, TransformerModel):
        raise BadInput("a static model has no layers; only --vocabulary shrinks it")
    if model.module.tasks:
        raise BadInput(
            f"{model.name} has adapters ({', '.join(model.module.tasks)}), which fit its layers as they are; shrink the model that the run "
            f"starts from, name the new folder as student.init, and train again. --vocabulary keeps adapters"
        )


def _fewer_tokens(model: Model, texts: list[str], side: Path) -> Model:
    """Drop the tokens that no text uses, from tokenizer, table and the tokenizer's side files."""
    prompts = {"", *model.settings.prompts.values()}
    tokenizer, old = prune_tokenizer(model.tokenizer, used_tokens(model.tokenizer, texts, prompts))
    prune_embeddings(model.module, old)
    if (model.source / "tokenizer_config.json").is_file():
        config, place = (
            read_json(model.source / "tokenizer_config.json"),
            {str(number): str(i) for i, number in enumerate(old.tolist())},
        )
        if isinstance(config.get("added_tokens_decoder"), dict):
            config["added_tokens_decoder"] = {
                place[number]: token
                for number, token in config["added_tokens_decoder"].items()
                if number in place
            }
        (side / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False), "utf-8"
        )
    if (model.source / "special_tokens_map.json").is_file():
        (side / "special_tokens_map.json").write_bytes(
            (model.source / "special_tokens_map.json").read_bytes()
        )
    return replace(model, tokenizer=tokenizer, source=side)


class _Meter:
    """Measures a model against the one it came from."""

    def __init__(
        self,
        before: np.ndarray,
        texts: list[str],
        sets: Sequence[EvalSet],
        threads: int | None,
        compute: torch.dtype | None,
    ) -> None:
        self.before, self.texts, self.threads, self.compute = before, texts, threads, compute
        self.sets = [(each, each.load(None, 17)) for each in sets]
        self.first: dict[str, Units] = {}

    def row(self, step: str, model: Model) -> dict[str, Any]:
        parameters = sum(
            p.numel() for name, p in model.module.named_parameters() if "lora_" not in name
        )
        embedder = EncoderEmbedder(Encoder(model, threads=self.threads, compute=self.compute))
        scored = {
            each.name: evaluate_set(embedder, each.name, each.task, data).score
            for each, data in self.sets
        }
        self.first = self.first or {name: score.units for name, score in scored.items()}
        return {
            "step": step,
            "parameters": parameters,
            "megabytes": round(parameters * 4 / 1e6, 1),
            "tokens": len(model.tokenizer),
            "cosine": float(cosines(self.before, embed_with(model)(self.texts, None)).mean()),
            "scores": {name: score.score for name, score in scored.items()},
            "differences": {
                name: paired_difference(score.units, self.first[name]).estimate.to_json()
                for name, score in scored.items()
            },
        }


def _write(
    model: Model,
    out: Path,
    meta: dict[str, Any],
    texts: list[str],
    rows: list[dict[str, Any]],
    *,
    vectors_move: bool,
) -> None:
    source = model.hash
    if vectors_move and model.settings.int8_ranges:
        model.settings = replace(
            model.settings, int8_ranges=int8_ranges(Encoder(model, threads=1), texts, [None])
        )
    model.name = out.name
    golden = golden_vectors(embed_with(model), model.module.tasks)
    card = [
        "# " + out.name,
        f"Made from {meta['shrunk_from']} by `taskdistill shrink`, without training.",
        "",
    ]
    card += [
        "| step | million parameters | megabytes | tokens | cosine to the model as it was |",
        "|---|---|---|---|---|",
    ]
    card += [
        f"| {r['step']} | {r['parameters'] / 1e6:.2f} | {r['megabytes']} | {r['tokens']:,} | {r['cosine']:.4f} |"
        for r in rows
    ]
    files = {
        FILE: json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n",
        "README.md": "\n".join(card) + "\n",
    }
    write_model(out, model, meta=meta, extra_files=files, inputs={"model": source})
