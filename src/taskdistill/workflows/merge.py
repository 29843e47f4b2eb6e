"""Merge models of one shape, and keep the result only if it is surely better than the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from taskdistill.device import RuntimeOptions, compute_of, placement
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import on_device
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.evaluate.dev import DevScorer, DevScores
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.set_data import RankingData, judged_texts
from taskdistill.io.atomic import check_free
from taskdistill.io.folders import read_manifest
from taskdistill.model.backbone import resolve
from taskdistill.model.folder import read_model
from taskdistill.model.merging import (
    check_same_shape,
    fixed,
    load_weights,
    merge_models,
    spherical,
    weights_of,
)
from taskdistill.model.model import Model
from taskdistill.pipeline.save_model import recalibrate, write_with_card
from taskdistill.progress import Progress
from taskdistill.stats.intervals import PairedDifference, Units, paired_difference
from taskdistill.train.checkpoint import KIND as CHECKPOINT
from taskdistill.train.checkpoint import open_checkpoint
from taskdistill.types import MANIFEST

DEV_SEED = 17
"""Of the choice of queries where a set is cut, the same for every model."""

Judge = Callable[[Model], DevScores]

METHODS = ("last", "uniform", "greedy", "spherical")


@dataclass(frozen=True)
class ScoredModel:
    """What the development sets say of one model."""

    name: str
    score: float
    units: Units


class MergeResult(TypedDict):
    """What merging gave, beside the best single model."""

    method: str
    models: dict[str, float]
    """Model to its score."""
    merged_from: list[str]
    score: float
    best_single: str
    difference: list[float]
    """To the best single model, and the ends of its interval."""
    p: float
    kept: bool
    model: str | None
    """Where it was written."""
    told: str


def merge(
    places: Sequence[str],
    data: EvalSelection,
    out: Path,
    progress: Progress,
    *,
    method: str,
    last_weight: float = 0.5,
    runtime: RuntimeOptions = RuntimeOptions(),
) -> MergeResult:
    """Merge models or checkpoints; write the result if it is better than the best of them.

    `places`: model folders, or checkpoint folders of a run with a finished model; the last one
    first for `last`. `method`: `last` mixes the first with the mean of the others; `uniform` means
    all; `greedy` adds the next best while the development score does not fall; `spherical` means
    directions. `last_weight`: share of the first with `last`. `runtime`: of the scoring; weights
    are merged on the CPU.
    """
    check_free(out)
    if method not in METHODS:
        raise BadInput(f"method {method!r} is not known; give one of {', '.join(METHODS)}")
    models = [read_place(place) for place in places]
    check_same_shape(models)
    where, arithmetic = runtime.resolve()
    scorer = DevScorer(data.find("dev"), limit=data.max_queries, seed=DEV_SEED)
    progress.note(placement(where, arithmetic))

    def judge(model: Model) -> DevScores:
        with on_device(model.module, where):
            encoder = Encoder(model, threads=runtime.threads, compute=compute_of(arithmetic))
            return scorer(EncoderEmbedder(encoder))

    singles = []
    for place, model in zip(places, models, strict=True):
        singles.append(_scored(str(place), judge(model)))
        progress.note(f"{place}: {100 * singles[-1].score:.2f}")
    best = max(range(len(models)), key=lambda i: singles[i].score)
    weights, used = _merged(models, singles, method, last_weight, judge, progress)
    scratch = models[0]
    load_weights(scratch, weights)
    merged = _scored("merged", judge(scratch))
    difference = paired_difference(merged.units, singles[best].units)
    is_better = difference.estimate.low > 0
    if is_better:
        documents, queries = _dev_texts(scorer)
        recalibrate(scratch, documents, queries, threads=runtime.threads)
        scratch.name, sources = out.name, [Path(place).name for place in used]
        write_with_card(
            out,
            scratch,
            f"# {out.name}\nMerged by `taskdistill merge` ({method}) from {', '.join(sources)}.\n",
            meta={"merged_from": sources, "method": method},
        )
    return {
        "method": method,
        "models": {single.name: single.score for single in singles},
        "merged_from": list(used),
        "score": merged.score,
        "best_single": singles[best].name,
        "difference": difference.estimate.to_json(),
        "p": difference.p,
        "kept": is_better,
        "model": str(out) if is_better else None,
        "told": _verdict(merged, singles[best], difference, is_better),
    }


def read_place(place: str) -> Model:
    """Read a model folder, or the state of a run's model at a checkpoint.

    `place`: model folder, Hub id, or RUN/checkpoints/PHASE/step-N of a run that has a finished
    model. Returns the model; of a checkpoint of the base without adapters, since they fit the
    finished base only.
    """
    folder = Path(place)
    if not (folder / MANIFEST).is_file() or read_manifest(folder).get("kind") != CHECKPOINT:
        return read_model(resolve(place))
    open_checkpoint(folder, "leave it out")
    run, phase = folder.parents[2], folder.parent.name
    if not (run / "model").is_dir():
        raise BadInput(
            f"{run} has no finished model to put the checkpoint's weights into; finish the run "
            "first"
        )
    model, task = (
        read_model(run / "model"),
        phase.removeprefix("adapters.") if phase.startswith("adapters.") else None,
    )
    weights = dict(weights_of(model))
    for name, tensor in load_file(folder / "weights.safetensors").items():
        adapters_only = (
            f"{task}/{name}"
            if task is not None
            else (
                name.replace("projection.", "projection/", 1)
                if name.startswith("projection.")
                else _base(name)
            )
        )
        if adapters_only in weights and weights[adapters_only].shape == tensor.shape:
            weights[adapters_only] = tensor
        elif name != "log_temperature" and not (
            task is not None and name.startswith("projection.")
        ):
            raise BadInput(
                f"checkpoint {folder} holds {name}, which {run / 'model'} lacks or has in "
                "another shape"
            )
    load_weights(model, weights)
    if task is None and model.module.tasks:
        raise BadInput(
            f"{folder} is a state of the base, but {run / 'model'} has adapters that fit its "
            "last state only; merge whole models instead"
        )
    model.name = f"{run.name}/{phase}/{folder.name}"
    return model


def _base(name: str) -> str:
    return f"base/{name}" if name == "table" else f"base/backbone.{name}"


def _scored(name: str, scores: DevScores) -> ScoredModel:
    return ScoredModel(name, scores.mean, scores.units)


def _merged(
    models: Sequence[Model],
    singles: Sequence[ScoredModel],
    method: str,
    last_weight: float,
    judge: Judge,
    progress: Progress,
) -> tuple[dict[str, Tensor], list[str]]:
    """Merge by one method; say which models are in the result."""
    names, count = [single.name for single in singles], len(models)
    if method == "spherical":
        return merge_models(models, spherical), names
    if method == "uniform":
        return merge_models(models, fixed([1 / count] * count)), names
    if method == "last":
        return (
            merge_models(
                models, fixed([last_weight] + [(1 - last_weight) / (count - 1)] * (count - 1))
            ),
            names,
        )
    return _greedy(models, singles, judge, progress)


def _greedy(
    models: Sequence[Model], singles: Sequence[ScoredModel], judge: Judge, progress: Progress
) -> tuple[dict[str, Tensor], list[str]]:
    order = sorted(range(len(models)), key=lambda i: -singles[i].score)
    scratch, inside, best = models[order[0]], [order[0]], singles[order[0]].score
    start_weights = {name: tensor.detach().clone() for name, tensor in weights_of(scratch).items()}
    weights = start_weights
    for new in order[1:]:
        tried = [*inside, new]
        merged = merge_models([models[i] for i in tried], fixed([1 / len(tried)] * len(tried)))
        load_weights(scratch, merged)
        score = judge(scratch).mean
        load_weights(scratch, start_weights)
        progress.note(
            f"with {singles[new].name}: {100 * score:.2f}, "
            f"{'kept' if score >= best else 'left out'}"
        )
        if score >= best:
            inside, best, weights = tried, score, merged
    return weights, [singles[i].name for i in inside]


def _verdict(
    merged: ScoredModel, best: ScoredModel, difference: PairedDifference, is_better: bool
) -> str:
    value, low, high = (100 * x for x in difference.estimate.to_json())
    sentence = (
        f"merged {100 * merged.score:.2f}, best single {100 * best.score:.2f} ({best.name}): "
        f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    )
    return (
        f"{sentence}; kept"
        if is_better
        else f"{sentence}; not better by its interval, so nothing was written: keep {best.name}"
    )


def _dev_texts(scorer: DevScorer) -> tuple[list[str], list[str]]:
    """Draw texts to calibrate on from the development sets, and queries of its retrieval sets."""
    rng = np.random.default_rng(DEV_SEED)
    documents = list(dict.fromkeys(text for _, data in scorer.sets for text in judged_texts(data)))
    queries = dict.fromkeys(
        text
        for _, data in scorer.sets
        if isinstance(data, RankingData)
        for text in data.queries.values()
    )
    rng.shuffle(documents)
    return documents, list(queries)
