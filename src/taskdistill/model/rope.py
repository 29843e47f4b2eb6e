"""The RoPE theta: read, and changed with the frequencies that follow from it."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from taskdistill.errors import BadInput


def set_rope_theta(backbone: PreTrainedModel, theta: float) -> None:
    """Change the RoPE theta and rebuild the frequencies (section 4.4).

    In families whose windowed layers have a theta of their own (Gemma 3, ModernBERT), that of the
    layers which see whole texts is changed; a windowed layer looks no further than its window.
    Where every layer has a window, all are changed. Raises BadInput if the backbone has no rotary
    positions, or keeps its frequencies where they cannot be rebuilt.
    """
    kind, chosen = backbone.config.model_type, _rope_settings(backbone.config)
    if not chosen:
        lacks = (
            "a theta for each layer"
            if getattr(backbone.config, "rope_parameters", None)
            else "no rotary positions"
        )
        raise BadInput(
            f"rope_theta {theta} has no effect: a {kind} backbone has {lacks}; remove the key"
        )
    rotary = {
        name: module
        for name, module in backbone.named_modules()
        if any(key.endswith("inv_freq") for key, _ in module.named_buffers(recurse=False))
    }
    layer_settings = [
        getattr(getattr(module, "config", None), "rope_parameters", None)
        for module in rotary.values()
    ]
    rebuilt = bool(layer_settings) and all(
        settings == backbone.config.rope_parameters for settings in layer_settings
    )  # else a layer has its own theta
    thetas = [settings["rope_theta"] for settings in chosen]
    for settings in chosen:
        settings["rope_theta"] = float(theta)
    if rebuilt:
        tables = {
            name: type(module)(config=backbone.config).to(backbone.device)
            for name, module in rotary.items()
        }  # type: ignore[call-arg]
        old = [
            (value, tables[name].get_buffer(key))
            for name in rotary
            for key, value in rotary[name].named_buffers()
        ]
        rebuilt = (
            set(thetas) == {theta}
            or backbone.device.type == "meta"
            or not all(torch.equal(*pair) for pair in old)
        )
    if not rebuilt:
        for settings, own_theta in zip(chosen, thetas, strict=True):
            settings["rope_theta"] = own_theta
        raise BadInput(
            f"rope_theta {theta} has no effect: the frequencies of a {kind} backbone cannot be"
            " rebuilt from it; remove the key"
        )
    for name, module in tables.items():
        backbone.set_submodule(name, module)


def check_frequencies(backbone: PreTrainedModel, where: object) -> None:
    """Refuse rotary positions of which nothing can be computed, such as those of a theta or a
    factor of 0.

    Raises BadInput if a frequency is no finite number.
    """
    for name, value in backbone.named_buffers():
        if (
            name.endswith("inv_freq")
            and value.device.type != "meta"
            and not bool(torch.isfinite(value).all())
        ):
            raise BadInput(
                f"{where}: the rotary frequencies are not finite; correct rope_parameters"
                f" ({backbone.config.rope_parameters})"
            )


def rope_theta(backbone: PreTrainedModel) -> float | None:
    """Read the RoPE theta in force, where layers differ that of the layers which see whole texts.

    Returns the base, or None for a backbone without rotary positions.
    """
    chosen = _rope_settings(backbone.config)
    return float(chosen[0]["rope_theta"]) if chosen else None


def _rope_settings(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Find the settings that hold the theta: one for all layers, or those of the kinds of layers
    that see whole texts.
    """
    rope = getattr(config, "rope_parameters", None)
    by_layer = any(
        "rope_theta" in key and isinstance(value, list) for key, value in vars(config).items()
    )
    if not isinstance(rope, dict) or by_layer:
        return []
    used = set(getattr(config, "layer_types", None) or rope)
    kinds = {
        kind: settings_of_kind
        for kind, settings_of_kind in rope.items()
        if kind in used and isinstance(settings_of_kind, dict) and "rope_theta" in settings_of_kind
    }
    if not kinds:
        return [rope] if "rope_theta" in rope else []
    full_attention = [
        settings_of_kind
        for kind, settings_of_kind in kinds.items()
        if not WINDOWED_LAYERS.search(kind)
    ]
    return full_attention or list(kinds.values())


WINDOWED_LAYERS = re.compile(r"sliding|local|chunk")
"""What transformers' names of kinds of layers with windows hold."""
