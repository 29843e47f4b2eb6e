"""The tokenizer and the prompts beside exported weights, as stock tools read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskdistill.io.sealed import dump_json
from taskdistill.model.model import Model
from taskdistill.tasks import Role

GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
"""The class that takes `tokenizer.json` as it is; a family's own class may rebuild it."""

REPLACED_KEYS = frozenset({"auto_map", "tokenizer_class", "backend", "is_local"})


def write_tokenizer(folder: Path, model: Model, prompts: Mapping[str, str]) -> None:
    """Write `tokenizer.json`, its settings, and the prompts for sentence-transformers."""
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), "utf-8")
    write_tokenizer_config(folder, model)
    config = {
        "prompts": dict(prompts),
        "default_prompt_name": Role.DOCUMENT.value,
        "similarity_fn_name": "cosine",
    }
    (folder / "config_sentence_transformers.json").write_text(dump_json(config), "utf-8")


def write_tokenizer_config(folder: Path, model: Model) -> None:
    """Write a tokenizer_config.json with which stock tools use tokenizer.json untouched.

    The settings of the model's source folder stay where they name no code.
    """
    source = model.source / "tokenizer_config.json"
    raw: dict[str, Any] = json.loads(source.read_text("utf-8")) if source.is_file() else {}
    config = {key: value for key, value in raw.items() if key not in REPLACED_KEYS}
    added = json.loads(model.tokenizer.to_json())["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    if "pad_token" not in config and special:
        padding = (token for token in special if "pad" in token.lower())
        config["pad_token"] = next(padding, special[0])
    config |= {
        "tokenizer_class": GENERIC_TOKENIZER,
        "model_max_length": model.settings.max_length,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(dump_json(config), "utf-8")
