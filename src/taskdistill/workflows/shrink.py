"""A smaller model folder from a bigger one without training.

Fewer layers, narrower layers, fewer tokens; quality and size of each step.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from taskdistill.device import CPU, RuntimeOptions, compute_of, placement
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, RowError
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.evaluate.dev import DevScorer, DevScores
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.atomic import check_free
from taskdistill.io.records import SUFFIXES, read_records
from taskdistill.model.backbone import read_json, resolve
from taskdistill.model.folder import read_model
from taskdistill.model.golden import cosines, embed_with
from taskdistill.model.layers import keep_layers
from taskdistill.model.model import Model
from taskdistill.model.prune import choose_layers, narrow
from taskdistill.model.prune_vocabulary import prune_embeddings, prune_tokenizer, used_tokens
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.save_model import recalibrate, write_with_card
from taskdistill.progress import Progress
from taskdistill.seeding import check_seed
from taskdistill.stats.intervals import paired_difference
from taskdistill.workflows.training_texts import TEXT_FIELDS

ORIGINAL = "as it was"

DEV_SEED = 17
"""Of the choice of queries where a set is cut."""


@dataclass(frozen=True, kw_only=True)
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
    """Texts that decide about layers and neurons, and as many others on which the change is
    measured.
    """
    seed: int = 17


class ShrinkStep(TypedDict):
    """A model after one step."""

    step: str
    parameters: int
    megabytes: float
    tokens: int
    cosine: float
    """Mean cosine to the vectors of the model as it was, on texts that decided nothing."""
    scores: dict[str, float]
    """Development set to score."""
    differences: dict[str, list[float]]
    """Set to the difference to the model as it was, and the ends of its interval."""


class ShrinkResult(TypedDict):
    """What a smaller model is and costs."""

    model: str
    rows: list[ShrinkStep]
    layers: NotRequired[list[int]]
    """Those that were kept."""


def shrink(
    source: str,
    texts: Path,
    out: Path,
    progress: Progress,
    *,
    request: ShrinkRequest,
    data: EvalSelection | None = None,
    runtime: RuntimeOptions = RuntimeOptions(),
) -> ShrinkResult:
    """Write a smaller model folder, and say after each step what it has cost.

    `source`: model folder, Hub id or `all-MiniLM-L6-v2`. `texts`: file or folder of rows whose
    texts the model is for. `data`: development sets to score each step on; None measures only how
    far vectors move. `runtime`: of the scoring; what is dropped is decided in float32. Returns
    a row for the model as it was and for each step.
    """
    check_free(out)
    place, dtype = runtime.resolve()
    model = read_model(resolve(source))
    _check(model, request)
    model.module.to(place)
    progress.note(placement(place, dtype))
    sets = data.find("dev") if data is not None else []
    all_texts = read_texts(texts, request.languages)
    rng = np.random.default_rng(check_seed(request.seed))
    sampled = [all_texts[i] for i in rng.permutation(len(all_texts))[: 2 * request.sample].tolist()]
    deciding, held_out = sampled[: (len(sampled) + 1) // 2], sampled[(len(sampled) + 1) // 2 :]
    progress.note(
        f"{len(all_texts):,} distinct texts; {len(deciding)} decide, the change is measured on "
        f"{len(held_out)} others"
    )
    before = embed_with(model)(held_out, None)
    meter = _Meter(before, held_out, sets, runtime.threads, compute_of(dtype))
    rows = [meter.row(ORIGINAL, model)]
    prompt, module, facts = (
        model.settings.prompts.get("document", ""),
        model.module,
        dict[str, list[int]](),
    )
    if isinstance(module, TransformerModel) and (
        request.layers is not None or request.width is not None
    ):
        ids = model.tokenizer.ids(
            deciding, prompt=prompt, max_length=min(256, model.settings.max_length)
        ).ids
        if request.layers is not None:
            progress.stage(f"choosing {request.layers} layers")
            facts["layers"], _ = choose_layers(module, ids, request.layers, progress.count)
            keep_layers(module.backbone, facts["layers"])
            rows.append(meter.row(f"layers {', '.join(map(str, facts['layers']))}", model))
        if request.width is not None:
            progress.stage(f"choosing {request.width} neurons of each feed-forward part")
            narrow(module, ids, request.width)
            rows.append(meter.row(f"{request.width} neurons a layer", model))
    with tempfile.TemporaryDirectory() as side:
        if request.vocabulary:
            progress.stage(f"counting the tokens of {len(all_texts):,} texts")
            model = _drop_unused_tokens(model, all_texts, Path(side))
            rows.append(meter.row(f"{len(model.tokenizer):,} tokens", model))
        model.module.to(CPU)
        source_hash, source_name = model.hash, Path(source).name
        # Dropping unused tokens moves no vector of the texts, so that the calibration stays true.
        if len(rows) > 1 + request.vocabulary:
            recalibrate(model, deciding, threads=1)
        model.name = out.name
        write_with_card(
            out,
            model,
            _card(out.name, source_name, rows),
            meta=facts | {"shrunk_from": source_name, "steps": rows},
            inputs={"model": source_hash},
        )
    result: ShrinkResult = {"model": str(out), "rows": rows}
    if "layers" in facts:
        result["layers"] = facts["layers"]
    return result


def read_texts(path: Path, languages: Sequence[str] | None = None) -> list[str]:
    """Read the distinct texts of a file of rows, or of all such files below a folder.

    `languages`: keep rows whose `lang` is listed; None keeps all. Returns the texts, in order of
    first use.
    """
    files = (
        sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES))
        if path.is_dir()
        else [path]
    )
    distinct: dict[str, None] = {}
    for file in files:
        for _, record in read_records(file):
            if isinstance(record, RowError) or (
                languages is not None and record.get("lang") not in languages
            ):
                continue
            for field in TEXT_FIELDS:
                value = record.get(field)
                each = (
                    [value] if isinstance(value, str) else value if isinstance(value, list) else []
                )
                distinct.update(
                    dict.fromkeys(text for text in each if isinstance(text, str) and text.strip())
                )
    if len(distinct) < 2:
        languages_text = f" in the languages {', '.join(languages)}" if languages else ""
        raise BadInput(
            f"{path} has {len(distinct)} texts{languages_text}; give rows with a text under "
            f"{', '.join(TEXT_FIELDS)}"
        )
    return list(distinct)


def _check(model: Model, request: ShrinkRequest) -> None:
    if not (request.vocabulary or request.layers is not None or request.width is not None):
        raise BadInput("nothing to shrink; give --vocabulary, --layers or --width")
    if request.layers is None and request.width is None:
        return
    if not isinstance(model.module, TransformerModel):
        raise BadInput("a static model has no layers; only --vocabulary shrinks it")
    if model.module.tasks:
        raise BadInput(
            f"{model.name} has adapters ({', '.join(model.module.tasks)}), which fit its layers "
            "as they are; shrink the model that the run "
            "starts from, name the new folder as student.init, and train again. --vocabulary "
            "keeps adapters"
        )


def _drop_unused_tokens(model: Model, texts: list[str], side: Path) -> Model:
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
        self.scorer = DevScorer(sets, limit=None, seed=DEV_SEED)
        self.first: DevScores | None = None

    def row(self, step: str, model: Model) -> ShrinkStep:
        parameters = sum(
            p.numel() for name, p in model.module.named_parameters() if "lora_" not in name
        )
        encoder = Encoder(model, threads=self.threads, compute=self.compute)
        scores = self.scorer(EncoderEmbedder(encoder))
        first = self.first = self.first or scores
        return {
            "step": step,
            "parameters": parameters,
            "megabytes": round(parameters * 4 / 1e6, 1),
            "tokens": len(model.tokenizer),
            "cosine": float(cosines(self.before, embed_with(model)(self.texts, None)).mean()),
            "scores": {name: score.score for name, score in scores.by_set.items()},
            "differences": {
                name: paired_difference(score.units, first.by_set[name].units).estimate.to_json()
                for name, score in scores.by_set.items()
            },
        }


def _card(name: str, source: str, rows: Sequence[ShrinkStep]) -> str:
    lines = [
        f"# {name}",
        f"Made from {source} by `taskdistill shrink`, without training.",
        "",
        "| step | million parameters | megabytes | tokens | cosine to the model as it was |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['step']} | {row['parameters'] / 1e6:.2f} | {row['megabytes']} | {row['tokens']:,} "
        f"| {row['cosine']:.4f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
