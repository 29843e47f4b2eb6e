"""The layout of sentence-transformers: what a folder says of its modules, pooling, prompts and
lengths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.model.backbone import read_json
from taskdistill.model.configuration import refuse_code
from taskdistill.types import Pooling

MODULES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Normalize": "sentence_transformers.models.Normalize",
    "StaticEmbedding": "sentence_transformers.models.StaticEmbedding",
}
STATIC_LENGTH = 1_000_000
"""Tokens that a static model of another program reads: it has no positions."""

POOLING_NAMES = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}


def module_kinds(folder: Path) -> list[str]:
    """List the modules of a sentence-transformers folder.

    Returns last parts of their types; the first is Transformer or StaticEmbedding. Raises BadInput
    if there is no such list, or it names a module that is not read.
    """
    path = folder / "modules.json"
    if not path.is_file():
        what = (
            "an export for other programs; name the model that it was made from"
            if (folder / "parity.json").is_file()
            else ""
        )
        raise BadInput(
            f"{folder} has no modules.json: it is"
            f" {what or 'no sentence-transformers folder, or it was only half copied'}"
        )
    try:
        entries = json.loads(path.read_text("utf-8"))
        types = [str(entry["type"]) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"{path} is not a list of modules ({error})") from None
    kinds = [name.rsplit(".", 1)[-1] for name in types]
    for name, kind in zip(types, kinds, strict=True):
        if not re.fullmatch(r"sentence_transformers(\.\w+)+", name) or kind not in MODULES:
            raise BadInput(
                f"{path} asks for the module {name!r}; only {', '.join(MODULES)} of"
                " sentence-transformers are read, and no code is run"
            )
    if kinds[:1] not in (["Transformer"], ["StaticEmbedding"]):
        raise BadInput(
            f"{path}: the first module is {kinds[:1]}, needs Transformer or StaticEmbedding"
        )
    return kinds


def pooling_config(pooling: Pooling, width: int) -> dict[str, int | bool]:
    """Write a pooling the way sentence-transformers 5 and 6 both read it.

    Returns content of `1_Pooling/config.json`.
    """
    return {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling is Pooling.CLS,
        "pooling_mode_mean_tokens": pooling is Pooling.MEAN,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": pooling is Pooling.LAST,
        "include_prompt": True,
    }


def read_pooling(folder: Path, kinds: Sequence[str]) -> Pooling:
    """Read the pooling of a sentence-transformers folder.

    Returns the pooling; mean where no module says one. Raises BadInput if it is one that is not
    read.
    """
    if "Pooling" not in kinds:
        return Pooling.MEAN
    raw = read_json(folder / "1_Pooling" / "config.json")
    refuse_code(raw, folder / "1_Pooling" / "config.json", trust_remote_code=False)
    named = raw.get("pooling_mode")
    if named is None:
        on = [
            key for key, value in raw.items() if key.startswith("pooling_mode_") and value is True
        ]
        named = (
            on[0].removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            if len(on) == 1
            else on
        )
    if named not in POOLING_NAMES:
        raise BadInput(
            f"{folder}/1_Pooling/config.json: pooling {named!r} is not read; needs one of"
            f" {', '.join(POOLING_NAMES)}"
        )
    return POOLING_NAMES[str(named)]


def named_prompts(folder: Path) -> dict[str, str]:
    """Read the prompts of a sentence-transformers folder.

    Raises BadInput if the file holds something else under `prompts`.
    """
    path = folder / "config_sentence_transformers.json"
    prompts = (read_json(path).get("prompts") if path.exists() else None) or {}
    if not isinstance(prompts, dict):
        raise BadInput(
            f"{path}: prompts is a {type(prompts).__name__}, needs an object of names and texts;"
            " copy the folder again"
        )
    return {name: text for name, text in prompts.items() if isinstance(text, str)}


def longest_input(folder: Path, model_limit: int) -> int:
    """Read how many tokens a sentence-transformers folder lets its model read.

    Returns tokens of one text.
    """
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        length = read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(length, int | float) and 0 < length < model_limit:
            return int(length)
        if length and name == "sentence_bert_config.json":
            break
    return model_limit
