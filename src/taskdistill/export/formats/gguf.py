"""GGUF for llama.cpp: Qwen3, EuroBERT and BERT backbones of one task, in F16 and Q8_0, through the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taskdistill.errors import BadInput, WorkFailed, require_extra
from taskdistill.export.export import ExportJob
from taskdistill.export.gguf_vocab import GgufVocab, vocabulary
from taskdistill.export.llama_cpp import llama_cpp_vectors, llama_cpp_version
from taskdistill.export.parity import EIGHT_BITS, HALF, Tolerance, compare
from taskdistill.model.families import has_windows
from taskdistill.model.folder import Model
from taskdistill.model.golden import cosines, embed_with
from taskdistill.model.student import TransformerModel
from taskdistill.tasks import Role
from taskdistill.types import Pooling

ARCHITECTURES = {"qwen3": "QWEN3", "eurobert": "EUROBERT", "bert": "BERT"}
POOLINGS = {Pooling.MEAN: "MEAN", Pooling.CLS: "CLS", Pooling.LAST: "LAST"}
PLAIN = ("position_embd", "token_types")
"""Tables that llama.cpp wants in float32."""

SAME_TOKENS = 0.999_99
"""Cosine of one text by its ids and by its characters below which its tokens differ."""

BLOCK = 32
"""Values that share a scale in Q8_0."""


def check(model: Model) -> None:
    """Refuse a model that llama.cpp would not compute.

    Args:
        model: The model.

    Raises:
        BadInput: If llama.cpp knows no such architecture or tokenizer.
    """
    require_extra("gguf", "export", "GGUF export")
    _parts(model)


def _parts(model: Model) -> tuple[TransformerModel, GgufVocab]:
    module = model.module
    family = module.backbone.config.model_type if isinstance(module, TransformerModel) else "static"
    if not isinstance(module, TransformerModel) or family not in ARCHITECTURES:
        raise BadInput(
            f"GGUF is written for {', '.join(ARCHITECTURES)} backbones; {model.name} is a {family} model"
        )
    config = module.backbone.config
    if has_windows(config) or (family == "qwen3" and getattr(config, "is_causal", None) is False):
        lacks = "windowed attention" if has_windows(config) else "attention both ways"
        raise BadInput(
            f"{model.name} has {lacks}, which a GGUF file of a {family} model cannot say; export it as sentence-transformers or onnx"
        )
    return module, vocabulary(
        json.loads(model.tokenizer.to_json()), module.backbone.config.vocab_size, model.name
    )


def write(export: ExportJob) -> None:
    """Write `model-f16.gguf` and `model-q8_0.gguf` and compare each.

    Each is compared by putting its tensors back into the torch model, and with llama.cpp itself where the package
    `xllamacpp` is installed.

    Args:
        export: Model, folder and reference.
    """
    model = export.model
    module, words = _parts(model)
    names = tensor_names(module)
    version = llama_cpp_version()
    if version is None:
        export.notes.append(
            "llama.cpp is not installed here (pip install 'taskdistill[llama-cpp]'); the files were checked tensor by tensor, through torch, only"
        )
    for kind, tolerance in (("F16", HALF), ("Q8_0", EIGHT_BITS)):
        path = export.folder / f"model-{kind.lower()}.gguf"
        write_gguf(model, module, words, names, path, kind)
        package = f"torch on the tensors read back by gguf {metadata.version('gguf')}"
        read_back = _through_torch(export, names, path)
        export.results.append(
            compare(
                path.name,
                package,
                export.task,
                export.reference[export.task],
                read_back,
                tolerance,
                required=kind == "F16",
            )
        )
        if version is not None:
            _with_llama_cpp(export, path, version, tolerance)


def _with_llama_cpp(export: ExportJob, path: Path, version: str, tolerance: Tolerance) -> None:
    """Compare on our token ids, which shows the graph, and on texts, which shows llama.cpp's own tokenizer too.

    Only texts that the model reads whole: llama.cpp cuts no text, it refuses it.
    """
    model, required = export.model, tolerance is HALF
    prompt = model.settings.prompts.get(Role.DOCUMENT.value, "")
    tokens = model.tokenizer.ids(
        list(export.texts), prompt=prompt, max_length=model.settings.max_length
    )
    whole = [i for i in range(len(export.texts)) if not tokens.truncated[i]]
    reference = export.reference[export.task][whole]
    by_ids = llama_cpp_vectors(
        path, [tokens.ids[i].tolist() for i in whole], model.settings.max_length
    )
    result = compare(
        path.name,
        f"{version}, our token ids",
        export.task,
        reference,
        by_ids,
        tolerance,
        required=required,
    )
    export.results.append(result)
    by_text = llama_cpp_vectors(
        path, [prompt + export.texts[i] for i in whole], model.settings.max_length
    )
    export.results.append(
        compare(
            path.name,
            f"{version}, texts",
            export.task,
            reference,
            by_text,
            tolerance,
            required=False,
        )
    )
    if other := [
        export.texts[i]
        for i, cosine in zip(whole, cosines(by_ids, by_text), strict=True)
        if cosine < SAME_TOKENS
    ]:
        export.notes.append(
            f"{path.name}: llama.cpp's own tokenizer cuts {len(other)} of {len(whole)} texts in another way: {other}"
        )


def tensor_names(module: TransformerModel) -> dict[str, str]:
    """Map the backbone's tensor names to GGUF's.

    Args:
        module: The model.

    Returns:
        Name in torch to name in the file, for every tensor of the backbone.

    Raises:
        WorkFailed: If the package knows no name for one.
    """
    import gguf

    config = module.backbone.config
    table = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]], config.num_hidden_layers
    )
    found = {}
    for name in module.backbone.state_dict():
        known = next(
            (
                table.get_name(prefix + name, try_suffixes=(".weight", ".bias"))
                for prefix in ("", "model.")
                if _known(table, prefix + name)
            ),
            None,
        )
        if known is None:
            raise WorkFailed(
                f"the gguf package has no name for the tensor {name} of a {config.model_type} model; upgrade it"
            )
        found[name] = known
    return found


def _known(table: Any, name: str) -> bool:
    return table.get_name(name, try_suffixes=(".weight", ".bias")) is not None


def write_gguf(
    model: Model,
    module: TransformerModel,
    words: GgufVocab,
    names: Mapping[str, str],
    path: Path,
    kind: str,
) -> None:
    """Write one file.

    Args:
        model: Name and limits.
        module: Backbone and pooling.
        words: The tokenizer.
        names: What `tensor_names` gave.
        path: File to write.
        kind: `F16` or `Q8_0`, the type of matrices; vectors stay in float32.
    """
    import gguf

    config = module.backbone.config
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]]
    )
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind}"]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, model, module)
    _add_vocabulary(writer, words, config)
    for name, tensor in module.backbone.state_dict().items():
        values = tensor.detach().float().cpu().numpy()
        plain = values.ndim == 1 or names[name].startswith(PLAIN)
        chosen = "F32" if plain else "F16" if values.shape[-1] % BLOCK else kind
        number = gguf.GGMLQuantizationType[chosen]
        writer.add_tensor(names[name], gguf.quants.quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_architecture(writer: Any, model: Model, module: TransformerModel) -> None:
    import gguf

    config = module.backbone.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_causal_attention(config.model_type == "qwen3")
    writer.add_pooling_type(gguf.PoolingType[POOLINGS[module.pooling]])
    if config.model_type == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_token_type_count(config.type_vocab_size)
        return
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise BadInput(
            f"{model.name} scales its positions ({rope['rope_type']}); GGUF is written for plain RoPE"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, words: GgufVocab, config: Any) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_add_bos_token(words.first is not None)
    writer.add_add_eos_token(words.last is not None)
    if words.first is not None:
        writer.add_bos_token_id(words.first)
    if words.last is not None:
        writer.add_eos_token_id(words.last)
        writer.add_sep_token_id(words.last)
    adders = {
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
        "mask": writer.add_mask_token_id,
    }
    for role, number in words.named.items():
        adders[role](number)


@torch.no_grad()
def _through_torch(export: ExportJob, names: Mapping[str, str], path: Path) -> np.ndarray:
    """Embed the fixed texts with the tensors of a file, read back and put in place of the model's own for the while."""
    import gguf

    module = export.model.module
    assert isinstance(module, TransformerModel)
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if held.keys() != set(names.values()):
        raise WorkFailed(
            f"{path.name} holds {len(held)} tensors, {len(set(names.values()))} were written"
        )
    own = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    read = {
        name: torch.from_numpy(
            np.array(gguf.quants.dequantize(held[known].data, held[known].tensor_type))
        )
        for name, known in names.items()
    }
    try:
        module.backbone.load_state_dict({name: read[name].reshape(own[name].shape) for name in own})
        return embed_with(export.model)(export.texts, None)
    finally:
        module.backbone.load_state_dict(own)
