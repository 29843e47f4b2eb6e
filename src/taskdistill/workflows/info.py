"""What a folder is, and whether it is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.types import MANIFEST, Backend

VECTOR_FIELDS = (
    "model",
    "space_id",
    "source",
    "rows",
    "task",
    "prompt_name",
    "width",
    "stored_as",
    "backend",
    "dtype",
    "shard_rows",
)


def describe_folder(path: Path) -> dict[str, Any]:
    """Describe a folder that this package wrote, reading every byte.

    Returns plain data with `kind` and `faults` (empty if it is whole).
    """
    if (path / "recipe.yaml").is_file():
        return _run(path)
    manifest = read_manifest(path)
    try:
        return _describe(path, manifest)
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:  # of a manifest without a hash of itself
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path / MANIFEST} lacks a field or holds another type ({error}); copy or make the "
            "folder again"
        ) from None


def _describe(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    kind = manifest.get("kind")
    if kind == "teacher-store":
        from taskdistill.teacher.store import describe

        return {"kind": kind, **describe(path)}
    description: dict[str, Any] = {"kind": kind, "format_version": manifest["format_version"]}
    if kind == "model":
        description |= _model(manifest)
    faults = check_folder(path, manifest)
    if kind == "export":
        description |= _export(path, manifest, complete=not faults)
    if kind == "vectors":
        description |= {key: manifest[key] for key in VECTOR_FIELDS} | {
            "counts": manifest["counts"]
        }
    description |= {
        "files": len(manifest.get("files", {})),
        "bytes": sum(entry["bytes"] for entry in manifest.get("files", {}).values()),
        "made_with": manifest.get("created_by", {}),
    }
    return description | {"faults": faults}


LEAST: dict[Backend, float] = {
    Backend.TORCH: 1 - 1e-5,
    Backend.ONNXRUNTIME: 0.9999,
    Backend.OPENVINO: 0.9999,
    Backend.INT8: 0.95,
}
"""Smallest cosine to the golden vectors at which a back end still gives a model's own space; eight
bits move vectors, which `encode` says.
"""

LEAST_HALF = 0.99
"""The same of torch in half precision."""


def least_cosine(backend: Backend, dtype: str) -> float:
    """Say how close a back end must come to the golden vectors."""
    return (
        LEAST_HALF
        if backend is Backend.TORCH and dtype not in ("auto", "float32")
        else LEAST[backend]
    )


def backends_here() -> list[Backend]:
    """List the back ends whose packages are installed."""
    from importlib.util import find_spec

    needs = {
        Backend.TORCH: (),
        Backend.INT8: (),
        Backend.ONNXRUNTIME: ("onnx", "onnxruntime"),
        Backend.OPENVINO: ("openvino",),
    }
    return [
        backend
        for backend, modules in needs.items()
        if all(find_spec(module) is not None for module in modules)
    ]


def verify_model(
    path: Path,
    backend: Backend = Backend.TORCH,
    *,
    device: str = "auto",
    dtype: str = "auto",
    note: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Compare a model folder with its golden vectors: the contract of its embedding space.

    `device`: see `Encoder.load`; acts on torch only. `dtype`: see `Encoder.load`; acts on torch
    only. `note`: told where the model runs. Returns `base` or task to the smallest cosine.
    """
    from taskdistill.model.golden import check_golden, read_golden

    golden = read_golden(path)
    if golden is None:
        raise BadInput(
            f"{path} has no golden vectors to verify against; only model folders that this "
            "package wrote have them"
        )
    from taskdistill.encode.encoder import Encoder

    on_torch = backend is Backend.TORCH
    encoder = Encoder.load(
        path,
        backend=backend.value,
        device=device if on_torch else "auto",
        dtype=dtype if on_torch else "auto",
    )
    if note is not None:
        note(encoder.placement)
    return check_golden(
        golden, lambda texts, task: encoder.encode(texts, task=task, prompt_name=golden["role"])
    )


def repair_folder(path: Path) -> list[str]:
    """Drop the broken parts of a teacher store."""
    manifest = read_manifest(path)
    if manifest.get("kind") != "teacher-store":
        raise BadInput(
            f"{path} is a {manifest.get('kind')!r} folder; only a teacher store can be repaired, "
            "make this one again"
        )
    from taskdistill.teacher.store import repair

    return repair(path)


def _model(manifest: dict[str, Any]) -> dict[str, Any]:
    settings = manifest["settings"]
    return {
        "name": manifest["name"],
        "tasks": manifest["tasks"] or ["none"],
        "matryoshka_dims": settings["matryoshka_dims"],
        "max_length": settings.get("max_length"),
        "rope_theta": settings.get("rope_theta"),
        "prompts": {name: repr(text) for name, text in settings.get("prompts", {}).items()},
        "space_id": settings.get("space_id"),
        "teacher": settings.get("teacher"),
    }


def _export(path: Path, manifest: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    from taskdistill.model.backbone import read_json

    parity = (
        read_json(path / "parity.json") if complete and (path / "parity.json").is_file() else {}
    )
    return {
        "format": manifest["format"],
        "model": manifest["name"],
        "task": manifest["task"] or "none",
        "max_length": manifest["max_length"],
        "prompts": {name: repr(text) for name, text in manifest["prompts"].items()},
        "parity": {
            f"{each['file']} ({each['checked_with']})": each["verdict"]
            for each in parity.get("results", [])
        },
    }


def _run(path: Path) -> dict[str, Any]:
    import yaml

    recipe = yaml.safe_load((path / "recipe.yaml").read_text("utf-8"))
    phases = (
        sorted(each.name for each in (path / "phases").glob("*") if not each.name.startswith("."))
        if (path / "phases").is_dir()
        else []
    )
    faults = []
    for folder in [
        *(path / "phases" / name for name in phases),
        path / "model",
        path / "static-model",
    ]:
        if (folder / MANIFEST).is_file():
            faults += [
                f"{folder.name}/{fault}" for fault in check_folder(folder, read_manifest(folder))
            ]
    finished = (path / "metrics.json").is_file()
    return {
        "kind": "run",
        "name": recipe["name"],
        "finished": finished,
        "phases_finished": phases or ["none"],
        "report": (
            str(path / "report.html")
            if finished
            else "not yet; run the train command again to continue"
        ),
        "faults": faults,
    }
