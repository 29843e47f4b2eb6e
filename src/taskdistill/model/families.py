"""Which families of transformers run how: on the packed stream, padded, or in batches of equal
length; what else differs by family.

A family is named here after its vectors were compared with those of transformers' own forward, text
by text, short and long (tests/system/test_model_families.py). Any other runs in batches of equal
length, without a mask, and is compared when it is loaded.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel

from taskdistill.errors import BadInput
from taskdistill.model.packed_attention import ATTENTION, can_pack


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PACKED = _names("""
    albert apertus arcee bert bert-generation biogpt bitnet camembert cohere cohere2 cwm
    data2vec-text deepseek_v2 deepseek_v3 diffllama distilbert electra embedding_gemma2_text ernie
    ernie4_5 ernie4_5_moe eurobert exaone4 flex_olmo gemma gemma3_text glm glm4 glm4_moe gpt2
    gpt_bigcode gpt_neox gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared
    gte helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm3 jais2 jetmoe
    jina_embeddings_v3 llama minicpm3 ministral ministral3 mistral mistral4 mixtral modernbert
    modernbert-decoder nanochat nomic_bert olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe
    qwen2 qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 qwen3_moe qwen3_vl_moe_text qwen3_vl_text
    roberta roberta-prelayernorm seed_oss smollm3 solar_open starcoder2 ultrabert xlm-roberta
    xlm-roberta-xl xmod
    """)
"""Families whose texts share one stream; their attention asks for nothing that `packed_attention`
does not compute.
"""

PACKED_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that packed families have."""

PADDED = _names(
    "big_bird deberta deberta-v2 megatron-bert mpnet mt5 rembert roformer squeezebert t5 umt5 xlm"
    " xlnet"
)
"""Families that compute attention by themselves and heed the mask of a padded batch."""

ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Encoder-decoder families of which the encoder alone is run, as sentence-transformers does."""

OF_ONE_MODEL = frozenset({"attn_config", "ffn_config", "esmfold_config"})
"""Nested configurations that are no models of their own."""

REACHES = re.compile(r"(window|chunk|block|local)", re.IGNORECASE)
"""Names of configuration keys that may say beyond how many tokens a family computes otherwise."""

CHECK_LENGTHS = (5, 40, 8_192)
"""Tokens of the short text of a check at load, and fewest and most of the long one."""

CHECK_FLOPS = 2e12
"""Multiplications and additions of a check at load, about 20 seconds of two cores; the long text of
a large model is cut to it.
"""

CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference, as a share of the largest value; states that run over borders or batches give
at least ten times as much.
"""

HALF_TOLERANCE = 5e-2


class Batching(StrEnum):
    """How the texts of a batch share a forward pass."""

    PACKED = "packed"
    """One stream without padding; attention stays within each text."""
    PADDED = "padded"
    """Batches of like length, padded on the right, with the family's own mask."""
    EQUAL = "equal"
    """Batches of equal length, without a mask."""


def is_native(config: PretrainedConfig | Mapping[str, Any]) -> bool:
    """Say whether transformers has the family itself, so that no code of a folder is needed."""
    kind = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    return isinstance(kind, str) and kind in CONFIG_MAPPING


def batching_of(backbone: PreTrainedModel) -> Batching:
    """Tell how the texts of a backbone are batched: by the tables for transformers' own classes, in
    equal lengths for all others.
    """
    kind, is_transformers = (
        backbone.config.model_type,
        type(backbone).__module__.startswith("transformers."),
    )
    if not is_transformers or turns_by_longest(backbone.config):
        return Batching.EQUAL
    if kind in PACKED and can_pack(backbone):
        return Batching.PACKED
    return Batching.PADDED if kind in PADDED else Batching.EQUAL


def turns_by_longest(config: PretrainedConfig) -> bool:
    """Say whether the rotary frequencies of a whole batch follow from its longest text, as with two
    sets of factors (LongRoPE).

    Those of the type `dynamic` do so only beyond `max_position_embeddings`, which no text is.
    """
    rope = getattr(config, "rope_parameters", None)
    settings = [rope, *rope.values()] if isinstance(rope, dict) else []
    return any(isinstance(each, dict) and each.get("rope_type") == "longrope" for each in settings)


def refuse_family(config: PretrainedConfig, where: object) -> None:
    """Refuse families of which no forward pass over texts alone gives a vector for each token.

    Raises BadInput if it is an encoder and a decoder, or a model of several modalities.
    """
    kind = config.model_type
    parts = sorted(set(getattr(type(config), "sub_configs", None) or {}) - OF_ONE_MODEL)
    if parts:
        raise BadInput(
            f"{where}: {kind} is a model of several parts ({', '.join(parts)}), of which only texts"
            " are read here; save its text model alone (its model_type often ends in _text), or"
            " use it as a teacher over HTTP"
        )
    if getattr(config, "is_encoder_decoder", False) and kind not in ENCODERS:
        raise BadInput(
            f"{where}: {kind} is an encoder with a decoder, whose states are those of the decoder;"
            f" of such families only the encoders of {', '.join(ENCODERS)} are read; use an encoder"
            " such as BERT, or a decoder such as Qwen3"
        )


def encoder_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Give the class of an encoder-decoder family's encoder; None for the families that AutoModel
    makes.
    """
    return (
        getattr(transformers, ENCODERS[config.model_type])
        if config.model_type in ENCODERS
        else None
    )


def build(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Make a model at random, on the device in force, with the attention that its family needs and
    without a pooler.
    """
    encoder = encoder_class(config)
    make = AutoModel.from_config if encoder is None else encoder._from_config
    return make(config, dtype=dtype, **options(config))  # type: ignore[no-any-return]


def options(config: PretrainedConfig) -> dict[str, str | bool]:
    """Give the arguments with which transformers makes or loads a model of this family."""
    packed = config.model_type in PACKED and not turns_by_longest(config)
    result: dict[str, str | bool] = {"attn_implementation": ATTENTION} if packed else {}
    return result | ({"add_pooling_layer": False} if has_pooler(config) else {})


def has_pooler(config: PretrainedConfig) -> bool:
    """Say whether transformers' model of a family has a pooler on top unless told otherwise."""
    try:
        model_class = MODEL_MAPPING[type(config)]
    except KeyError:
        return False
    return (
        not isinstance(model_class, tuple)
        and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    )


def embedding_scale(backbone: PreTrainedModel) -> float:
    """Return the factor by which a family multiplies the rows of its token table when it looks them
    up (Gemma: root of the width).
    """
    table = backbone.get_input_embeddings()
    scale = getattr(
        table, "scalar_embed_scale", None
    )  # the number; `embed_scale` may be a tensor, which a plan has without its value
    return float(getattr(table, "embed_scale", 1.0) if scale is None else scale)


def own_forward(backbone: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run the family's own forward over a batch.

    `tokens`: token ids `(texts, length)`, or rows of the token table, scaled, `(texts, length,
    hidden size)`. `mask`: 1 for a real token, `(texts, length)`; None for a batch without padding.
    Returns hidden states `(texts, length, D)`.
    """
    inputs: dict[str, Any] = {"input_ids" if tokens.ndim == 2 else "inputs_embeds": tokens}
    if mask is not None:
        inputs["attention_mask"] = mask
    if _takes(backbone.__class__, "use_cache"):
        inputs["use_cache"] = False
    return backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]


@functools.cache
def _takes(model: type[PreTrainedModel], argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


_checked: set[str] = set()
"""Configurations that were compared in this process."""


def check(backbone: PreTrainedModel, where: object) -> None:
    """Compare a family that is not packed with its own forward over one text alone, at a short and
    a long text.

    The long text is longer than any window, chunk or block that the configuration names. Packed
    families pass at once, for they were compared before; so does a configuration that was compared
    in this process. `backbone`: the model with its weights, on any device but meta. `where`: its
    folder or the key of a recipe, for messages. Raises BadInput if the family cannot run over texts
    alone, or a text's states depend on what else is in its batch.
    """
    batching = batching_of(backbone)
    if batching is Batching.PACKED:
        _check_layer_types(backbone.config, where)
    if batching is Batching.PACKED or any(
        weight.is_meta for weight in backbone.parameters()
    ):  # some make a weight on the CPU all the same
        return
    key = (
        f"{type(backbone).__module__} {type(backbone).__name__}"
        f" {json.dumps(backbone.config.to_dict(), sort_keys=True, default=str)}"
    )
    if key in _checked:
        return
    name, training = (
        f"{where}: the family {backbone.config.model_type} ({type(backbone).__name__})",
        backbone.training,
    )
    backbone.eval()
    try:
        with torch.inference_mode():
            for length in check_lengths(backbone):
                _compare(backbone, length, name)
            if batching is Batching.PADDED and not _same_when_padded(backbone):
                raise BadInput(
                    f"{name} with these settings gives a padded text other states than alone; use a"
                    " family of docs/families.md"
                )
    finally:
        backbone.train(training)
    _checked.add(key)


def _check_layer_types(config: PretrainedConfig, where: object) -> None:
    window = getattr(config, "sliding_window", None)
    if type(window) is int and window < 1:
        raise BadInput(
            f"{where}: sliding_window is {window}, so no token would see any; give 1 or more, or"
            " null for no window"
        )
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - PACKED_LAYERS):
        raise BadInput(
            f"{where}: layer_types names {', '.join(other)}, and {config.model_type} has only"
            f" {' and '.join(sorted(PACKED_LAYERS))}"
        )


def check_lengths(backbone: PreTrainedModel) -> tuple[int, int]:
    """Choose how long the two texts of a check are."""
    short, fewest, largest = CHECK_LENGTHS
    longest = getattr(backbone.config, "max_position_embeddings", None)
    room = largest if type(longest) is not int or longest <= 0 else longest - 2
    weights = sum(p.numel() for p in backbone.parameters())
    affordable = max(fewest, int(CHECK_FLOPS / (6 * max(1, weights))))
    long = min(max(fewest, reach(backbone.config) + 9), affordable, room)
    return min(short, long), long


def reach(config: PretrainedConfig) -> int:
    """Give the largest number of tokens beyond which a configuration says that something is
    computed otherwise; 0 for none.
    """
    windows = [value for key, value in config.to_dict().items() if REACHES.search(key)]
    flat = [
        number
        for value in windows
        for number in (value if isinstance(value, list) else [value])
        if type(number) is int
    ]
    return max([0, *(number for number in flat if number < CHECK_LENGTHS[-1])])


def has_windows(config: PretrainedConfig) -> bool:
    """Say whether some layers attend over windows."""
    return any("sliding" in kind for kind in getattr(config, "layer_types", None) or ())


def heeds_padding(backbone: PreTrainedModel) -> bool:
    """Say whether a family gives padded texts their own states, which graphs need; those of the
    tables do.
    """
    if turns_by_longest(backbone.config):
        return False
    return batching_of(backbone) is not Batching.EQUAL or _same_when_padded(backbone)


def _same_when_padded(backbone: PreTrainedModel) -> bool:
    """Say whether a short text padded to the length of a long one has the states that it
    has alone.
    """
    short, long = check_lengths(backbone)
    ids, mask = (
        check_ids(backbone, long),
        torch.ones(2, long, dtype=torch.long, device=backbone.device),
    )
    mask[1, short:] = 0
    with torch.inference_mode():
        try:
            alone, together = (
                own_forward(backbone, ids[1:, :short]),
                own_forward(backbone, ids, mask),
            )
        except Exception:  # no mask is taken, or none in this setting
            return False
        return bool((together[1:, :short] - alone).abs().max() <= tolerance_of(alone))


def _compare(backbone: PreTrainedModel, length: int, name: str) -> None:
    try:
        ids = check_ids(backbone, length)
        alone = own_forward(backbone, ids[:1])
        together = own_forward(backbone, ids)
    except Exception as error:  # any family, perhaps with code of its own
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{name} cannot run over {length} token ids alone ({type(error).__name__}: {reason});"
            " use a family of docs/families.md"
        ) from None
    if alone.ndim != 3 or alone.shape[:2] != (1, length) or together.shape[:2] != (2, length):
        raise BadInput(
            f"{name} gives states of shape {tuple(alone.shape)} for {length} tokens, not one for"
            " each; use a family of docs/families.md"
        )
    if not bool((together[:1] - alone).abs().max() <= tolerance_of(alone)):
        raise BadInput(
            f"{name} gives a text of {length} tokens other states beside another text than alone,"
            " so its vectors would depend on the batch; use a family of docs/families.md"
        )


def tolerance_of(states: Tensor) -> float:
    """Say by how much states that should be equal may differ, of their own number type."""
    return CHECK_TOLERANCE.get(states.dtype, HALF_TOLERANCE) * float(states.abs().max())


def check_ids(backbone: PreTrainedModel, length: int) -> Tensor:
    """Make two texts of tokens that no family treats as special, `(2, length)`."""
    config = backbone.config
    size = int(getattr(config, "vocab_size", 0) or backbone.get_input_embeddings().weight.shape[0])
    out_of_range = [
        value
        for key, value in config.to_dict().items()
        if key.endswith(("token_id", "token_index"))
    ]
    special = {
        number
        for value in out_of_range
        for number in (value if isinstance(value, list) else [value])
        if type(number) is int
    }
    plain = np.array([number for number in range(size // 4, size) if number not in special] or [0])
    chosen = plain[(np.arange(2 * length) * 7_919 + 13) % len(plain)]
    return torch.from_numpy(chosen.astype(np.int64)).view(2, length).to(backbone.device)
