"""One more adapter for a finished model: from a few hundred rows, in minutes, with the training loop of every other phase."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from taskdistill.data.rows import Dataset, row_texts
from taskdistill.data.sources import load_source
from taskdistill.device import AUTO, CPU, device_name, resolve_device
from taskdistill.encode.batches import cores
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.evaluate.dev import DevComparison, compare, describe
from taskdistill.io.atomic import remove_stale, restore
from taskdistill.io.folders import read_manifest
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import check_claim, check_replaceable, claim, remove_names
from taskdistill.model.add_adapter import add_adapter, check_new_adapter
from taskdistill.model.backbone import weights_hash, without_dropout
from taskdistill.model.folder import read_model
from taskdistill.model.lora import adapter_parameters, detach
from taskdistill.model.model import Model
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.save_model import CALIBRATION_TEXTS, binary_offsets, int8_ranges
from taskdistill.progress import Progress, SilentProgress, Stop, never
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.load import explain
from taskdistill.recipe.phases import AdapterConfig
from taskdistill.seeding import torch_seed
from taskdistill.tasks import Role, Task
from taskdistill.train.arithmetic import Arithmetic, choose_arithmetic
from taskdistill.train.context import Interrupted, TrainContext
from taskdistill.train.log import Log
from taskdistill.train.loop import run_phase
from taskdistill.train.phases import adapter_job, distils, plan_phase
from taskdistill.train.validation import remove_state
from taskdistill.train.workers import workers
from taskdistill.types import MANIFEST, RowKind

KINDS: dict[Task, tuple[RowKind, ...]] = {
    Task.RETRIEVAL: (RowKind.PAIRS,),
    Task.TEXT_MATCHING: (RowKind.SCORED, RowKind.PAIRS),
    Task.CLUSTERING: (RowKind.LABELLED,),
    Task.CLASSIFICATION: (RowKind.LABELLED,),
}
"""Rows that an adapter of a task can be trained on without a teacher; the first kind is the usual one."""
TEXTS_PER_STEP = 160
EPOCHS = 10
STEPS = (60, 400)
"""Fewest and most steps that are chosen by themselves."""
DEFAULTS: dict[RowKind, dict[str, Any]] = {
    RowKind.LABELLED: {
        "weights": {"relational": 1.0},
        "negatives": 1,
        "temperature": 0.1,
        "lr": 3e-3,
    },
    RowKind.SCORED: {"weights": {"info_nce": 0.0, "distill": 0.0, "relational": 5.0}, "lr": 2e-4},
    RowKind.PAIRS: {
        "weights": {"distill": 0.0, "relational": 5.0},
        "negatives": 1,
        "learn_temperature": False,
        "temperature": 0.05,
        "lr": 2e-4,
    },
}
"""What differs from a recipe's adapter: no teacher is asked, the distances of the base hold the adapter instead."""
WORK = "adapt-work"
_DIGEST = re.compile(r"[0-9a-f]{16}")
STRENGTH: dict[RowKind, float] = {RowKind.LABELLED: 0.7, RowKind.SCORED: 1.0, RowKind.PAIRS: 1.0}
"""Share of the trained change that is kept. A few labelled rows are learned by heart; part of the way back to the base generalises
better, as interpolated weights do in WiSE-FT (arXiv 2109.01903)."""


@dataclass(frozen=True, slots=True)
class AdaptRequest:
    """What is asked for."""

    data: Path
    task: Task
    name: str | None = None
    kind: RowKind | None = None
    replace: bool = False
    dev: Path | None = None
    columns: Mapping[str, str] | None = None
    settings: Mapping[str, Any] | None = None
    seed: int = 17
    strength: float | None = None

    @property
    def kept(self) -> float:
        """Share of the trained change that is kept.

        Raises:
            BadInput: If it is not above 0 and at most 1.
        """
        if self.strength is None:
            return STRENGTH[self.rows]
        if not 0 < self.strength <= 1:
            raise BadInput(
                f"strength is {self.strength}; give the share of the trained change to keep, above 0 and at most 1"
            )
        return self.strength

    @property
    def adapter(self) -> str:
        """Name of the adapter."""
        return self.name or self.task.value

    @property
    def rows(self) -> RowKind:
        """Kind of the rows.

        Raises:
            BadInput: If the task cannot learn from the kind that was named.
        """
        if self.kind is None:
            return KINDS[self.task][0]
        if self.kind not in KINDS[self.task]:
            raise BadInput(
                f"a {self.task} adapter is trained on {' or '.join(KINDS[self.task])} rows, not on {self.kind}"
            )
        return self.kind


def adapt(
    folder: Path,
    wanted: AdaptRequest,
    *,
    progress: Progress | None = None,
    should_stop: Stop = never,
    device: str = AUTO,
    precision: str = AUTO,
) -> dict[str, Any]:
    """Train an adapter on a finished model's base and add it to the model's folder; nothing else in the folder changes.

    Interrupted, it continues from its last checkpoint when it is run again with the same arguments.

    Args:
        should_stop: Asked before every step; true saves and stops.
        device: Where the adapter is trained and scored.
        precision: Number type of the passes in training, see `choose_arithmetic`; scores are taken in float32.

    Returns:
        Name, task, rows, steps, seconds, and with development rows the scores of base and adapter.

    Raises:
        BadInput: If the model, the rows or a setting cannot be used.
        WorkFailed: If the adapter scores below the base on the development rows: nothing is written then.
    """
    progress, started = progress or SilentProgress(), time.monotonic()
    kind, strength = wanted.rows, wanted.kept
    if not restore(folder) or not folder.is_dir():
        raise BadInput(f"{folder} is no folder; give a model folder that `taskdistill train` wrote")
    read_manifest(folder, "model")
    check_replaceable(folder, "model")
    work = folder.with_name(f".{folder.name}.adapt")
    check_claim(work, WORK, earlier=_is_work)
    place = resolve_device(device)
    arithmetic = choose_arithmetic(precision, place)
    model = read_model(folder)
    if not isinstance(model.module, TransformerModel):
        raise BadInput(
            f"{folder} holds a static model, which has no layers to adapt; give a transformer model"
        )
    without_dropout(model.module.backbone)
    model.module.check_training(table=False)
    model.module.to(place)
    progress.note(f"device {place} ({device_name(place)}), passes in {arithmetic}")
    check_new_adapter(folder, model, wanted.adapter, replacing=wanted.replace)
    if wanted.replace:
        _forget(model, wanted.adapter)
    data = _rows(wanted, wanted.data, kind)
    dev = None if wanted.dev is None else _rows(wanted, wanted.dev, kind)
    _check_apart(data, dev)
    settings = chosen_settings(wanted.task, kind, data, wanted.settings or {}, model.module)
    progress.note(
        f"{data.name}: {len(data.rows):,} {kind} rows; {settings.steps:,} steps of {settings.batch_size}"
    )
    claim(work, WORK, earlier=_is_work)
    with writer_lock(work / "lock"):
        remove_stale(folder)
        digest = _digest(wanted, settings, data, model)
        base = weights_hash(model.module.backbone)
        _train(
            model, wanted, settings, data, work / digest, digest, progress, should_stop, arithmetic
        )
        scale_adapter(model.module, wanted.adapter, strength)
        if weights_hash(model.module.backbone) != base:
            raise WorkFailed(
                "the base's weights changed while the adapter was trained; nothing was written, please report this"
            )
        encoder = Encoder(model, threads=cores())
        result = None if dev is None else compare(encoder, wanted.adapter, wanted.task, data, dev)
        if result is not None:
            progress.note(describe(result))
            if result.after < result.before:
                _remove_work(work / digest)
                raise WorkFailed(
                    f"on {wanted.dev} the adapter has {result.metric} {100 * result.after:.1f}, the base {100 * result.before:.1f}: nothing was "
                    f"written; give more rows, or other settings with --set"
                )
        progress.stage("calibrating int8 and writing the model folder")
        facts = _facts(wanted, settings, data, result)
        calibrated = _calibrated(encoder, model, wanted.adapter, data)
        section = _section(wanted, facts, result)
        add_adapter(
            folder,
            model,
            wanted.adapter,
            task=wanted.task.value,
            calibrated=calibrated,
            section=section,
            facts=facts,
        )
        for left in sorted(work.iterdir()):
            _remove_work(left)
    if {path.name for path in work.iterdir()} == {MANIFEST}:
        remove_names(work, [MANIFEST])
    return {
        "model": folder.name,
        "adapter": wanted.adapter,
        **facts,
        "seconds": time.monotonic() - started,
    }


def _is_work(folder: Path) -> bool:
    """Whether a folder without a manifest is the workplace of a version that gave it none."""
    return all(
        _DIGEST.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        for path in folder.iterdir()
        if path.name != "lock"
    )


def _remove_work(folder: Path) -> None:
    """Remove what training an adapter has left; what somebody else has put there stays."""
    if _DIGEST.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
        remove_state(folder / "checkpoints")
        remove_names(folder, ["log.jsonl"])


def chosen_settings(
    task: Task, kind: RowKind, data: Dataset, overrides: Mapping[str, Any], module: TransformerModel
) -> AdapterConfig:
    """Choose how an adapter is trained on few rows; every field of a recipe's adapter may be given instead.

    Raises:
        BadInput: If a field is unknown, or one needs the teacher.
    """
    usual = dict(DEFAULTS[kind])
    if task is Task.TEXT_MATCHING and kind is RowKind.PAIRS:
        usual["weights"] = {"cosent": 0.0, **usual["weights"]}
    negatives = int(overrides.get("negatives", usual.get("negatives", 0)))
    texts = 2 + negatives if kind is not RowKind.SCORED else 2
    size = int(overrides.get("batch_size", max(2, min(len(data.rows), TEXTS_PER_STEP // texts))))
    steps = max(STEPS[0], min(STEPS[1], round(EPOCHS * len(data.rows) / size)))
    fields = {
        "sources": {data.name: 1.0},
        "steps": steps,
        "batch_size": size,
        "checkpoint_every": 50,
        **usual,
        **overrides,
    }
    fields["weights"] = {**usual["weights"], **overrides.get("weights", {})}
    try:
        settings = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        raise BadInput(
            "settings of the adapter: " + "; ".join(explain(error, AdapterConfig)[:5])
        ) from None
    name = f"adapters.{_objective(task, kind).value}"
    if distils(name, settings):
        raise BadInput(
            "weights.distill and false_negative_margin need a teacher, which `adapt` does not ask; train a recipe for that"
        )
    if settings.average is not None:
        raise BadInput("average has no effect here; train a recipe for that")
    if settings.rope_theta is not None and rope_theta(module.backbone) is None:
        raise BadInput("rope_theta has no effect: this backbone has no rotary positions; remove it")
    return settings


def _objective(task: Task, kind: RowKind) -> Task:
    """Labelled rows are learned from as in classification, whatever task the adapter serves."""
    return Task.CLASSIFICATION if kind is RowKind.LABELLED else task


def _rows(requested: AdaptRequest, path: Path, kind: RowKind) -> Dataset:
    if not path.is_file():
        raise BadInput(f"{path} is no file; give rows as JSONL, CSV or Parquet (gzip too)")
    source = SourceConfig(path=path.name, kind=kind, columns=dict(requested.columns or {}))
    return load_source(path.parent, path.name, source, max_bad=0.01, seed=requested.seed)


def _check_apart(data: Dataset, dev: Dataset | None) -> None:
    if dev is None:
        return
    seen = {row_texts(row) for row in data.rows}
    if same := sum(row_texts(row) in seen for row in dev.rows):
        raise BadInput(
            f"{same} of {len(dev.rows)} development rows are among the training rows; give rows of their own to --dev"
        )


def _forget(model: Model, name: str) -> None:
    assert isinstance(model.module, TransformerModel)
    detach(model.module.backbone, name)
    model.module.tasks.remove(name)
    del model.adapter_configs[name]


def _digest(requested: AdaptRequest, settings: AdapterConfig, data: Dataset, model: Model) -> str:
    parts = [
        requested.adapter,
        requested.task.value,
        requested.seed,
        settings.model_dump(mode="json"),
        data.sha256,
        model.hash,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _train(
    model: Model,
    requested: AdaptRequest,
    settings: AdapterConfig,
    data: Dataset,
    work: Path,
    digest: str,
    progress: Progress,
    should_stop: Stop,
    arithmetic: Arithmetic,
) -> None:
    module, objective = model.module, _objective(requested.task, data.kind)
    assert isinstance(module, TransformerModel)
    torch.manual_seed(torch_seed(requested.seed))
    plan = plan_phase(requested.seed, f"adapters.{objective.value}", settings, {data.name: data})
    job, config = adapter_job(
        objective,
        settings,
        module,
        plan,
        {},
        None,
        model.settings.matryoshka_dims,
        requested.adapter,
    )
    model.adapter_configs[requested.adapter] = config
    theta = rope_theta(module.backbone)
    if settings.rope_theta is not None:
        set_rope_theta(module.backbone, settings.rope_theta)
    nn.ParameterList(job.heads.named().values()).to(module.device)
    work.mkdir(exist_ok=True)
    log = Log(work / "log.jsonl")
    progress.stage(f"{requested.adapter}: {settings.steps:,} steps")
    try:
        with workers(cores() if module.device == CPU else 1) as threads:
            ctx = TrainContext(
                model.tokenizer,
                model.settings.prompts,
                requested.seed,
                threads,
                log,
                {"adapt": digest},
                progress.step,
                should_stop,
                threads.count,
                progress.note,
                device=module.device,
                arithmetic=arithmetic,
            )
            run_phase(job, module, work / "checkpoints", ctx)
    except Interrupted:
        raise Interrupted(
            "stopped; what is trained is kept, run the same command again to continue"
        ) from None
    finally:
        log.close()
        if theta is not None:
            set_rope_theta(module.backbone, theta)
    module.select(None)


def scale_adapter(module: TransformerModel, adapter: str, strength: float) -> None:
    """Keep a share of what an adapter changes, by scaling the second factor of each of its products."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(module.backbone, adapter).items():
            if "lora_B" in name:
                parameter.mul_(strength)


def _calibrated(encoder: Encoder, model: Model, name: str, data: Dataset) -> dict[str, Any]:
    """Fit from the rows what the other adapters got from the training data: int8 ranges, and binary offsets where the model has some."""
    texts = [row_texts(row)[-1] for row in data.rows][:CALIBRATION_TEXTS]
    result = {"int8_ranges": int8_ranges(encoder, texts, [name])[name]}
    if model.settings.binary_offsets:
        queries = (
            [row.query for row in data.rows][:CALIBRATION_TEXTS]
            if data.kind is RowKind.PAIRS
            else texts
        )
        result["binary_offsets"] = binary_offsets(
            encoder, {Role.QUERY: queries, Role.DOCUMENT: texts}, [name]
        )[name]
    return result


def _facts(
    requested: AdaptRequest, settings: AdapterConfig, data: Dataset, result: DevComparison | None
) -> dict[str, Any]:
    return {
        "task": requested.task.value,
        "data": data.name,
        "data_sha256": data.sha256,
        "rows": len(data.rows),
        "kind": data.kind.value,
        "seed": requested.seed,
        "strength": requested.kept,
        "settings": settings.model_dump(mode="json", exclude={"sources", "long_sources"}),
        "dev": None
        if result is None
        else {"file": None if requested.dev is None else requested.dev.name, **result.to_json()},
    }


def _section(
    requested: AdaptRequest, facts: Mapping[str, Any], result: DevComparison | None
) -> list[str]:
    command = f"taskdistill adapt MODEL {facts['data']} --task {requested.task.value}"
    command += f" --name {requested.name}" if requested.name else ""
    command += f" --strength {requested.strength}" if requested.strength is not None else ""
    lines = [
        f"Added later on the base as it is: {facts['rows']:,} {facts['kind']} rows of `{facts['data']}`, {facts['settings']['steps']} steps, "
        f"seed {facts['seed']}, {facts['strength']} of the change kept; serves {requested.task.value}. No other adapter was changed.",
        "",
        f"`{command}`",
    ]
    return (
        lines
        if result is None
        else [*lines, "", f"On `{facts['dev']['file']}`: {describe(result)}."]
    )
