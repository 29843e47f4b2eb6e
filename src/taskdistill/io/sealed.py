"""JSON files that carry the hash of their own text, so that a reader believes no byte that was not
written.

The last line before the closing brace is `"sha256": "..."`, the hash of the text without that line.
Files that were written before there was one have no `format_version` or 1; those with one begin
with `format_version` 2. So no single flipped bit makes a file that is protected look like one that
never was: it would have to change both ends at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.io.atomic import write_file
from taskdistill.io.json import JsonError, open_regular, read_value

FORMAT_VERSION = 2
"""Of everything that is sealed; 1 had no hash of itself."""

_MOST_ELEMENTS = 50_000_000
"""A manifest holds ranges and hashes of all its files; whoever is asked to read one has it on the
own disk.
"""

_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')


def dump_json(value: Any) -> str:
    """Return JSON text, refusing NaN and infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def hash_json(value: object) -> str:
    """Return the SHA-256 of plain data in hexadecimal digits, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal_json(body: Mapping[str, Any]) -> str:
    """Return the JSON text of an object with the hash of that text.

    `body`: plain data, neither empty nor with the key `sha256`.
    """
    text = dump_json(body)
    return f'{text[:-3]},\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def write_sealed(path: Path, body: Mapping[str, Any]) -> None:
    """Write an object as a sealed JSON file, whole or not at all.

    `path`: target; its folder must exist.
    """
    write_file(path, seal_json({"format_version": FORMAT_VERSION, "written_as": path.name, **body}))


def read_sealed(path: Path, advice: str) -> Any:
    """Read what `write_sealed` wrote, or a JSON file of the time before files were sealed.

    Returns the object without its version, name and hash; of an older file any JSON value. Raises
    BadInput if the file is damaged, or was written under another name.
    """
    value, sealed = parse_sealed(path, _content(path), advice)
    if not sealed:
        return value
    if (
        name := value.pop("written_as", path.name)
    ) != path.name:  # not there in the first files with a hash
        raise BadInput(f"{path} holds what was written as {name}; {advice}")
    return {key: item for key, item in value.items() if key != "format_version"}


def parse_sealed(path: Path, raw: bytes, advice: str) -> tuple[Any, bool]:
    """Check the seal of a file's bytes and parse them.

    Returns the JSON value without `sha256`, and whether it was sealed. Raises BadInput if the hash
    does not fit, or the file is no JSON, or one that lost its seal.
    """
    seal = _SEAL.search(raw)
    if (
        seal is not None
        and hashlib.sha256(raw[: seal.start()] + b"\n}\n").hexdigest().encode() != seal[1]
    ):
        raise BadInput(f"{path} is damaged: its content differs from its SHA-256; {advice}")
    try:
        value = read_value(raw.decode("utf-8"), max_elements=_MOST_ELEMENTS)
    except (UnicodeDecodeError, JsonError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({str(error)[:100]}); {advice}") from None
    if seal is not None:
        del value["sha256"]
    elif isinstance(value, dict) and _lost_its_seal(value):
        raise BadInput(f"{path} is damaged: it does not end with its SHA-256; {advice}")
    return value, seal is not None


def _content(path: Path) -> bytes:
    with open_regular(path) as stream:
        return stream.read()


def _lost_its_seal(value: Mapping[str, Any]) -> bool:
    version = value.get("format_version", 1)
    return version == FORMAT_VERSION or (version == 1 and isinstance(value.get("sha256"), str))
