"""The published jina-embeddings-v5-text layout, written: base at the root, one adapter a task, names that other programs look for.

No code is written. Like the published repositories, `auto_map` and `modules.json` name loading code; here they name it in the
published repository of the same family, so that a program that is told to trust remote code fetches it from there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.export.export import ExportJob
from taskdistill.export.formats.sentence_transformers import write_tokenizer_config
from taskdistill.export.parity import EXACT, compare
from taskdistill.io.folders import versions
from taskdistill.io.sealed import dump_json
from taskdistill.model.families import has_windows
from taskdistill.model.folder import Model, read_model, save_backbone
from taskdistill.model.golden import embed_with
from taskdistill.model.jina import ARCHITECTURE, FAMILY_KEYS, MODEL_TYPE
from taskdistill.model.lora import save_adapter
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import PROMPTS, Task
from taskdistill.types import Pooling

PUBLISHED = {
    "qwen3": "jinaai/jina-embeddings-v5-text-small",
    "eurobert": "jinaai/jina-embeddings-v5-text-nano",
}
"""Family to the repository whose loading code reads it."""


def check(model: Model) -> None:
    """Refuse a model that the readers of this layout would compute differently.

    Args:
        model: The model.

    Raises:
        BadInput: If the layout cannot hold it.
    """
    _fitting(model)


def write(export: ExportJob) -> None:
    """Write the layout and compare every task through our reader of it.

    Args:
        export: Model, folder and reference.
    """
    model, folder = export.model, export.folder
    module = _fitting(model)
    save_backbone(module, folder)
    (folder / "config.json").write_text(
        dump_json(layout_config(module, list(model.adapter_configs))), "utf-8"
    )
    for task, config in model.adapter_configs.items():
        base = (
            PUBLISHED[module.backbone.config.model_type]
            if model.name.startswith("jinaai/")
            else Path(model.name).name
        )
        save_adapter(
            module.backbone,
            task,
            replace(config, exclude_modules=None),
            folder / "adapters" / task,
            base,
        )
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), "utf-8")
    write_tokenizer_config(folder, model)
    if (model.source / "special_tokens_map.json").is_file():
        shutil.copyfile(
            model.source / "special_tokens_map.json", folder / "special_tokens_map.json"
        )
    _write_modules(folder, PUBLISHED[module.backbone.config.model_type])
    embed = embed_with(read_model(folder))
    checked = f"taskdistill {versions()['taskdistill']}"
    for name, reference in export.reference.items():
        export.results.append(
            compare(f"adapters/{name}", checked, name, reference, embed(export.texts, name), EXACT)
        )
    export.notes.append(
        "the published loading code, vLLM and llama.cpp were not run here; tests hold the names and files that they look for"
    )


def layout_config(module: TransformerModel, tasks: list[str]) -> dict[str, Any]:
    """Make the layout's config.json (sections 2.3, 2.4, 2.7).

    Args:
        module: The model.
        tasks: Its adapters, in order.

    Returns:
        Content of config.json.
    """
    config = module.backbone.config
    family, code = config.model_type, PUBLISHED[config.model_type]
    made: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "task_names": tasks,
        "auto_map": {
            "AutoConfig": f"{code}--configuration_jina_embeddings_v5.JinaEmbeddingsV5Config",
            "AutoModel": f"{code}--modeling_jina_embeddings_v5.{ARCHITECTURE}",
        },
        "model_type": MODEL_TYPE,
    }
    made |= {
        key: getattr(config, key) for key in FAMILY_KEYS if getattr(config, key, None) is not None
    }
    made.pop("rope_parameters", None)
    made |= {"rope_theta": config.rope_parameters["rope_theta"], "rope_scaling": None}
    made |= {
        "tie_word_embeddings": family == "qwen3",
        "is_decoder": family == "qwen3",
        "torch_dtype": "float32",
    }
    return made


def _fitting(model: Model) -> TransformerModel:
    module, order = model.module, [task.value for task in Task]
    family = module.backbone.config.model_type if isinstance(module, TransformerModel) else "static"
    if not isinstance(module, TransformerModel) or family not in PUBLISHED:
        raise BadInput(
            f"the jina-v5 layout holds Qwen3 and EuroBERT models, {model.name} is a {family} model; export it as sentence-transformers"
        )
    rope = module.backbone.config.rope_parameters or {}
    causal = getattr(module.backbone.config, "is_causal", None)
    faults = [
        *([f"pooling {module.pooling.value}"] if module.pooling is not Pooling.LAST else []),
        *(
            [f"prompts {dict(model.settings.prompts)}"]
            if dict(model.settings.prompts) != {str(k): v for k, v in PROMPTS.items()}
            else []
        ),
        *(
            [f"tasks {module.tasks}"]
            if Task.RETRIEVAL.value not in module.tasks or not set(module.tasks) <= set(order)
            else []
        ),
        *(
            [f"RoPE type {rope.get('rope_type')}"]
            if rope.get("rope_type", "default") != "default"
            else []
        ),
        *(
            ["bidirectional attention in a Qwen3 model"]
            if family == "qwen3" and causal is False
            else []
        ),
        *(["windowed attention"] if has_windows(module.backbone.config) else []),
    ]
    if faults:
        raise BadInput(
            f"{model.name} has {', '.join(faults)}; the readers of the jina-v5 layout take the last token, whole texts, the prompts "
            f"'Query: ' and 'Document: ', plain RoPE, and adapters named {', '.join(order)}, retrieval among them"
        )
    model.adapter_configs = {
        task: model.adapter_configs[task] for task in order if task in module.tasks
    }
    return module


def _write_modules(folder: Path, code: str) -> None:
    modules = [
        {
            "idx": 0,
            "name": "transformer",
            "path": "",
            "type": f"{code}--custom_st.Transformer",
            "kwargs": ["task", "truncate_dim"],
        }
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
    st = {
        "prompts": dict(PROMPTS),
        "default_prompt_name": "document",
        "similarity_fn_name": "cosine",
    }
    (folder / "config_sentence_transformers.json").write_text(dump_json(st), "utf-8")
