"""Record what the program gives, from seeds and tiny models alone, or compare it with what was
recorded.

python tests/golden/record.py [PART...]            write tests/golden/recorded/PART.json
python tests/golden/record.py --check [PART...]    compare; exit code 1 where something differs
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "recorded"
MACHINE = RECORDED / "machine.json"
"""Part to the machine that recorded it, as `compare.fingerprint` names it."""
SHOWN = 20
"""Differences that are printed."""
PATH_LENGTH = 72
PARTS = tuple(path.stem for path in sorted((HERE / "parts").glob("*.py")))
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "TERM": "dumb",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}


def make(part: str, workshop: Any) -> dict[str, Any]:
    """Make one part of the record, as it stands in its file."""
    from golden.summaries import dump

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: dict[str, Any] = json.loads(
            dump(import_module(f"golden.parts.{part}").record(workshop))
        )
    return made


def main(arguments: list[str]) -> int:
    """Record or compare, in a temporary folder."""
    check = "--check" in arguments
    chosen = [word for word in arguments if not word.startswith("--")] or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        print(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    from golden.compare import fingerprint
    from golden.summaries import dump
    from golden.workshop import Workshop

    here = fingerprint()
    recorders: dict[str, Any] = json.loads(MACHINE.read_text()) if MACHINE.is_file() else {}
    if check and (others := [part for part in chosen if recorders.get(part) != here]):
        print(f"recorded on another machine, so compared within tolerances: {', '.join(others)}")
    RECORDED.mkdir(exist_ok=True)
    found: list[tuple[str, str, Any, Any]] = []
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        workshop = Workshop(_padded(Path(folder).resolve()))
        for part in chosen:
            began = _processor_seconds()
            try:
                new = make(part, workshop)
            # what ends one part is a difference like any other, and the next ones are still
            # compared
            except Exception as error:
                found.append((part, f"ends with {type(error).__name__}", "a record", str(error)))
                print(f"{part:<12} {found[-1][1]}: {error}", flush=True)
                continue
            seconds = _processor_seconds() - began
            if check:
                differing = _check(part, new, exact=recorders.get(part) == here)
                print(
                    f"{part:<12} {len(differing)} differences of {len(new)} keys, {seconds:.0f} s",
                    flush=True,
                )
                found += differing
            else:
                (RECORDED / f"{part}.json").write_text(dump(new), "utf-8")
                recorders[part] = here
                MACHINE.write_text(dump(recorders), "utf-8")
                print(f"{part:<12} {len(new)} keys, {seconds:.0f} s", flush=True)
    if not check:
        return int(bool(found))
    for part, key, old, new_value in found[:SHOWN]:
        print(f"\n{part}: {key}\n  old {_short(old)}\n  new {_short(new_value)}")
    if found:
        print(
            f"\n{len(found)} differences in {', '.join(dict.fromkeys(part for part, *_ in found))}."
            " If they are meant: `make golden`,"
        )
        print("and a line in tests/golden/CHANGES.md that says why.")
    return int(bool(found))


def _processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


def _padded(folder: Path) -> Path:
    """A folder within whose path has always the same length: sizes of files that name it and the
    breaks of long lines depend on that.
    """
    root = folder / ("-" * max(1, PATH_LENGTH - len(str(folder)) - 1))
    root.mkdir()
    return root


def _check(part: str, new: dict[str, Any], *, exact: bool) -> list[tuple[str, str, Any, Any]]:
    from golden.compare import REST, differences

    path = RECORDED / f"{part}.json"
    old = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    tolerance = getattr(import_module(f"golden.parts.{part}"), "TOLERANCE", REST)
    return [(part, *each) for each in differences(old, new, exact=exact, tolerance=tolerance)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    sys.path[0] = str(HERE.parent)
    sys.exit(main(sys.argv[1:]))
