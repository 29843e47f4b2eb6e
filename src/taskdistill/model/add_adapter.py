"""One more adapter in a model folder that is there: everything else is copied byte for byte."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.io.folders import check_folder, read_manifest, write_folder
from taskdistill.model.golden import BASE, DECIMALS, FILE, embed_with, golden_vectors, read_golden
from taskdistill.model.lora import save_adapter
from taskdistill.model.model import Model
from taskdistill.model.safety import task_folder
from taskdistill.model.settings import Calibration
from taskdistill.model.student import TransformerModel

CARD = "README.md"


def check_new_adapter(folder: Path, model: Model, name: str, *, replacing: bool) -> None:
    """Refuse an adapter's name before anything is trained.

    `replacing`: whether one of that name may be replaced. Raises BadInput if the name cannot be
    one, is taken, or replaces nothing.
    """
    task_folder(folder, name)
    if name == BASE:
        raise BadInput(
            f"an adapter cannot be called {BASE!r}, which stands for the vectors without adapter;"
            " give another --name"
        )
    if name in model.adapter_configs and not replacing:
        raise BadInput(
            f"{folder} already has an adapter {name!r}; give the new one another --name, or"
            " --replace to train that one anew"
        )
    if name not in model.adapter_configs and replacing:
        known = ", ".join(model.adapter_configs) or "none"
        raise BadInput(
            f"--replace has no effect: {folder} has no adapter {name!r} (it has {known}); leave"
            " it out"
        )


def add_adapter(
    folder: Path,
    model: Model,
    name: str,
    *,
    task: str,
    calibrated: Mapping[str, Calibration],
    section: Sequence[str],
    facts: Mapping[str, object],
) -> None:
    """Write a model folder again with one adapter more, or another one in place of one, whole or
    not at all.

    `model`: the model with the adapter attached, its configuration in `adapter_configs`; settings
    are completed. `calibrated`: `int8_ranges` and, where the model has them, `binary_offsets` of
    this adapter, as plain data. Raises BadInput if the folder was changed since it was read.
    """
    manifest = read_manifest(folder, "model")
    assert isinstance(model.module, TransformerModel)
    if faults := check_folder(folder, manifest):
        raise BadInput(
            f"{folder} was changed while the adapter was trained: {faults[0]}; nothing was written"
        )
    anew = name in manifest["tasks"]
    embed = embed_with(model)
    golden = read_golden(folder) or golden_vectors(embed, manifest["tasks"])
    golden["vectors"][name] = np.round(
        embed(golden["texts"], name).astype(np.float64), DECIMALS
    ).tolist()
    old = model.settings
    named = {key: value for key, value in old.adapter_tasks.items() if key != name} | (
        {name: task} if name != task else {}
    )
    settings = replace(
        old,
        adapter_tasks=named,
        extends=[] if anew else [*model.earlier_hashes, model.hash],
        int8_ranges={**old.int8_ranges, name: calibrated["int8_ranges"]},
        binary_offsets=(
            {**old.binary_offsets, name: calibrated["binary_offsets"]}
            if "binary_offsets" in calibrated
            else old.binary_offsets
        ),
    )
    known = {"kind", "format_version", "inputs", "created_by", "files"}
    meta = {key: value for key, value in manifest.items() if key not in known}
    meta |= {
        "tasks": [*(each for each in manifest["tasks"] if each != name), name],
        "settings": asdict(settings),
    }
    meta["adapted"] = {**manifest.get("adapted", {}), name: dict(facts)}
    with write_folder(
        folder, "model", meta=meta, inputs=manifest.get("inputs"), replace=True
    ) as beside:
        for each in manifest["files"]:
            (beside / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / each, beside / each)
        place = task_folder(beside, name)
        if place.exists():
            shutil.rmtree(place)
        save_adapter(
            model.module.backbone, name, model.adapter_configs[name], place, base_name=model.name
        )
        (beside / FILE).write_text(
            json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )
        card = beside / CARD
        text = card.read_text("utf-8") if card.is_file() else f"# {model.name}\n"
        card.write_text(with_section(text, f"Adapter `{name}`", section), "utf-8")


def with_section(text: str, title: str, lines: Sequence[str]) -> str:
    """Put a section at the end of a Markdown text, in place of one with the same title.

    `title`: heading of the second level. Returns the text with the section.
    """
    rest = re.sub(rf"(?ms)^## {re.escape(title)}\n.*?(?=^## |\Z)", "", text).rstrip()
    return "\n".join([rest, "", f"## {title}", *lines]) + "\n"
