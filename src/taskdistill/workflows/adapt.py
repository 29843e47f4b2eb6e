"""One more adapter for a finished model.

From a few hundred rows, in minutes, with the training loop of every other phase.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
from taskdistill.io.sealed import hash_json
from taskdistill.model.add_adapter import add_adapter, check_new_adapter
from taskdistill.model.backbone import without_dropout
from taskdistill.model.fingerprint import weights_hash
from taskdistill.model.folder import read_model
from taskdistill.model.lora import adapter_parameters, detach
from taskdistill.model.model import Model
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.settings import Calibration
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.save_model import CALIBRATION_TEXTS, fit_calibration
from taskdistill.progress import Progress, SilentProgress, Stop, never
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.phases import AdapterConfig
from taskdistill.seeding import torch_seed
from taskdistill.train.arithmetic import choose_arithmetic
from taskdistill.train.context import Interrupted, Phase, TrainContext
from taskdistill.train.log import Log
from taskdistill.train.loop import run_phase
from taskdistill.train.phases import build_adapter, plan_phase
from taskdistill.train.validation import remove_state
from taskdistill.train.workers import workers
from taskdistill.types import MANIFEST, RowKind
from taskdistill.workflows.adapt_settings import AdaptRequest, choose_settings

WORK = "adapt-work"
_DIGEST = re.compile(r"[0-9a-f]{16}")
"""Of the folder of one training, inside that of the model's work."""


def adapt(
    folder: Path,
    request: AdaptRequest,
    *,
    progress: Progress | None = None,
    should_stop: Stop = never,
    device: str = AUTO,
    precision: str = AUTO,
) -> dict[str, Any]:
    """Train an adapter on a finished model's base and add it to the model's folder.

    Nothing else in the folder changes.

    Interrupted, it continues from its last checkpoint when it is run again with the same arguments.

    Args:
        should_stop: Asked before every step; true saves and stops.
        device: Where the adapter is trained and scored.
        precision: Number type of the passes in training, see `choose_arithmetic`; scores are taken
            in float32.

    Returns:
        Name, task, rows, steps, seconds, and with development rows the scores of base and adapter.

    Raises:
        BadInput: If the model, the rows or a setting cannot be used.
        WorkFailed: If the adapter scores below the base on the development rows: nothing is written
            then.
    """
    progress, started = progress or SilentProgress(), time.monotonic()
    adapter, strength = request.adapter, request.scale
    work = folder.with_name(f".{folder.name}.adapt")
    _check_folders(folder, work)
    place = resolve_device(device)
    arithmetic = choose_arithmetic(precision, place)
    model = read_model(folder)
    module = model.module
    if not isinstance(module, TransformerModel):
        raise BadInput(
            f"{folder} holds a static model, which has no layers to adapt; give a transformer model"
        )
    without_dropout(module.backbone)
    module.check_training(table=False)
    module.to(place)
    progress.note(f"device {place} ({device_name(place)}), passes in {arithmetic}")
    check_new_adapter(folder, model, adapter, replacing=request.replace)
    if request.replace:
        detach(module.backbone, adapter)
        module.tasks.remove(adapter)
        del model.adapter_configs[adapter]
    data, dev = _load_rows(request)
    settings = choose_settings(request, data, module)
    progress.note(
        f"{data.name}: {len(data.rows):,} {data.kind} rows; {settings.steps:,} steps of "
        f"{settings.batch_size}"
    )
    claim(work, WORK, earlier=_is_work)
    with writer_lock(work / "lock"):
        remove_stale(folder)
        digest = _digest(request, settings, data, model)
        base_hash = weights_hash(module.backbone)
        phase = _make_phase(model, request, settings, data)
        (work / digest).mkdir(exist_ok=True)
        progress.stage(f"{adapter}: {settings.steps:,} steps")
        log = Log(work / digest / "log.jsonl")
        try:
            with (
                workers(cores() if module.device == CPU else 1) as pool,
                _at_theta(module, settings.rope_theta),
            ):
                ctx = TrainContext(
                    tokenizer=model.tokenizer,
                    prompts=model.settings.prompts,
                    seed=request.seed,
                    threads=pool,
                    log=log,
                    meta={"adapt": digest},
                    on_step=progress.step,
                    should_stop=should_stop,
                    thread_count=pool.count,
                    note=progress.note,
                    device=module.device,
                    arithmetic=arithmetic,
                )
                run_phase(phase, module, work / digest / "checkpoints", ctx)
        except Interrupted:
            raise Interrupted(
                "stopped; what is trained is kept, run the same command again to continue"
            ) from None
        finally:
            log.close()
        module.select(None)
        scale_adapter(module, adapter, strength)
        if weights_hash(module.backbone) != base_hash:
            raise WorkFailed(
                "the base's weights changed while the adapter was trained; nothing was written, "
                "please report this"
            )
        encoder = Encoder(model, threads=cores())
        scores = None if dev is None else compare(encoder, adapter, request.task, data, dev)
        if scores is not None:
            progress.note(describe(scores))
            if scores.after < scores.before:
                _remove_work(work / digest)
                raise WorkFailed(
                    f"on {request.dev} the adapter has {scores.metric} {100 * scores.after:.1f}, "
                    f"the base {100 * scores.before:.1f}: nothing was written; give more rows, or "
                    "other settings with --set"
                )
        progress.stage("calibrating int8 and writing the model folder")
        facts = _facts(request, settings, data, scores)
        add_adapter(
            folder,
            model,
            adapter,
            task=request.task.value,
            calibrated=_calibration(encoder, adapter, data),
            section=_section(request, facts, scores),
            facts=facts,
        )
        for path in sorted(work.iterdir()):
            _remove_work(path)
    if {path.name for path in work.iterdir()} == {MANIFEST}:
        remove_names(work, [MANIFEST])
    seconds = time.monotonic() - started
    return {"model": folder.name, "adapter": adapter, **facts, "seconds": seconds}


def _check_folders(folder: Path, work: Path) -> None:
    if not restore(folder) or not folder.is_dir():
        raise BadInput(f"{folder} is no folder; give a model folder that `taskdistill train` wrote")
    read_manifest(folder, "model")
    check_replaceable(folder, "model")
    check_claim(work, WORK, earlier=_is_work)


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


def _load_rows(request: AdaptRequest) -> tuple[Dataset, Dataset | None]:
    """Read training and development rows, and refuse rows that are in both."""

    def load(path: Path) -> Dataset:
        if not path.is_file():
            raise BadInput(f"{path} is no file; give rows as JSONL, CSV or Parquet (gzip too)")
        source = SourceConfig(
            path=path.name, kind=request.row_kind, columns=dict(request.columns or {})
        )
        return load_source(path.parent, path.name, source, max_bad=0.01, seed=request.seed)

    data = load(request.data)
    if request.dev is None:
        return data, None
    dev = load(request.dev)
    train_rows = {row_texts(row) for row in data.rows}
    if same := sum(row_texts(row) in train_rows for row in dev.rows):
        raise BadInput(
            f"{same} of {len(dev.rows)} development rows are among the training rows; "
            "give rows of their own to --dev"
        )
    return data, dev


def _digest(request: AdaptRequest, settings: AdapterConfig, data: Dataset, model: Model) -> str:
    """Name the work by all that decides the adapter: only the same training continues it."""
    parts = [
        request.adapter,
        request.task.value,
        request.seed,
        settings.model_dump(mode="json"),
        data.sha256,
        model.hash,
    ]
    return hash_json(parts)[:16]


def _make_phase(
    model: Model, request: AdaptRequest, settings: AdapterConfig, data: Dataset
) -> Phase:
    """Attach the adapter and describe its training; the model gets its configuration."""
    assert isinstance(model.module, TransformerModel)
    torch.manual_seed(torch_seed(request.seed))
    objective, adapter = request.objective, request.adapter
    plan = plan_phase(request.seed, f"adapters.{objective.value}", settings, {data.name: data})
    dims = model.settings.matryoshka_dims
    phase, model.adapter_configs[adapter] = build_adapter(
        objective, settings, model.module, plan, {}, None, dims, adapter
    )
    nn.ParameterList(phase.heads.named().values()).to(model.module.device)
    return phase


@contextmanager
def _at_theta(module: TransformerModel, trained_theta: float | None) -> Iterator[None]:
    """Set the RoPE theta of training, and that of inference again however training ends."""
    theta = rope_theta(module.backbone)
    if trained_theta is not None:
        set_rope_theta(module.backbone, trained_theta)
    try:
        yield
    finally:
        if theta is not None:
            set_rope_theta(module.backbone, theta)


def scale_adapter(module: TransformerModel, adapter: str, strength: float) -> None:
    """Scale what an adapter changes, through the second factor of each of its products."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(module.backbone, adapter).items():
            if "lora_B" in name:
                parameter.mul_(strength)


def _calibration(encoder: Encoder, name: str, data: Dataset) -> dict[str, Calibration]:
    """Fit from the rows what the other adapters got from the training data."""
    rows = data.rows[:CALIBRATION_TEXTS]
    fitted = fit_calibration(
        encoder,
        [row_texts(row)[-1] for row in rows],
        [row.query for row in rows] if data.kind is RowKind.PAIRS else (),
        tasks=[name],
        offsets=bool(encoder.model.settings.binary_offsets),
    )
    return {setting: values[name] for setting, values in fitted.items()}


def _facts(
    request: AdaptRequest, settings: AdapterConfig, data: Dataset, scores: DevComparison | None
) -> dict[str, Any]:
    dev_file = None if request.dev is None else request.dev.name
    return {
        "task": request.task.value,
        "data": data.name,
        "data_sha256": data.sha256,
        "rows": len(data.rows),
        "kind": data.kind.value,
        "seed": request.seed,
        "strength": request.scale,
        "settings": settings.model_dump(mode="json", exclude={"sources", "long_sources"}),
        "dev": None if scores is None else {"file": dev_file, **scores.to_json()},
    }


def _section(
    request: AdaptRequest, facts: Mapping[str, Any], scores: DevComparison | None
) -> list[str]:
    """Write what the model card says of the adapter."""
    command = f"taskdistill adapt MODEL {facts['data']} --task {request.task.value}"
    command += f" --name {request.name}" if request.name else ""
    command += f" --strength {request.strength}" if request.strength is not None else ""
    lines = [
        (
            f"Added later on the base as it is: {facts['rows']:,} {facts['kind']} rows of "
            f"`{facts['data']}`, {facts['settings']['steps']} steps, seed {facts['seed']}, "
            f"{facts['strength']} of the change kept; serves {request.task.value}. "
            "No other adapter was changed."
        ),
        "",
        f"`{command}`",
    ]
    if scores is not None:
        lines += ["", f"On `{facts['dev']['file']}`: {describe(scores)}."]
    return lines
