"""Two records compared: equal bits on the machine that recorded, within tolerances on
every other.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEXADECIMAL = re.compile(r"-?0x[01]\.?[0-9a-f]*p[+-]\d+\Z")
HASH = re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{8,}\b")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
REST = 1e-6
"""Tolerance of what is computed from given weights, relative above 1 and absolute below."""
TRAINED = 1e-4
"""Tolerance of losses, relative: the teacher's vectors are kept in half precision, and some round
to the other side elsewhere.
"""
SCORES = 0.02
"""Tolerance of what is measured of a model that was trained elsewhere: two near documents in the
other order move a score by a step.
"""
PARTS_OF_LOSSES = 1e-3
"""Tolerance of single terms and gradient norms, relative: in their sum, the loss, they move less.
"""
SUMS = {"float16": 5e-4, "float32": 1e-5, "float64": 1e-5}
"""Tolerance of the sums of arrays: ten roundings of half precision; of float32 the roundings of a
whole forward pass.
"""
EIGHT_BITS = 2e-3
"""The same of a back end of eight bits, whose inputs are rounded to 256 steps."""
CODES = 0.05
"""Tolerance of mean codes: some round to the other side elsewhere; another way of rounding moves
them by half a code.
"""
FILE_BYTES = 64
"""By how much the size of a folder may differ: numbers in JSON files have other digits, and so
other lengths.
"""
ABSENT = "(absent)"

Difference = tuple[str, Any, Any]


def fingerprint() -> dict[str, str]:
    """What decides the last bits of a matrix product: the processor's instructions and the
    libraries.
    """
    import numpy
    import torch
    import transformers

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    facts = sorted(
        {
            line
            for line in lines
            if line.split(":")[0].strip()
            in ("flags", "Features", "model", "cpu family", "stepping", "model name")
        }
    )
    return {
        "cpu": hashlib.sha256("\n".join([platform.machine(), *facts]).encode()).hexdigest()[:16],
        "cores": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def differences(
    old: Any, new: Any, *, exact: bool, tolerance: float = REST
) -> Iterator[Difference]:
    """Where two records differ: path, old and new value."""
    yield from _differ("", old, new, exact, tolerance)


def _differ(path: str, old: Any, new: Any, exact: bool, tolerance: float) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if not exact and key == "sha256":
                continue
            near = _tolerance(path, key, old, tolerance)
            yield from _differ(
                f"{path} > {key}" if path else key,
                old.get(key, ABSENT),
                new.get(key, ABSENT),
                exact,
                near,
            )
    elif (
        isinstance(old, list)
        and isinstance(new, list)
        and (len(old) == len(new) or not _texts(old, new))
    ):
        pairs = (
            list(zip(old, new, strict=False))
            if exact or not _texts(old, new)
            else _without_hashes(old, new)
        )
        for place, (one, other) in enumerate(pairs):
            yield from _differ(f"{path}[{place}]", one, other, exact, tolerance)
        if len(old) != len(new):
            yield f"{path}, items", len(old), len(new)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _lines(path, old, new)
    elif not (_same(old, new) if exact else _alike(old, new, tolerance)):
        yield path, old, new


def _tolerance(path: str, key: str, record: dict[str, Any], tolerance: float) -> float:
    """What may differ elsewhere under a key of a record."""
    if key == "sums":
        dtype = str(record.get("dtype"))
        return (
            EIGHT_BITS
            if "int8" in path and dtype == "float32"
            else SUMS.get(dtype, SUMS["float32"])
        )
    if key.startswith("term ") or key == "gradient norm":
        return PARTS_OF_LOSSES
    return {
        "codes": CODES,
        "norm": TRAINED,
        "absolute": TRAINED,
        "largest_difference": SUMS["float32"],
    }.get(key, tolerance)


def _texts(*lists: list[Any]) -> bool:
    return all(
        isinstance(each, str) and not HEXADECIMAL.match(each) for values in lists for each in values
    )


def _without_hashes(old: list[str], new: list[str]) -> list[tuple[str, str]]:
    """Pair texts in their order; names with hashes in them, which sort otherwise elsewhere, in that
    without them.
    """
    if not any(HASH.search(each) for each in old):
        return list(zip(old, new, strict=True))
    return list(
        zip(
            *(sorted(HASH.sub("<hash>", each) for each in values) for values in (old, new)),
            strict=True,
        )
    )


def _lines(path: str, old: list[str], new: list[str]) -> Iterator[Difference]:
    """Name the texts that one list has and the other has not."""
    gone, come = (
        [each for each in old if each not in new],
        [each for each in new if each not in old],
    )
    for place in range(max(len(gone), len(come), 1)):
        before, after = (side[place] if place < len(side) else ABSENT for side in (gone, come))
        yield (path, before, after) if gone or come else (f"{path}, items", len(old), len(new))


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and (
        old == new or (isinstance(old, float) and math.isnan(old) and math.isnan(new))
    )


def _alike(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(old, bool) or isinstance(new, bool) or old is None or new is None:
        return old is new
    if isinstance(old, str) and isinstance(new, str):
        if HEXADECIMAL.match(old) and HEXADECIMAL.match(new):
            return _near(
                float.fromhex(old),
                float.fromhex(new),
                TRAINED if tolerance == SCORES else tolerance,
            )
        return _alike_texts(HASH.sub("<hash>", old), HASH.sub("<hash>", new), tolerance)
    if isinstance(old, int | float) and isinstance(new, int | float):
        return _near(float(old), float(new), tolerance)
    return type(old) is type(new) and bool(old == new)


def _alike_texts(old: str, new: str, tolerance: float) -> bool:
    """Compare words exactly and numbers within the tolerance and one in the last digit that is
    printed.
    """
    if NUMBER.split(old) != NUMBER.split(new):
        return False
    for one, other in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        if one != other:
            digits = len(one.partition(".")[2].partition("e")[0]) if "." in one else None
            a, b = (float(each.replace(",", "")) for each in (one, other))
            if digits is None and old.startswith("bytes ") and abs(a - b) <= FILE_BYTES:
                continue
            if digits is None or not (_near(a, b, tolerance) or abs(a - b) <= 1.01 * 10.0**-digits):
                return False
    return True


def _near(old: float, new: float, tolerance: float) -> bool:
    if not (math.isfinite(old) and math.isfinite(new)):
        return old == new or (math.isnan(old) and math.isnan(new))
    return abs(old - new) <= tolerance * (
        abs(old) + 1e-3 if tolerance in (TRAINED, PARTS_OF_LOSSES) else max(1.0, abs(old))
    )
