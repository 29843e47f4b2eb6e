"""Repositories of the published jina-v5 layout at a tiny size, written and computed with plain
transformers and peft.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import EuroBertConfig, EuroBertModel, Qwen3Config, Qwen3Model

TASKS = ["retrieval", "text-matching", "clustering", "classification"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
END, PAD = "<|endoftext|>", "<|pad|>"
TEXTS = [
    "Which planet is known as the Red Planet?",
    "Mars",
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "מאדים הוא הכוכב הרביעי",
    "火星は太陽系の第四惑星です。",
    "नमस्ते दुनिया",
    "👩‍🚀🚀 e\u0301 " * 7,
    "a",
]


def tiny_tokenizer(*, end: bool = True) -> Tokenizer:
    """Byte-level BPE with an end-of-sequence token that its post-processor appends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        ["Query: Document: the planet is known as the red planet of the sun"] * 4, trainer
    )
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}",
            pair=f"$A {END} $B:1 {END}:1",
            special_tokens=[(END, tokenizer.token_to_id(END))],
        )
    return tokenizer


def tiny_backbone(family: str, *, seed: int = 0, vocab_size: int = 320) -> torch.nn.Module:
    """A random backbone of either family, with weights large enough that every part shows in the
    output.
    """
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    if family == "qwen3":
        config = Qwen3Config(
            **shape, **ids, head_dim=16, rope_theta=3_500_000, tie_word_embeddings=True
        )
        return Qwen3Model(config).eval()
    return EuroBertModel(
        EuroBertConfig(**shape, **ids, mask_token_id=2, rope_theta=1_000_000)
    ).eval()


def write_repository(
    folder: Path,
    family: str,
    *,
    prefix: str = "",
    tasks: list[str] = TASKS,
    dtype: torch.dtype = torch.float32,
    end: bool = True,
) -> Path:
    """Write a combined repository as section 2.7 describes it, `*.py` files that must never run
    included.
    """
    model = tiny_backbone(family)
    folder.mkdir(parents=True)
    weights = {
        prefix + name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["JinaEmbeddingsV5Model"],
        "model_type": "jina_embeddings_v5",
        "task_names": tasks,
        "auto_map": {
            "AutoConfig": "configuration_jina_embeddings_v5.JinaEmbeddingsV5Config",
            "AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model",
        },
        "rope_theta": model.config.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": "float32",
        "transformers_version": "4.57.0",
    }
    keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ]
    keys += [
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "head_dim",
        "pad_token_id",
        "eos_token_id",
    ]
    config |= {key: getattr(model.config, key) for key in keys}
    config["is_decoder"] = family == "qwen3"
    _write(folder / "config.json", config)
    _write(
        folder / "modules.json",
        [{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer"}],
    )
    st = {
        "prompts": {"query": "Query: ", "document": "Document: "},
        "default_prompt_name": "document",
        "similarity_fn_name": "cosine",
    }
    _write(folder / "config_sentence_transformers.json", st)
    tiny_tokenizer(end=end).save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizer", "pad_token": PAD, "eos_token": END},
    )
    for name in ("configuration_jina_embeddings_v5", "modeling_jina_embeddings_v5", "custom_st"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\n")
    for number, task in enumerate(tasks):
        write_adapter(tiny_backbone(family), folder / "adapters" / task, seed=number + 1)
    return folder


def write_adapter(model: torch.nn.Module, folder: Path, *, seed: int, rank: int = 4) -> None:
    """Let peft write a random adapter of which both factors are non-zero."""
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.1,
        target_modules=TARGETS,
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    wrapped.save_pretrained(str(folder))


def write_merged(folder: Path, family: str, task: str) -> Path:
    """Write a repository with one adapter merged, by peft's own merge."""
    source = write_repository(folder.with_name(folder.name + "-combined"), family)
    merged = PeftModel.from_pretrained(
        tiny_backbone(family), str(source / "adapters" / task)
    ).merge_and_unload()
    folder.mkdir()
    merged.save_pretrained(str(folder))
    raw = json.loads((folder / "config.json").read_text())
    raw |= {
        "task_names": TASKS,
        "architectures": ["Qwen3Model" if family == "qwen3" else "EuroBertModel"],
    }
    _write(folder / "config.json", raw)
    for name in ("tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def expected(
    folder: Path, family: str, texts: list[str], task: str | None, prompt: str, side: str = "right"
) -> torch.Tensor:
    """Unit vectors by plain transformers and peft on one padded batch."""
    model: torch.nn.Module = tiny_backbone(family)
    if task is not None:
        model = PeftModel.from_pretrained(model, str(folder / "adapters" / task)).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(direction=side, pad_id=1, pad_token=PAD)
    batch = tokenizer.encode_batch([prompt + text for text in texts])
    ids = torch.tensor([row.ids for row in batch])
    mask = torch.tensor([row.attention_mask for row in batch])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    last = torch.full((len(texts),), -1) if side == "left" else mask.sum(1) - 1
    return torch.nn.functional.normalize(hidden[torch.arange(len(texts)), last], dim=-1)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
