"""The published jina-embeddings-v5-text layout: base at the root, one adapter a task.

No code is written. Like the published repositories, `auto_map` and `modules.json` name loading
code; here they name it in the published repository of the same family, so that a program that is
told to trust remote code fetches it from there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.parity import EXACT
from taskdistill.export.tokenizer_files import write_tokenizer
from taskdistill.io.sealed import dump_json
from taskdistill.model.families import has_windows
from taskdistill.model.folder import read_model, save_backbone
from taskdistill.model.golden import embed_with
from taskdistill.model.jina import ARCHITECTURE, FAMILY_KEYS, MODEL_TYPE
from taskdistill.model.lora import save_adapter
from taskdistill.model.model import Model
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import PROMPTS, Task
from taskdistill.types import Pooling
from taskdistill.versions import versions

PUBLISHED = {
    "qwen3": "jinaai/jina-embeddings-v5-text-small",
    "eurobert": "jinaai/jina-embeddings-v5-text-nano",
}
"""Family to the repository whose loading code reads it."""

SPECIAL_TOKENS = "special_tokens_map.json"


class JinaV5Layout:
    """Every adapter unmerged; every task is compared through our reader of the layout."""

    usage = (
        'Encoder.load(folder).encode(["a text"], task="{task}")'
        "     # taskdistill; vLLM merges the task of --hf-overrides"
    )
    all_tasks = True

    def check(self, model: Model) -> None:
        """Refuse what readers of the layout compute differently; put adapters in its order."""
        _check_holds(model)
        model.adapter_configs = {
            task.value: model.adapter_configs[task]
            for task in Task
            if task.value in model.module.tasks
        }

    def write(self, job: ExportJob) -> None:
        """Write the layout, read it back and compare."""
        model, folder, module = job.model, job.folder, job.model.module
        assert isinstance(module, TransformerModel)
        code = PUBLISHED[module.backbone.config.model_type]
        save_backbone(module, folder)
        (folder / "config.json").write_text(
            dump_json(_layout_config(module, code, list(model.adapter_configs))), "utf-8"
        )
        base = code if model.name.startswith("jinaai/") else Path(model.name).name
        for task, config in model.adapter_configs.items():
            config = replace(config, exclude_modules=None)
            save_adapter(module.backbone, task, config, folder / "adapters" / task, base_name=base)
        write_tokenizer(folder, model, PROMPTS)
        if (model.source / SPECIAL_TOKENS).is_file():
            shutil.copyfile(model.source / SPECIAL_TOKENS, folder / SPECIAL_TOKENS)
        _write_modules(folder, code)
        embed = embed_with(read_model(folder))
        reader = f"taskdistill {versions()['taskdistill']}"
        for name in job.reference:
            job.compare(f"adapters/{name}", reader, embed(job.texts, name), EXACT, task=name)
        job.notes.append(
            "the published loading code, vLLM and llama.cpp were not run here; tests hold the "
            "names and files that they look for"
        )


def _layout_config(module: TransformerModel, code: str, tasks: list[str]) -> dict[str, Any]:
    """Make the layout's config.json (sections 2.3, 2.4, 2.7 of its description)."""
    config = module.backbone.config
    qwen3 = config.model_type == "qwen3"
    layout: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "task_names": tasks,
        "auto_map": {
            "AutoConfig": f"{code}--configuration_jina_embeddings_v5.JinaEmbeddingsV5Config",
            "AutoModel": f"{code}--modeling_jina_embeddings_v5.{ARCHITECTURE}",
        },
        "model_type": MODEL_TYPE,
    }
    layout |= {
        key: getattr(config, key) for key in FAMILY_KEYS if getattr(config, key, None) is not None
    }
    # The published code reads the older pair of keys.
    layout.pop("rope_parameters", None)
    return layout | {
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": qwen3,
        "is_decoder": qwen3,
        "torch_dtype": "float32",
    }


def _check_holds(model: Model) -> None:
    module, names = model.module, [task.value for task in Task]
    family = module.backbone.config.model_type if isinstance(module, TransformerModel) else "static"
    if not isinstance(module, TransformerModel) or family not in PUBLISHED:
        raise BadInput(
            f"the jina-v5 layout holds Qwen3 and EuroBERT models, {model.name} is a {family} "
            "model; export it as sentence-transformers"
        )
    config, prompts, tasks = module.backbone.config, dict(model.settings.prompts), module.tasks
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    faults = {
        f"pooling {module.pooling.value}": module.pooling is not Pooling.LAST,
        f"prompts {prompts}": prompts != {str(key): text for key, text in PROMPTS.items()},
        f"tasks {tasks}": Task.RETRIEVAL.value not in tasks or not set(tasks) <= set(names),
        f"RoPE type {rope_type}": rope_type != "default",
        "bidirectional attention in a Qwen3 model": (
            family == "qwen3" and getattr(config, "is_causal", None) is False
        ),
        "windowed attention": has_windows(config),
    }
    if any(faults.values()):
        raise BadInput(
            f"{model.name} has {', '.join(text for text, fault in faults.items() if fault)}; the "
            "readers of the jina-v5 layout take the last token, whole texts, the prompts "
            "'Query: ' and 'Document: ', plain RoPE, and adapters named "
            f"{', '.join(names)}, retrieval among them"
        )


def _write_modules(folder: Path, code: str) -> None:
    transformer = {
        "idx": 0,
        "name": "transformer",
        "path": "",
        "type": f"{code}--custom_st.Transformer",
        "kwargs": ["task", "truncate_dim"],
    }
    (folder / "modules.json").write_text(json.dumps([transformer], indent=2) + "\n", "utf-8")


FORMAT: ExportFormat = JinaV5Layout()
