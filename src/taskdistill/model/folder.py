"""The model folder: a plain sentence-transformers folder with named adapters and what this package
adds, written and read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from taskdistill.errors import BadInput
from taskdistill.io.atomic import restore
from taskdistill.io.folders import check_folder, read_manifest, write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.model import jina
from taskdistill.model.backbone import load_backbone, longest_text
from taskdistill.model.configuration import written
from taskdistill.model.families import has_pooler
from taskdistill.model.fingerprint import fingerprint, fingerprint_files, space_id
from taskdistill.model.folder_check import check_prompts, check_settings, check_unlisted
from taskdistill.model.golden import check_vectors
from taskdistill.model.layout import (
    MODULES,
    STATIC_LENGTH,
    longest_input,
    module_kinds,
    named_prompts,
    pooling_config,
    read_pooling,
)
from taskdistill.model.lora import load_adapter, save_adapter
from taskdistill.model.model import Model, base_space_id
from taskdistill.model.projection import Projection
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.safety import check_folder_files, check_safetensors, task_folder
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.types import MANIFEST

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "added_tokens.json",
)


def write_model(
    path: Path,
    model: Model,
    *,
    meta: Mapping[str, object] | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    inputs: Mapping[str, str] | None = None,
    replace_existing: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    `model`: what; it gets the ids that the folder has. `extra_files`: name to content of further
    files, such as the model card. `inputs`: name to hash of what the model was made from.
    `replace_existing`: whether a folder at `path` is replaced.
    """
    fields = dict(meta or {})
    with write_folder(
        path, "model", replace=replace_existing, inputs=inputs, meta=fields
    ) as folder:
        fill_folder(folder, model)
        for name, content in (extra_files or {}).items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        # Settings hold ids that are made of the files, so the files have to stand first.
        model.files = fingerprint_files(folder)
        model.settings = replace(
            model.settings, space_id=model.space_id, former_space_ids=[base_space_id(model)]
        )
        fields |= {
            "name": model.name,
            "tasks": list(model.adapter_configs),
            "settings": asdict(model.settings),
        } | fields


def fill_folder(folder: Path, model: Model) -> None:
    """Write a model's files into a folder that is being made."""
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), "utf-8")
    if isinstance(model.module, StaticModel):
        table = model.module.table.detach().cpu().contiguous()
        save_file(
            {"embedding.weight": table}, folder / "model.safetensors", metadata={"format": "pt"}
        )
        chain = [("StaticEmbedding", ""), ("Normalize", "1_Normalize")]
    else:
        save_backbone(model.module, folder)
        for name in TOKENIZER_FILES:
            if (model.source / name).is_file():
                shutil.copyfile(model.source / name, folder / name)
        chain = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        limits: dict[str, object] = {
            "max_seq_length": model.settings.max_length,
            "do_lower_case": False,
        }
        if has_pooler(model.module.backbone.config):
            limits["model_args"] = {"add_pooling_layer": False}
        _write(folder / "sentence_bert_config.json", limits)
        (folder / "1_Pooling").mkdir()
        _write(
            folder / "1_Pooling" / "config.json",
            pooling_config(model.module.pooling, model.module.embedding_dim),
        )
        for task, config in model.adapter_configs.items():
            save_adapter(
                model.module.backbone,
                task,
                config,
                folder / "adapters" / task,
                base_name=model.name,
            )
    for _, place in chain[1:]:
        (folder / place).mkdir(exist_ok=True)
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": MODULES[kind]}
        for i, (kind, place) in enumerate(chain)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
    _write(folder / "config_sentence_transformers.json", _st_config(model.settings.prompts))
    if model.projection is not None:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in model.projection.state_dict().items()},
            folder / "projection.safetensors",
        )


def read_model(folder: Path, *, trust_remote_code: bool = False) -> Model:
    """Read one of our model folders or any sentence-transformers folder.

    `trust_remote_code`: whether code named by the folder may run. Returns the model on the CPU,
    with every adapter attached and none selected. Raises BadInput if the folder is incomplete,
    damaged, or of a kind that is not read.
    """
    manifest = open_model(folder)
    model = (
        _read_jina(folder)
        if jina.recognises(folder)
        else _read_sentence_transformers(folder, trust_remote_code)
    )
    model.files = fingerprint_files(folder, manifest.get("files"))
    model.settings = replace(model.settings, former_space_ids=[fingerprint(model.files)[:32]])
    if manifest.get("kind") == "model":
        _add_settings(model, folder, manifest)
    elif (
        not manifest
        and not jina.recognises(folder)
        and ((folder / "adapters").exists() or (folder / "projection.safetensors").exists())
    ):
        raise BadInput(
            f"{folder} has adapters or a projection but no {MANIFEST}: it was only half copied;"
            " copy it again"
        )
    model.module.eval()
    model.settings = replace(model.settings, space_id=model.space_id)
    check_prompts(model.settings.prompts, model.tokenizer, model.settings.max_length, folder)
    check_vectors(model, folder)
    return model


READ_KINDS = ("model", "export")


def open_model(folder: Path) -> dict[str, Any]:
    """Check the files of a model folder.

    Returns its manifest; empty for a folder of another program. Raises BadInput if it is damaged,
    of another kind, or holds a file that a loader would read and the manifest does not list.
    """
    restore(folder)
    manifest = read_manifest(folder) if os.path.lexists(folder / MANIFEST) else {}
    if manifest.get("kind", "model") not in READ_KINDS:
        raise BadInput(f"{folder} is a {manifest['kind']!r} folder, but a model is needed here")
    if faults := check_folder(folder, manifest):
        raise BadInput(
            f"{folder} is damaged: {'; '.join(faults[:3])}; copy it again or run the training"
            " command again"
        )
    check_folder_files(folder)
    if manifest:
        check_unlisted(folder, manifest["files"])
    return manifest


def _read_sentence_transformers(folder: Path, trust_remote_code: bool) -> Model:
    kinds = module_kinds(folder)
    if kinds[0] == "StaticEmbedding":
        table = _static_table(folder)
        module: TransformerModel | StaticModel = StaticModel(table)
        tokenizer = TextTokenizer.load(folder, special=False)
        _check_rows(tokenizer, len(table), folder)
        settings = ModelSettings(max_length=STATIC_LENGTH)
    else:
        backbone = load_backbone(folder, trust_remote_code=trust_remote_code)
        module = TransformerModel(backbone, read_pooling(folder, kinds))
        tokenizer = TextTokenizer.load(folder)
        _check_rows(tokenizer, backbone.config.vocab_size, folder)
        settings = ModelSettings(max_length=longest_input(folder, longest_text(backbone, 512)))
    settings = replace(
        settings, prompts=named_prompts(folder), matryoshka_dims=(module.embedding_dim,)
    )
    return Model(
        module=module, tokenizer=tokenizer, settings=settings, name=folder.name, source=folder
    )


def _read_jina(folder: Path) -> Model:
    read = jina.load(folder)
    tokenizer = TextTokenizer.load(folder)
    _check_rows(tokenizer, read.module.backbone.config.vocab_size, folder)
    settings = ModelSettings(
        prompts=read.prompts,
        max_length=read.module.backbone.config.max_position_embeddings,
        matryoshka_dims=read.matryoshka_dims,
        rope_theta=rope_theta(read.module.backbone),
        task_required=bool(read.adapter_configs),
    )
    return Model(
        module=read.module,
        tokenizer=tokenizer,
        settings=settings,
        name=folder.name,
        source=folder,
        adapter_configs=read.adapter_configs,
    )


def _check_rows(tokenizer: TextTokenizer, rows: int, folder: Path) -> None:
    if tokenizer.rows > rows:
        raise BadInput(
            f"{folder}/tokenizer.json has ids up to {tokenizer.rows - 1}, the token table only"
            f" {rows} rows"
        )


def manifest_settings(
    manifest: Mapping[str, Any], width: int, files: Mapping[str, str], folder: Path
) -> ModelSettings:
    """Read the settings of one of our model folders.

    Raises BadInput if a field is missing or does not fit the model.
    """
    try:
        settings = ModelSettings(
            **manifest["settings"]
            | {"matryoshka_dims": tuple(manifest["settings"]["matryoshka_dims"])}
        )
        check_settings(settings, manifest["tasks"], width, folder / MANIFEST)
        str(manifest["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{folder}/{MANIFEST} lacks a field or holds another type ({error}); copy the folder"
            " again"
        ) from None
    # Since manifests say the present id too, the earlier ones hold only where nothing of the space
    # was changed since the folder was written; older manifests say nothing but an earlier one.
    present = space_id(files, settings)
    if manifest["format_version"] >= 2:
        former = settings.former_space_ids if settings.space_id == present else []
    else:
        former = [settings.space_id] if settings.space_id else []
    return replace(settings, former_space_ids=former)


def _add_settings(model: Model, folder: Path, manifest: Mapping[str, Any]) -> None:
    model.settings = manifest_settings(manifest, model.module.embedding_dim, model.files, folder)
    model.name = str(manifest["name"])
    if isinstance(model.module, TransformerModel):
        if model.settings.rope_theta is not None:
            set_rope_theta(model.module.backbone, model.settings.rope_theta)
        for task in manifest["tasks"]:
            model.adapter_configs[task] = load_adapter(
                model.module.backbone, task, task_folder(folder, task)
            )
            model.module.tasks.append(task)
        model.module.select(None)
    if (folder / "projection.safetensors").is_file():
        check_safetensors(folder / "projection.safetensors")
        tensors = load_file(folder / "projection.safetensors")
        projection = Projection(tensors["weight"].shape[1], tensors["weight"].shape[0])
        projection.load_state_dict(tensors)
        model.projection = projection.eval()


def save_backbone(module: TransformerModel, folder: Path) -> None:
    """Write config.json and the base weights under their plain names, whether adapters are attached
    or not.
    """
    tensors, seen = {}, set()
    for name, tensor in module.backbone.state_dict(keep_vars=True).items():
        # Tied tensors are written once, for safetensors refuses shared memory.
        if "lora_" in name or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name.replace(".base_layer.", ".")] = tensor.detach().cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = written(module.backbone.config) | {
        "architectures": [type(module.backbone).__name__],
        "dtype": "float32",
    }
    _write(folder / "config.json", dict(sorted(config.items())))


def _st_config(prompts: Mapping[str, str]) -> dict[str, object]:
    return {
        "prompts": dict(prompts),
        "default_prompt_name": "document" if "document" in prompts else None,
        "similarity_fn_name": "cosine",
    }


def _write(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(dump_json(value), "utf-8")


def _static_table(folder: Path) -> torch.Tensor:
    check_safetensors(folder / "model.safetensors")
    tensors = load_file(folder / "model.safetensors")
    name = next((key for key in ("embedding.weight", "embeddings") if key in tensors), None)
    if name is None or tensors[name].ndim != 2 or not torch.isfinite(tensors[name]).all():
        raise BadInput(
            f"{folder}/model.safetensors holds no finite token table `embedding.weight`, but"
            f" {sorted(tensors)[:3]}"
        )
    table: torch.Tensor = tensors[name].float()
    return table
