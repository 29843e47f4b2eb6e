"""A tiny model of every text family that transformers has, and what becomes of it here: packed,
padded, in equal lengths, or refused.

python tests/helpers/tiny_families.py # measures all and writes the lists of docs/families.md python
tests/helpers/tiny_families.py llama t5 # some of them, with figures
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from taskdistill.errors import BadInput
from taskdistill.model.backbone import without_dropout
from taskdistill.model.configuration import make_config
from taskdistill.model.families import Batching, batching_of, build, check, own_forward
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

WIDTH = 32
WINDOW = 8
LENGTHS = (9, 3, 9, 40, 33, 150)
"""Tokens of the texts: below the window of 8, some windows long, and longer than two blocks of
queries.
"""


def each(names: str, value: Any) -> dict[str, Any]:
    """Several keys of one value."""
    return dict.fromkeys(names.split(), value)


def sections(*sizes: int) -> dict[str, Any]:
    """Rotary positions of a model of pictures and texts, whose frequencies are dealt out to several
    axes.
    """
    return {
        "rope_parameters": {"rope_type": "default", "mrope_section": list(sizes), "rope_theta": 1e4}
    }


SIZES: dict[str, Any] = {
    **each(
        "hidden_size d_model n_embd dim embedding_size emb_dim model_dim word_embed_proj_dim"
        " embedding_dim",
        WIDTH,
    ),
    **each("lru_width attention_hidden_size decoder_hidden_size mamba_intermediate_size", WIDTH),
    **each(
        "intermediate_size ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim decoder_ffn_dim"
        " d_inner dff",
        48,
    ),
    **each("ffn_hidden_size feed_forward_size dim_ff", 48),
    **each("num_hidden_layers n_layer n_layers num_layers", 4),
    **each("encoder_layers decoder_layers num_decoder_layers num_encoder_layers", 2),
    **each(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads"
        " decoder_attention_heads",
        4,
    ),
    **each("max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len", 512),
    **each("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
    **each(
        "num_experts_per_tok num_experts_per_token top_k_experts moe_k num_key_value_heads"
        " linear_num_key_heads",
        2,
    ),
    **each(
        "moe_intermediate_size shared_expert_intermediate_size q_lora_rank ssm_intermediate_size",
        16,
    ),
    **each(
        "kv_channels d_kv kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim head_dim"
        " dim_head d_head",
        8,
    ),
    **each(
        "mamba_d_state state_size ssm_state_size mamba_d_head mamba_n_heads mamba_num_heads"
        " mamba_head_dim",
        8,
    ),
    **each(
        "linear_key_head_dim linear_value_head_dim attention_head_size n_mamba_heads mamba_headdim",
        8,
    ),
    **each("n_group topk_group n_shared_experts first_k_dense_replace", 1),
    **each(
        "sliding_window attention_chunk_size window_size local_attn_chunk_length"
        " lsh_attn_chunk_length",
        WINDOW,
    ),
    **each("chunk_size mamba_chunk_size", 16),
    **{
        "vocab_size": 160,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "rotary_dim": 4,
        "qk_head_dim": 16,
    },
    **{
        "linear_num_value_heads": 4,
        "num_buckets": 4,
        "attention_window": WINDOW,
        "use_mamba_kernels": False,
    },
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2}
SECTIONS = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
TURNS = {
    "sliding": ["sliding_attention", "full_attention"] * 2,
    "conv": ["conv", "full_attention"] * 2,
}
WINDOWED = {"layer_types": TURNS["sliding"]}
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_group_size": 2,
        "num_expert_group": 1,
        "num_key_value_heads": 4,
    },
    "bamba": MAMBA,
    "beam": {"num_experts": 8, "n_group": 2},
    "canine": {"num_hash_buckets": 64, "upsampling_kernel_size": 4},
    "cohere_compass_text": (
        WINDOWED
        | {
            "rope_parameters": each(
                "sliding_attention full_attention", {"rope_type": "default", "rope_theta": 1e4}
            )
        }
    ),
    "cosmos3_edge_text": sections(1, 1, 2),
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "embedding_gemma2_text": (
        WINDOWED
        | {
            "global_head_dim": 16,
            "num_global_key_value_heads": 2,
            "hidden_size_per_layer_input": 8,
        }
    ),
    "ernie4_5_moe": {"moe_layer_end_index": 3},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "fsmt": {"src_vocab_size": 160, "tgt_vocab_size": 160},
    "funnel": {"block_sizes": [2, 2], "architectures": ["FunnelModel"]},
    "gemma3n_text": (
        WINDOWED
        | {
            "vocab_size_per_layer_input": 160,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
        }
        | {"activation_sparsity_pattern": None}
    ),
    "gemma4_text": (
        WINDOWED
        | {
            "vocab_size_per_layer_input": 160,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 8,
        }
    ),
    "glm4v_moe_text": SECTIONS | sections(1, 1, 2),
    "glm4v_text": SECTIONS | sections(2, 3, 3),
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": WIDTH}},
    "hunyuan_vl_text": sections(1, 1, 1, 1),
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2": {"layer_types": TURNS["conv"]},
    "lfm2_moe": {"layer_types": TURNS["conv"]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "longformer": {"attention_window": [WINDOW] * 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "modernbert": {"local_attention": 2 * WINDOW, "cls_token_id": 2, "sep_token_id": 3},
    "modernbert-decoder": {"local_attention": 2 * WINDOW, "cls_token_id": 2, "sep_token_id": 3},
    "neomme": {"head_dim": 16},
    "phimoe": {"num_local_experts": 4},
    "pocket_tts": {"flow_head_config": {"condition_dim": WIDTH}},
    "qwen2": WINDOWED | {"use_sliding_window": True},
    "qwen2_moe": WINDOWED | {"use_sliding_window": True},
    "qwen2_vl_text": sections(1, 1, 2),
    "qwen3": WINDOWED | {"use_sliding_window": True},
    "qwen3_moe": {"use_sliding_window": True},
    "qwen4_exp_text": (
        {
            "layer_types": ["linear_attention", "indexed_attention"] * 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
        }
        | {
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "hc_count": 2,
            "hc_lowrank": 8,
        }
        | {
            "ngram_vocab_size_base": 50,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 1,
        }
    ),
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "roc_bert": {"pronunciation_vocab_size": 160, "shape_vocab_size": 160},
    "starcoder2": {"sliding_window": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
    }
    | {"attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
for _same, _as in {
    "qwen2_5_vl_text": "qwen2_vl_text",
    "glm_ocr_text": "glm4v_text",
    "glm_image_text": "glm4v_text",
    "gemma4_unified_text": "gemma4_text",
}.items():
    OWN[_same] = OWN[_as]


WITHOUT_NORMS = {"mobilebert"}
"""Families that norm nothing, whose states would leave the range of float32 with larger weights."""


def text_families() -> list[str]:
    """Every model type of AutoModel whose forward takes token ids before all else."""
    found = []
    for kind in MODEL_MAPPING_NAMES:
        try:
            made = MODEL_MAPPING[CONFIG_MAPPING[kind]]
            made = made[0] if isinstance(made, tuple | list) else made
            if (
                made.main_input_name == "input_ids"
                and "input_ids" in inspect.signature(made.forward).parameters
            ):
                found.append(kind)
        except (
            KeyError,
            ImportError,
            ValueError,
            AttributeError,
        ):  # a family that needs a package which is not here
            continue
    return found


def config(kind: str, **changes: Any) -> dict[str, Any]:
    """A family's configuration at 32 dimensions, with windows and chunks of 8 tokens wherever it
    has such things.
    """
    made = CONFIG_MAPPING[kind]
    fields = {field.name: field.default for field in dataclasses.fields(made)}
    other_names = getattr(made, "attribute_map", None) or {}
    sizes = {key: value for key, value in SIZES.items() if key in fields and key not in other_names}
    for key in ("sliding_window", "q_lora_rank", "n_inner", "chunk_size", "window_size"):
        if key in sizes and fields[key] is None:
            del sizes[key]
    if "kv_lora_rank" in sizes and "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = 4
    return {"model_type": kind, **sizes, **OWN.get(kind, {}), **changes}


def backbone(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A family at random, with weights large enough that every part shows in the output."""
    torch.manual_seed(seed)
    made = build(make_config(config(kind, **changes), "test")).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim >= 2 and float(weight.std()) > 0 and kind not in WITHOUT_NORMS:
                weight.mul_(min(10.0, 0.2 / float(weight.std())))
    return made


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> list[np.ndarray]:
    """Random token ids."""
    random = np.random.default_rng(seed)
    return [random.integers(5, 150, size=n) for n in lengths]


def stock(made: PreTrainedModel) -> PreTrainedModel:
    """The same weights with transformers' own attention."""
    if made.config._attn_implementation not in ("sdpa", "eager"):
        made.set_attn_implementation("sdpa" if made._supports_sdpa else "eager")
    return made


def alone(made: PreTrainedModel, ids: list[np.ndarray]) -> list[torch.Tensor]:
    """Hidden states of each text by itself, by transformers' own forward."""
    return [own_forward(stock(made), torch.from_numpy(text)[None])[0] for text in ids]


def together(
    made: PreTrainedModel, ids: list[np.ndarray], *, by_rows: bool = False
) -> list[torch.Tensor]:
    """Hidden states of the same texts in one batch of ours."""
    from taskdistill.model.packed import pack

    model = TransformerModel(made, Pooling.MEAN)
    packed = pack(ids)
    states = model.hidden(packed, model.token_vectors(packed) if by_rows else None)
    parts = states.split([length for _, count, length in packed.groups.runs for _ in range(count)])
    return [parts[place] for place in packed.order.argsort().tolist()]


@dataclass(frozen=True)
class Outcome:
    """What becomes of a family."""

    kind: str
    batching: Batching | None
    """None where it is refused."""
    difference: float = 0.0
    """Largest, over all texts, as a share of the largest value."""
    reason: str = ""

    @property
    def place(self) -> str:
        """The list of docs/families.md that it belongs to."""
        return self.batching or next(
            place for place, said in REASONS.items() if said in self.reason
        )


REASONS = {
    "parts": "is a model of several parts",
    "decoder": "is an encoder with a decoder",
    "more": "cannot run over",
    "other": "other states beside another text",
    "unmeasured": "CANNOT BUILD",
}
"""Where a refusal puts a family, and by which words it is known."""


def study(kind: str) -> Outcome:
    """Make a family and compare its texts in one batch with each by itself."""
    try:
        made = backbone(kind)
        check(made, "test")
    except BadInput as error:
        return Outcome(kind, None, reason=str(error))
    except ImportError as error:
        return Outcome(kind, None, reason=f"CANNOT BUILD: {' '.join(str(error).split())[:150]}")
    with torch.no_grad():
        found, expected = together(made, texts()), alone(made, texts())
    scale = max(float(states.abs().max()) for states in expected)
    assert all(bool(states.isfinite().all()) for states in expected), (
        kind
    )  # else nothing is compared
    difference = (
        max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale
    )
    return Outcome(kind, batching_of(made), difference)


def gradient_difference(kind: str, lengths: tuple[int, ...] = (9, 3, 9, 40)) -> float:
    """The largest difference between the gradients of a batch and those of its texts by themselves,
    as a share of the largest gradient.
    """
    made, ids = backbone(kind), texts(lengths)
    without_dropout(made)
    weights = [torch.linspace(-1, 1, len(text) * WIDTH * 2).reshape(len(text), -1) for text in ids]
    both = []
    for side in (together, alone):
        made.zero_grad()
        parts = zip(side(made, ids), weights, strict=True)
        torch.stack(
            [(part * own[:, : part.shape[1]]).sum() for part, own in parts]
        ).sum().backward()
        both.append(
            {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
        )
    found, expected = both
    assert found.keys() == expected.keys(), kind
    largest = max(float(each.abs().max()) for each in expected.values())
    return max(float((found[name] - each).abs().max()) for name, each in expected.items()) / largest


PAGE = Path(__file__).parents[2] / "docs" / "families.md"
LIST = re.compile(r"(<!-- list: (\w+) -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)
"""A list of the page: what stands between two comments."""


def lists() -> dict[str, list[str]]:
    """Read the lists of the page."""
    return {
        place: re.findall(r"`([^`]+)`", names)
        for _, place, names, _ in LIST.findall(PAGE.read_text("utf-8"))
    }


def write_lists(outcomes: list[Outcome]) -> None:
    """Put what was measured into the lists of the page."""
    names: dict[str, list[str]] = {}
    for each in outcomes:
        names.setdefault(each.place, []).append(f"`{each.kind}`")

    def fill(match: re.Match[str]) -> str:
        words = names.pop(match[2], [])
        return (
            match[1]
            + (textwrap.fill(" ".join(words), 140, break_on_hyphens=False) or "None.")
            + match[4]
        )

    text = LIST.sub(fill, PAGE.read_text("utf-8"))
    if names:
        raise SystemExit(f"error: {PAGE} has no list {', '.join(names)}")
    PAGE.write_text(text, "utf-8")


def main() -> None:
    """Print what becomes of all families, or of some."""
    chosen = sys.argv[1:]
    outcomes = []
    for kind in chosen or text_families():
        outcomes.append(study(kind))
        print(outcomes[-1], flush=True)
    if not chosen:
        write_lists(outcomes)


if __name__ == "__main__":
    main()
