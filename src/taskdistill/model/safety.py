"""What a model folder may hold: checked from sizes and headers alone, before anything is allocated
or run.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput

HEADER_LIMIT = 10_000_000
"""Bytes of a safetensors header; a model of 10,000 tensors needs about one million."""

JSON_LIMIT = 16_000_000
"""Bytes of a JSON file other than the tokenizer."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
WEIGHT_TYPES = frozenset({"F32", "F16", "BF16"})

CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "custom_generate",
        "trust_remote_code",
        "quantization_config",
        "kernel_config",
        "use_kernels",
    }
)
"""Configuration keys that make a loader fetch, import or choose code."""

ATTENTIONS = frozenset(
    {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
)
ATTENTION_KEY = re.compile(r"_?(attn|experts)_implementation(_internal)?")

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]


def check_file(path: Path, folder: Path) -> None:
    """Refuse a file that is a link out of its model folder; a Hub cache's links to its own blobs
    are allowed.

    Raises BadInput if the file lies elsewhere.
    """
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not real.is_relative_to(root) and not real.is_relative_to(blobs):
        raise BadInput(
            f"{path} is a link to {real}, outside the model folder; copy the file itself into the"
            " folder"
        )


def check_folder_files(folder: Path) -> None:
    """Look over a model folder: no link leads out of it, no JSON file is absurdly large, no adapter
    stands in for the base.

    Raises BadInput on the first such file.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("*_*/*"), *folder.glob("adapters/*/*")]):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"}:
            check_file(path, folder)
        if (
            path.suffix == ".json"
            and path.name != "tokenizer.json"
            and path.is_file()
            and path.stat().st_size > JSON_LIMIT
        ):
            raise BadInput(
                f"{path} has {path.stat().st_size} bytes, at most {JSON_LIMIT} are accepted; it is"
                " no configuration file"
            )
    if (folder / "adapter_config.json").exists():
        raise BadInput(
            f"{folder}/adapter_config.json names another base model to load; merge the adapter"
            " first, or keep it below adapters/"
        )


def task_folder(folder: Path, task: str) -> Path:
    """Find the folder of a task's adapter.

    `task`: name of the task, from a file of the folder. Returns `adapters/<task>` below the folder.
    Raises BadInput if the name could lead elsewhere.
    """
    if not isinstance(task, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", task):
        raise BadInput(f"{folder} names a task {task!r}; letters, digits, - and _ are accepted")
    return folder / "adapters" / task


def remote_code_keys(raw: object) -> list[str]:
    """Find the keys of a configuration that name code, at any depth.

    Returns the keys, empty if there are none.
    """
    result: list[str] = []
    pending: list[object] = [raw]
    while pending:
        here = pending.pop()
        if isinstance(here, Mapping):
            result += [str(key) for key, value in here.items() if _names_code(str(key), value)]
            pending.extend(here.values())
        elif isinstance(here, list):
            pending.extend(here)
    return result


def _names_code(key: str, value: object) -> bool:
    if key in CODE_KEYS:
        return bool(value)
    return (
        ATTENTION_KEY.fullmatch(key) is not None and value is not None and value not in ATTENTIONS
    )


def check_safetensors(path: Path) -> dict[str, TensorHeader]:
    """Read the header of a safetensors file and check all that it claims against the size of the
    file.

    `path`: the file; only its header is read. Raises BadInput if the header is too large, is no
    JSON object, repeats a name, or its tensors overlap, leave gaps, have unknown types, or are not
    as long as their shapes say.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing; copy the model folder again")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise _malformed(
                path,
                f"its header claims {length} bytes, the file has {size}, at most {HEADER_LIMIT} are"
                " accepted",
            )
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise _malformed(
            path, f"its header is no JSON object with unique names ({error})"
        ) from None
    if not isinstance(header, dict):
        raise _malformed(path, "its header is no JSON object")
    return _check_layout(path, header, size - 8 - length)


def _check_layout(path: Path, header: Mapping[str, Any], data: int) -> dict[str, TensorHeader]:
    entries, extents = {}, []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = (
                value["dtype"],
                tuple(value["shape"]),
                value["data_offsets"],
            )
            numbers = [*shape, begin, end]
            good = dtype in ITEM_BYTES and all(type(n) is int and n >= 0 for n in numbers)
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise _malformed(path, f"the entry of tensor {name[:80]!r} is malformed")
        if math.prod(shape) * ITEM_BYTES[dtype] != end - begin or end > data:
            raise _malformed(
                path,
                f"tensor {name[:80]!r} of shape {list(shape)} and type {dtype} does not fill bytes"
                f" {begin} to {end} of {data}",
            )
        entries[name] = TensorHeader(dtype, shape)
        extents.append((begin, end))
    place = 0
    for begin, end in sorted(extents):
        if begin != place:
            raise _malformed(path, f"its tensors overlap or leave a gap at byte {place}")
        place = end
    if place != data:
        raise _malformed(path, f"its tensors cover {place} of {data} bytes")
    return entries


def check_weights(folder: Path) -> dict[str, TensorHeader]:
    """Check a folder's weights, in one file or in shards, from their headers.

    Raises BadInput if there are no safetensors, a header lies, or the index names a file elsewhere.
    """
    if (folder / "model.safetensors").exists():
        return check_safetensors(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        raise BadInput(
            f"{folder} has no model.safetensors{f' but {other}' if other else ''}; pickled weights"
            " are never read: convert them to safetensors first"
        )
    try:
        table = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{index} is no index of shards ({error}); copy the model folder again"
        ) from None
    result: dict[str, TensorHeader] = {}
    for shard in shards:
        if not isinstance(shard, str) or shard in {".", ".."} or "/" in shard or "\\" in shard:
            raise BadInput(
                f"{index} names the file {shard!r}, outside the model folder; shards lie beside"
                " their index"
            )
        check_file(folder / shard, folder)
        for name, entry in check_safetensors(folder / shard).items():
            if table.get(name) != shard or name in result:
                raise BadInput(
                    f"{index} and {shard} disagree about tensor {name[:80]!r}; copy the model"
                    " folder again"
                )
            result[name] = entry
    if missing := sorted(table.keys() - result.keys()):
        raise BadInput(
            f"{index} lists {len(missing)} tensors that no shard holds, {missing[:3]} first; copy"
            " the model folder again"
        )
    return result


def check_fits(
    needed: Sequence[Mapping[str, tuple[int, ...]]],
    header: Mapping[str, TensorHeader],
    path: Path,
    *,
    prefix: str = "",
    aliases: Mapping[str, str] | None = None,
    passed_over: tuple[str, ...] = (),
) -> None:
    """Compare the tensors that an architecture has with those that a file's header describes.

    `needed`: tensor name to shape, in every form that is read; the file has to fit one of them.
    `prefix`: what files of models with a head put before the names. `aliases`: further names of
    tensors that have several, to the one in `needed`. `passed_over`: beginnings of names of parts
    that are not read, such as the decoder of an encoder-decoder. Raises BadInput on a missing,
    unknown, misshapen or mistyped tensor; heads of other uses, such as `lm_head`, are passed over.
    """
    known = {name for form in needed for name in form}
    inside = [
        name for name in header if prefix and name not in known and name.startswith(f"{prefix}.")
    ]
    read = {
        name: entry
        for name, entry in header.items()
        if not passed_over or not name.startswith(passed_over)
    }
    if inside:  # the file of a model with a head: what stands beside the base belongs to the head
        read = {
            name: entry
            for name, entry in read.items()
            if name in known or name.startswith(f"{prefix}.")
        }
    held = {
        (aliases or {}).get(plain := _plain(name, prefix, known), plain): entry
        for name, entry in read.items()
    }
    faults = []
    for form in needed:
        missing = sorted(form.keys() - held.keys())
        extra = sorted(name for name in held.keys() - form.keys() if not OTHER_USES.search(name))
        faults.append((len(missing) + len(extra), missing, extra, form))
    wrong, missing, extra, form = min(faults, key=lambda one: one[0])
    if wrong:
        raise BadInput(
            f"{path} does not fit its config.json: {len(missing)} tensors missing {missing[:3]},"
            f" {len(extra)} unknown {extra[:3]}"
        )
    for name, shape in form.items():
        if held[name].shape != shape:
            raise BadInput(
                f"{path}: {name} has shape {list(held[name].shape)}, its config.json asks for"
                f" {list(shape)}"
            )
        if held[name].dtype not in WEIGHT_TYPES:
            raise BadInput(
                f"{path}: {name} has type {held[name].dtype}; weights are read as"
                f" {', '.join(sorted(WEIGHT_TYPES))}"
            )


OTHER_USES = re.compile(
    r"(^|\.)(lm_head|cls|pooler|qa_outputs|classifier|score|vocab_transform|vocab_layer_norm|vocab_projector)\.|position_ids$|inv_freq$"
)


def _plain(name: str, prefix: str, known: Collection[str]) -> str:
    """Write a name as the bare model has it."""
    if name not in known and prefix:
        name = name.removeprefix(f"{prefix}.")
    return re.sub(
        r"LayerNorm\.gamma$",
        "LayerNorm.weight",
        re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name),
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name stands twice")
    return unique


def _malformed(path: Path, what: str) -> BadInput:
    return BadInput(f"{path} is no sound safetensors file: {what}; copy or convert it again")
