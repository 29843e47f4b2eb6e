"""The published jina-embeddings-v5-text layout, read without running the code that it ships
(sections 2.3 to 2.7).

Two kinds of repositories are read: the combined one, with the base weights at the root and one LoRA
adapter a task, and the ones with a single adapter merged into the base. Both families go through
transformers' own classes: Qwen3, causal, and EuroBERT, bidirectional. The `auto_map` of these
repositories is not followed and their `*.py` files are never imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig

from taskdistill.errors import BadInput
from taskdistill.model.backbone import load_backbone, read_json
from taskdistill.model.configuration import RawConfig
from taskdistill.model.lora import load_adapter
from taskdistill.model.safety import TensorHeader, check_weights, remote_code_keys, task_folder
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import PROMPTS
from taskdistill.types import Pooling

MODEL_TYPE = "jina_embeddings_v5"
ARCHITECTURE = "JinaEmbeddingsV5Model"
MERGED = {"Qwen3Model": "qwen3", "EuroBertModel": "eurobert"}
"""Architecture of a repository with a merged adapter to its family."""

MATRYOSHKA_DIMS = (32, 64, 128, 256, 512, 768, 1024)

FAMILY_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "mask_token_id",
)
"""Keys of the configuration that reach the backbone; all others decide nothing here."""


@dataclass(frozen=True)
class JinaModel:
    """What a repository of this layout holds."""

    module: TransformerModel
    adapter_configs: dict[str, LoraConfig]
    """Task to adapter; empty for a repository with a merged adapter."""
    prompts: dict[str, str]
    matryoshka_dims: tuple[int, ...]


def recognises(folder: Path) -> bool:
    """Say whether a folder has this layout.

    Returns whether `config.json` names the combined architecture, or a merged one together with
    `task_names`.
    """
    if not (folder / "config.json").is_file():
        return False
    raw = read_json(folder / "config.json")
    merged = isinstance(raw.get("task_names"), list) and _architecture(raw) in MERGED
    return raw.get("model_type") == MODEL_TYPE or merged


def load(folder: Path) -> JinaModel:
    """Read a repository: backbone, last-token pooling and every adapter that `task_names` lists.

    Returns the model in float32 on the CPU, no adapter selected. Raises BadInput if a file is
    missing, damaged, too large or does not fit the others.
    """
    raw = read_json(folder / "config.json")
    backbone = load_backbone(
        folder, config=family_config(raw, check_weights(folder), folder / "config.json")
    )
    module = TransformerModel(backbone, Pooling.LAST)
    configs: dict[str, LoraConfig] = {}
    if raw.get("model_type") == MODEL_TYPE:
        tasks = raw.get("task_names")
        if not isinstance(tasks, list) or not tasks or len(set(map(str, tasks))) != len(tasks):
            raise BadInput(
                f"{folder}/config.json: task_names is {tasks!r}, needs a list of different task"
                " names"
            )
        for task in tasks:
            configs[task] = load_adapter(backbone, task, task_folder(folder, task))
            module.tasks.append(task)
        module.select(None)
    else:
        _refuse_other_pooling(folder)
    width = module.embedding_dim
    return JinaModel(
        module, configs, read_prompts(folder), (*(k for k in MATRYOSHKA_DIMS if k < width), width)
    )


def family_config(raw: RawConfig, header: Mapping[str, TensorHeader], path: Path) -> RawConfig:
    """Turn a configuration of this layout into that of its backbone's family.

    The family follows from the weights: only Qwen3 normalises queries and keys. Returns
    configuration for transformers' Qwen3 or EuroBERT. Raises BadInput if weights and architecture
    disagree, or a value inside names code.
    """
    family = (
        "qwen3" if any(name.endswith("self_attn.q_norm.weight") for name in header) else "eurobert"
    )
    merged = MERGED.get(_architecture(raw) or "")
    if merged is not None and merged != family:
        raise BadInput(
            f"{path} says {_architecture(raw)}, the weights are those of a {family} model; copy the"
            " repository again"
        )
    config = {key: raw[key] for key in FAMILY_KEYS if key in raw}
    if raw.get("use_sliding_window"):
        raise BadInput(f"{path}: use_sliding_window is on; this layout attends to the whole text")
    if code := remote_code_keys(config):
        raise BadInput(
            f"{path} names code to run ({', '.join(code)}); it is no copy of a published repository"
        )
    return {"model_type": family, "tie_word_embeddings": family == "qwen3", **config}


def _architecture(raw: RawConfig) -> str | None:
    named = raw.get("architectures")
    return str(named[0]) if isinstance(named, list) and len(named) == 1 else None


def read_prompts(folder: Path) -> dict[str, str]:
    """Read the prompts of a repository.

    Returns name to prompt; the published ones where the repository says none. Raises BadInput if
    they are no object of strings.
    """
    path = folder / "config_sentence_transformers.json"
    prompts = read_json(path).get("prompts") if path.is_file() else None
    if not prompts:
        return dict(PROMPTS)
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise BadInput(f"{path}: prompts is {prompts!r}, needs an object of strings")
    return dict(prompts)


def _refuse_other_pooling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        raw = read_json(path)
        if raw.get("pooling_mode") != "lasttoken" and raw.get("pooling_mode_lasttoken") is not True:
            raise BadInput(
                f"{path}: {json.dumps(raw)[:200]} is not last-token pooling, which this layout"
                " needs"
            )
