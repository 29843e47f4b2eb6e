"""LoRA adapters through peft: attach, select, save and load by name, merge; dropout from a
generator of its own.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskdistill.errors import BadInput
from taskdistill.io.sealed import dump_json
from taskdistill.model.backbone import read_json
from taskdistill.model.families import has_pooler
from taskdistill.model.layers import layers_of
from taskdistill.model.safety import check_file, check_safetensors

PREFIX = "base_model.model."
_drop = threading.local()


class SeededDropout(nn.Module):
    """Dropout whose mask comes from the generator of the running thread.

    Because the generator is set per micro-batch, a second forward pass drops the same entries as
    the first, and the number of workers changes no number.
    """

    def __init__(self, p: float) -> None:
        """Set the share of entries dropped. `p`: between 0 and 1."""
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Drop entries in training, if a generator is set.

        Returns the same shape, scaled to the same expectation.
        """
        generator: torch.Generator | None = getattr(_drop, "generator", None)
        if generator is None or self.p == 0 or not self.training:
            return values
        *before, tokens, width = values.shape
        first, total = getattr(_drop, "extent", None) or (0, tokens)
        sampled = torch.empty((*before, total, width), device=values.device).bernoulli_(
            1 - self.p, generator=generator
        )
        keep = sampled.narrow(-2, first, tokens)
        return values * (keep / (1 - self.p)).to(values.dtype)


def seed_dropout(generator: torch.Generator | None, extent: tuple[int, int] | None = None) -> None:
    """Set where this thread's dropout masks come from.

    `generator`: a generator on the model's device, or None to drop nothing. `extent`: first token
    of the stream that follows and the tokens of the whole that it is a part of: masks are drawn for
    the whole, so that a part has those of its place. None for a stream of its own.
    """
    _drop.generator, _drop.extent = generator, extent


EXPERT_MAPS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Maps that peft takes for parts of fused experts wherever a family has such experts."""


def linear_names(backbone: nn.Module) -> list[str]:
    """Name every kind of linear map in the layers that an adapter can be added to (section 2.6: all
    seven).

    In a mixture of experts these are the maps outside the feed-forward parts: the experts are no
    linear maps of their own.
    """
    names, layers = set(), layers_of(backbone)
    for name, module in layers.named_modules():
        if (
            isinstance(module, nn.Linear)
            and type(module).forward is nn.Linear.forward
            and ".lora_" not in name
        ):
            names.add(name.removesuffix(".base_layer").rsplit(".", 1)[-1])
    experts = any(
        parameter.ndim == 3 for name, parameter in layers.named_parameters() if ".lora_" not in name
    )
    return sorted(names - EXPERT_MAPS if experts else names)


def lora_config(
    backbone: nn.Module,
    *,
    rank: int = 32,
    alpha: int = 32,
    dropout: float = 0.1,
    targets: list[str] | None = None,
) -> LoraConfig:
    """Describe an adapter as the paper does (section 2.6).

    `alpha`: scale; the update is `alpha / rank * B A`. `targets`: names of linear maps; None for
    all of every layer. Raises BadInput if a target is not a linear map of the model, or it has
    none.
    """
    known = linear_names(backbone)
    if not known:
        raise BadInput(
            f"a {type(backbone).__name__} has no linear maps in its layers that an adapter could be"
            " added to; use another family"
        )
    chosen = known if targets is None else targets
    if unknown := [name for name in chosen if name not in known]:
        raise BadInput(
            f"target_modules {unknown} are no linear maps of this backbone, which has {known}"
        )
    return LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(chosen),
        bias="none",
        init_lora_weights="gaussian",
    )


def attach(backbone: nn.Module, task: str, config: LoraConfig) -> None:
    """Add a fresh adapter: A normal with deviation 1/rank, B zero, so that nothing changes at
    first.

    `backbone`: the model, changed in place. Raises BadInput if peft refuses a target of this
    family.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Already found a `peft_config`"
        )  # several adapters are meant
        try:
            inject_adapter_in_model(config, backbone, adapter_name=task)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"no adapter can be added to a {type(backbone).__name__}: {reason}; name other"
                " target_modules"
            ) from None
    for module in backbone.modules():
        if isinstance(module, LoraLayer) and task in module.lora_dropout:
            module.lora_dropout[task] = SeededDropout(config.lora_dropout)


def set_active_adapter(backbone: nn.Module, task: str | None) -> None:
    """Switch adapters on or off. `task`: name of the adapter to use, or None for the base."""
    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(task is not None)
            if task is not None:
                module.set_adapter(task)


def adapter_parameters(backbone: nn.Module, task: str) -> dict[str, nn.Parameter]:
    """Collect an adapter's weights under the names of peft's files.

    Returns `base_model.model.<module>.lora_A.weight` and so on, to the parameters.
    """
    result: dict[str, nn.Parameter] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, LoraLayer) and task in module.lora_A:
            result[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A[task].weight
            result[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B[task].weight
    return result


def save_adapter(
    backbone: nn.Module, task: str, config: LoraConfig, folder: Path, *, base_name: str
) -> None:
    """Write an adapter in peft's format.

    `folder`: folder to fill; made if missing. `base_name`: name of the base model for the file;
    never a path of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: p.detach().cpu().contiguous().clone()
        for name, p in adapter_parameters(backbone, task).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields: dict[str, Any] = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    fields |= {"base_model_name_or_path": base_name, "inference_mode": True}
    if isinstance(backbone, PreTrainedModel) and has_pooler(backbone.config):
        fields["target_modules"] = _two_part_names(backbone, task)
    (folder / "adapter_config.json").write_text(dump_json(fields), "utf-8")


def _two_part_names(backbone: nn.Module, task: str) -> list[str]:
    """Name an adapter's targets so that the linear map of a pooler, which other programs add, is
    none of them.
    """
    targets = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, LoraLayer) and task in module.lora_A
    ]
    return sorted({".".join(name.split(".")[-2:]) for name in targets})


def load_adapter(backbone: nn.Module, task: str, folder: Path) -> LoraConfig:
    """Read an adapter in peft's format and attach it.

    Raises BadInput if the files do not fit the model.
    """
    raw = read_json(folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    check_file(path, folder.parent.parent)
    _check_adapter(raw, path)
    config = LoraConfig(**{key: raw[key] for key in ADAPTER_KEYS if raw.get(key) is not None})
    attach(backbone, task, config)
    copy_exactly(adapter_parameters(backbone, task), load_file(path), path)
    return config


def _check_adapter(raw: dict[str, Any], path: Path) -> None:
    """Refuse, from the configuration and the header alone, an adapter of another kind or with a
    rank that the file does not have.
    """
    if raw.get("peft_type") != "LORA":
        raise BadInput(
            f"{path.parent} holds a {raw.get('peft_type')} adapter; only plain LoRA adapters are"
            " read"
        )
    if other := [key for key in UNREAD_KEYS if raw.get(key)]:
        raise BadInput(
            f"{path.parent}/adapter_config.json sets {', '.join(other)}; only plain LoRA adapters"
            " are read"
        )
    targets = raw.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise BadInput(
            f"{path.parent}/adapter_config.json: target_modules is {targets!r}, needs a list of"
            " module names"
        )
    if raw.get("exclude_modules") not in (None, [], NO_POOLER) or raw.get("bias", "none") != "none":
        raise BadInput(f"{path.parent}/adapter_config.json: exclude_modules and bias are not read")
    rank = raw.get("r")
    ranks = {
        entry.shape[0]
        for name, entry in check_safetensors(path).items()
        if ".lora_A." in name and len(entry.shape) == 2
    }
    if type(rank) is not int or ranks != {rank}:
        raise BadInput(
            f"{path} has matrices of rank {sorted(ranks)}, its adapter_config.json says {rank!r};"
            " copy the adapter again"
        )


NO_POOLER = r".*pooler.*"
"""A pooler is no part of our backbones, so an adapter that leaves it out is read like any other."""

UNREAD_KEYS = (
    "use_dora",
    "use_qalora",
    "auto_mapping",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "lora_bias",
    "fan_in_fan_out",
    "megatron_config",
    "trainable_token_indices",
    "target_parameters",
)
"""Settings of peft that would change the vectors and that are not read here."""

ADAPTER_KEYS = (
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "init_lora_weights",
    "use_rslora",
)


@torch.no_grad()
def copy_exactly(
    parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor], path: Path
) -> None:
    """Copy tensors into parameters, refusing any difference of names, shapes or finiteness.

    Raises BadInput on any difference.
    """
    missing, extra = (
        sorted(parameters.keys() - tensors.keys()),
        sorted(tensors.keys() - parameters.keys()),
    )
    if missing or extra:
        raise BadInput(
            f"{path} does not fit this model: {len(missing)} tensors missing {missing[:2]},"
            f" {len(extra)} unknown {extra[:2]}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise BadInput(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model needs"
                f" {tuple(parameter.shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise BadInput(f"{path}: {name} holds values that are not finite")
        parameter.copy_(tensors[name])


def detach(backbone: nn.Module, task: str) -> None:
    """Remove an adapter, so that another one of its name can be attached.

    `backbone`: the model, changed in place.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Adapter .* was active"
        )  # the caller selects another one
        for module in backbone.modules():
            if isinstance(module, LoraLayer) and task in module.lora_A:
                module.delete_adapter(task)


@torch.no_grad()
def merge(backbone: nn.Module, task: str) -> None:
    """Add an adapter's update to the base weights and remove every adapter, in place."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            if task in module.lora_A:
                base.weight += module.get_delta_weight(task).to(base.weight.dtype)
            parent = backbone.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], base)
