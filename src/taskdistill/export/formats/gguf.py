"""GGUF for llama.cpp: Qwen3, EuroBERT and BERT backbones of one task, in F16 and Q8_0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskdistill.errors import BadInput, WorkFailed, require_extra
from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.gguf_vocab import GgufVocab, translate_tokenizer
from taskdistill.export.llama_cpp import llama_cpp_vectors, llama_cpp_version
from taskdistill.export.parity import EIGHT_BITS, HALF, Tolerance
from taskdistill.model.families import has_windows
from taskdistill.model.golden import cosines, embed_with
from taskdistill.model.model import Model
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

ARCHITECTURES = {"qwen3": "QWEN3", "eurobert": "EUROBERT", "bert": "BERT"}
POOLINGS = {Pooling.MEAN: "MEAN", Pooling.CLS: "CLS", Pooling.LAST: "LAST"}
FLOAT32_TABLES = ("position_embd", "token_types")
"""Tables that llama.cpp wants in float32."""

SAME_TOKENS = 0.999_99
"""Cosine of one text by its ids and by its characters below which its tokens differ."""

BLOCK = 32
"""Values that share a scale in Q8_0."""


class GgufFiles:
    """`model-f16.gguf` and `model-q8_0.gguf`.

    Each is compared by putting its tensors back into the torch model, and with llama.cpp itself
    where the package `xllamacpp` is installed.
    """

    usage = 'llama-embedding -m model-q8_0.gguf --embd-normalize 2 -p "{prompt}a text"'
    all_tasks = False

    def check(self, model: Model) -> None:
        """Refuse a model whose architecture or tokenizer llama.cpp does not have."""
        require_extra("gguf", "export", "GGUF export")
        _checked_parts(model)

    def write(self, job: ExportJob) -> None:
        """Write and compare both files; eight bits are only reported."""
        module, vocab = _checked_parts(job.model)
        names = _tensor_names(module)
        llama_cpp = llama_cpp_version()
        if llama_cpp is None:
            job.notes.append(
                "llama.cpp is not installed here (pip install 'taskdistill[llama-cpp]'); the files "
                "were checked tensor by tensor, through torch, only"
            )
        package = f"torch on the tensors read back by gguf {metadata.version('gguf')}"
        for kind, tolerance in (("F16", HALF), ("Q8_0", EIGHT_BITS)):
            path = job.folder / f"model-{kind.lower()}.gguf"
            _write_file(path, job.model.name, module, vocab, names=names, kind=kind)
            vectors = _torch_vectors(job, module, path, names)
            job.compare(path.name, package, vectors, tolerance, required=tolerance is HALF)
            if llama_cpp is not None:
                _compare_llama_cpp(job, path, llama_cpp, tolerance)


def _checked_parts(model: Model) -> tuple[TransformerModel, GgufVocab]:
    module = model.module
    family = module.backbone.config.model_type if isinstance(module, TransformerModel) else "static"
    if not isinstance(module, TransformerModel) or family not in ARCHITECTURES:
        raise BadInput(
            f"GGUF is written for {', '.join(ARCHITECTURES)} backbones; {model.name} is a {family} "
            "model"
        )
    config = module.backbone.config
    if has_windows(config) or (family == "qwen3" and getattr(config, "is_causal", None) is False):
        lacks = "windowed attention" if has_windows(config) else "attention both ways"
        raise BadInput(
            f"{model.name} has {lacks}, which a GGUF file of a {family} model cannot say; export "
            "it as sentence-transformers or onnx"
        )
    spec = json.loads(model.tokenizer.to_json())
    return module, translate_tokenizer(spec, config.vocab_size, model.name)


def _compare_llama_cpp(job: ExportJob, path: Path, version: str, tolerance: Tolerance) -> None:
    """Compare on our token ids, which shows the graph, and on texts, which shows its tokenizer too.

    Only texts that the model reads whole: llama.cpp cuts no text, it refuses it.
    """
    length = job.model.settings.max_length
    tokens = job.tokenized()
    rows = [i for i in range(len(job.texts)) if not tokens.truncated[i]]
    by_ids = llama_cpp_vectors(path, [tokens.ids[i].tolist() for i in rows], length)
    job.compare(
        path.name,
        f"{version}, our token ids",
        by_ids,
        tolerance,
        required=tolerance is HALF,
        rows=rows,
    )
    by_text = llama_cpp_vectors(path, [job.prompt + job.texts[i] for i in rows], length)
    job.compare(path.name, f"{version}, texts", by_text, tolerance, required=False, rows=rows)
    same = cosines(by_ids, by_text) >= SAME_TOKENS
    if other := [job.texts[i] for i, equal in zip(rows, same, strict=True) if not equal]:
        job.notes.append(
            f"{path.name}: llama.cpp's own tokenizer cuts {len(other)} of {len(rows)} texts in "
            f"another way: {other}"
        )


def _tensor_names(module: TransformerModel) -> dict[str, str]:
    """Map the names of all the backbone's tensors to GGUF's."""
    import gguf

    config = module.backbone.config
    table = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]], config.num_hidden_layers
    )
    names = {}
    for name in module.backbone.state_dict():
        candidates = (
            table.get_name(prefix + name, try_suffixes=(".weight", ".bias"))
            for prefix in ("", "model.")
        )
        gguf_name = next((candidate for candidate in candidates if candidate is not None), None)
        if gguf_name is None:
            raise WorkFailed(
                f"the gguf package has no name for the tensor {name} of a {config.model_type} "
                "model; upgrade it"
            )
        names[name] = gguf_name
    return names


def _write_file(
    path: Path,
    name: str,
    module: TransformerModel,
    vocab: GgufVocab,
    *,
    names: Mapping[str, str],
    kind: str,
) -> None:
    """Write one file; `kind` is the type of matrices, vectors stay in float32."""
    import gguf

    architecture = gguf.MODEL_ARCH[ARCHITECTURES[module.backbone.config.model_type]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    fields = {
        "type": "model",
        "name": name,
        "file_type": int(gguf.LlamaFileType[f"MOSTLY_{kind}"]),
        "quantization_version": gguf.GGML_QUANT_VERSION,
        **_architecture_fields(name, module),
        **_vocab_fields(vocab),
    }
    for field, value in fields.items():
        getattr(writer, f"add_{field}")(value)
    for tensor_name, tensor in module.backbone.state_dict().items():
        values = tensor.detach().float().cpu().numpy()
        if values.ndim == 1 or names[tensor_name].startswith(FLOAT32_TABLES):
            dtype = "F32"
        else:
            dtype = "F16" if values.shape[-1] % BLOCK else kind
        number = gguf.GGMLQuantizationType[dtype]
        quantized = gguf.quants.quantize(values, number)
        writer.add_tensor(names[tensor_name], quantized, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture_fields(name: str, module: TransformerModel) -> dict[str, Any]:
    import gguf

    config = module.backbone.config
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "causal_attention": config.model_type == "qwen3",
        "pooling_type": gguf.PoolingType[POOLINGS[module.pooling]],
    }
    if config.model_type == "bert":
        return fields | {
            "layer_norm_eps": config.layer_norm_eps,
            "token_type_count": config.type_vocab_size,
        }
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise BadInput(
            f"{name} scales its positions ({rope['rope_type']}); GGUF is written for plain RoPE"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return fields | {
        "head_count_kv": config.num_key_value_heads,
        "key_length": width,
        "value_length": width,
        "rope_dimension_count": width,
        "rope_freq_base": rope["rope_theta"],
        "rope_scaling_type": gguf.RopeScalingType.NONE,
        "layer_norm_rms_eps": config.rms_norm_eps,
    }


def _vocab_fields(vocab: GgufVocab) -> dict[str, Any]:
    fields = {
        "tokenizer_model": vocab.model,
        "tokenizer_pre": vocab.pre,
        "token_list": vocab.tokens,
        "token_types": vocab.types,
        "token_merges": vocab.merges or None,
        "add_bos_token": vocab.bos is not None,
        "add_eos_token": vocab.eos is not None,
        "bos_token_id": vocab.bos,
        "eos_token_id": vocab.eos,
        "sep_token_id": vocab.eos,
        **{f"{role}_token_id": number for role, number in vocab.special_ids.items()},
    }
    return {field: value for field, value in fields.items() if value is not None}


@torch.no_grad()
def _torch_vectors(
    job: ExportJob, module: TransformerModel, path: Path, names: Mapping[str, str]
) -> NDArray[np.float32]:
    """Embed the texts with the tensors of a file in place of the model's, which are restored."""
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if tensors.keys() != set(names.values()):
        raise WorkFailed(
            f"{path.name} holds {len(tensors)} tensors, {len(set(names.values()))} were written"
        )
    original = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    stored = {}
    for name, gguf_name in names.items():
        tensor = tensors[gguf_name]
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        stored[name] = torch.from_numpy(values).reshape(original[name].shape)
    try:
        module.backbone.load_state_dict(stored)
        return embed_with(job.model)(job.texts, None)
    finally:
        module.backbone.load_state_dict(original)


FORMAT: ExportFormat = GgufFiles()
