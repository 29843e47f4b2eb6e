"""Configurations of models: what they may ask for, and transformers' own made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from taskdistill.errors import BadInput
from taskdistill.model.families import is_native, refuse_family
from taskdistill.model.safety import remote_code_keys

RawConfig = Mapping[str, Any]
"""A config.json as it was read: its keys are those of transformers and of a family's authors."""


def refuse_code(raw: RawConfig, path: Path, trust_remote_code: bool) -> None:
    """Refuse a configuration that needs code to run; a module of a family that transformers has
    itself (`auto_map`) is not needed.

    `path`: where it was read, for the message. Raises BadInput if a key names code that would run
    and the user did not allow it.
    """
    native = is_native(raw)
    named = [key for key in remote_code_keys(raw) if not (native and key == NATIVE_INSTEAD)]
    if not named or trust_remote_code:
        return
    kind = raw.get("model_type")
    family = (
        ""
        if native or kind is None
        else (
            f" for model_type {kind!r}, which transformers {transformers.__version__} does not have"
            " itself"
        )
    )
    raise BadInput(
        f"{path} names code to run ({', '.join(named)}){family}; pass trust_remote_code only if you"
        " have read that code and trust it, or use a model of a family in docs/families.md"
    )


NATIVE_INSTEAD = "auto_map"
"""The key that names modules of the folder; transformers' own class stands in for them wherever
there is one.
"""


def without_modules(raw: RawConfig) -> RawConfig:
    """Drop the names of a folder's modules from a configuration, at any depth."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items() if key != NATIVE_INSTEAD}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return {key: plain(value) for key, value in raw.items() if key != NATIVE_INSTEAD}


def make_config(
    raw: RawConfig, path: Path | str, *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Turn a configuration into transformers' own, refusing sizes that cannot be meant.

    `raw`: the configuration, with its `model_type`. `path`: where it stands, for messages.
    `trust_remote_code`: whether code named by the configuration's folder may run. Raises BadInput
    if the type is unknown or a size is absurd.
    """
    kind = raw.get("model_type")
    for key, limit in SIZE_LIMITS.items():
        value = raw.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            raise BadInput(f"{path}: {key} is {value!r}, at most {limit} is accepted")
    labels = raw.get("num_labels", 0)  # a name is made for each of them
    if isinstance(labels, bool) or not isinstance(labels, int) or not 0 <= labels <= MOST_LABELS:
        raise BadInput(f"{path}: num_labels is {labels!r}, at most {MOST_LABELS} is accepted")
    heads, hidden = raw.get("num_attention_heads", 0), raw.get("hidden_size", 0)
    if raw.get("head_dim") is None and heads and hidden % heads:
        raise BadInput(
            f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )
    groups = raw.get("num_key_value_heads")
    if groups is not None and (not isinstance(groups, int) or groups < 1 or heads % groups):
        raise BadInput(
            f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
        )
    if trust_remote_code and not is_native(raw) and not isinstance(path, str):
        with quiet_transformers(), readable(path):
            return AutoConfig.from_pretrained(
                path.parent, local_files_only=True, trust_remote_code=True
            )  # type: ignore[no-any-return]
    try:
        with quiet_transformers():
            config = AutoConfig.for_model(
                **{
                    key: value
                    for key, value in without_modules(raw).items()
                    if not key.startswith("_")
                }
            )
    except Exception as error:  # its validators raise classes of their own
        reason = " ".join(str(error).split())
        raise BadInput(
            f"{path}: transformers can make no configuration of model_type {kind!r} ({reason})"
        ) from None
    refuse_family(config, path)
    config.chunk_size_feed_forward = (
        0  # saves memory in padded batches, changes no state, and cannot cut a stream of any length
    )
    return config  # type: ignore[no-any-return]


def written(config: PretrainedConfig) -> dict[str, object]:
    """Give a configuration as it is written to config.json, from which `make_config` makes it
    again.
    """
    fields = config.to_diff_dict() | {"model_type": config.model_type}
    return {key: value for key, value in sorted(fields.items()) if not key.startswith("_")}


MOST_LABELS = 100_000

SIZE_LIMITS = {
    "num_hidden_layers": 512,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "vocab_size": 4_000_000,
    "num_attention_heads": 1_024,
    "max_position_embeddings": 16_777_216,
}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what loading code of a folder raises into one line; transformers' own faults pass."""
    try:
        yield
    except (OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{path}: the model cannot be loaded ({reason}); copy the whole repository, its *.py"
            " files included"
        ) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and load report off the terminal; faults are raised from the
    loading info instead.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
