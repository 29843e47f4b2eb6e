"""Numbers as they stand in the record: exact where they are few, else a hash for this machine and a
few sums for every other.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

SUMS = 4


def hexadecimal(value: float) -> str:
    """A float to its last bit."""
    return float(value).hex()


def summarize(array: np.ndarray) -> dict[str, Any]:
    """Shape, type, hash of the bytes, and weighted sums that any change of a value moves.

    Sums of codes are divided by their number, so that one code that is rounded otherwise elsewhere
    moves them little; those of floats by its root, as random values add up. Of codes the mean comes
    first, which another way of rounding moves.
    """
    array = np.ascontiguousarray(array)
    flat = array.reshape(-1).astype(np.float64)
    places, whole = np.arange(len(flat)), array.dtype.kind in "iu"
    scale = max(1.0, float(len(flat)) if whole else float(len(flat)) ** 0.5)
    sums = [float(flat @ np.cos((0.7 + n) * places + n) / scale) for n in range(SUMS)]
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "codes" if whole else "sums": [
            round(each, 10) for each in ([float(flat.sum() / scale), *sums] if whole else sums)
        ],
    }


def summarize_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """One hash of all named tensors, and the norm of each kind of them.

    Norms, since training moves weights that no loss sees (the key biases of attention) by rounding
    alone.
    """
    digest = hashlib.sha256()
    total, absolute, count = 0.0, 0.0, 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(__import__("torch").uint8).numpy().tobytes())
        values = tensor.double()
        total, absolute, count = (
            total + float(values.square().sum()),
            absolute + float(values.abs().sum()),
            count + tensor.numel(),
        )
    return {
        "sha256": digest.hexdigest(),
        "tensors": len(tensors),
        "numbers": count,
        "norm": total**0.5,
        "absolute": absolute,
    }


def read_weights(path: Path) -> dict[str, Any]:
    """Summary of a safetensors file."""
    from safetensors.torch import load_file

    return summarize_tensors(load_file(path))


def weights_below(folder: Path) -> dict[str, Any]:
    """Summary of every safetensors file below a folder, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): read_weights(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }


def dump(record: dict[str, Any]) -> str:
    """A record as text: one line a key, keys in order, so that a change shows as the lines that it
    changes.
    """
    lines = [
        f"{json.dumps(key)}: {json.dumps(record[key], sort_keys=True, ensure_ascii=False)}"
        for key in sorted(record)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
