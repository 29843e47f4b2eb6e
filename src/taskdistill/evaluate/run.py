"""Evaluate several models on several sets; every finished score is kept on disk and never computed twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskdistill.compress import ranges_to_json
from taskdistill.errors import BadInput
from taskdistill.evaluate.compression import Cell, compression_matrix
from taskdistill.evaluate.encoding import encode_set
from taskdistill.evaluate.kinds import Embedder, Kind
from taskdistill.evaluate.protocols import evaluate_encoded
from taskdistill.evaluate.reading import SetData
from taskdistill.evaluate.results import Record, mean_matrix, summarise, to_record
from taskdistill.evaluate.sets import EvalSet
from taskdistill.folders import dump_json, versions, write_file

COMPRESSED = (Kind.RETRIEVAL, Kind.STS, Kind.PAIR_CLASSIFICATION, Kind.BITEXT)
"""Kinds whose compression is measured: those whose score costs little once vectors are there."""


@dataclass(frozen=True)
class Options:
    """What changes a score beside model and set."""

    max_queries: int | None = None
    seed: int = 17
    full_train: bool = False
    dims: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()


def evaluate_models(
    models: Sequence[Embedder],
    sets: Sequence[EvalSet],
    folder: Path | None = None,
    options: Options | None = None,
    *,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score every model on every set.

    With a folder, each score is written to `folder/cache/` as soon as it is there, under a hash of the model's
    fingerprint, the set's files and the options; what is there already is not computed again. Where compression is
    measured, int8 ranges go to `folder/calibration/` and a curve of each model to `folder/compression-<model>.png`.

    Args:
        models: The models; names must differ.
        sets: The sets.
        folder: Where scores are kept and `results.json` is written; None keeps nothing.
        options: Cuts, the linear probe, dimensions and precisions for the compression matrix.
        reference: Name of the model the others are compared with; None takes the first.
        progress: Called with per cent done and 100, where a set counts by the size of its files.
        note: Called with a line for each score.

    Returns:
        What `results.json` holds.

    Raises:
        BadInput: If two models have one name, a set cannot be scored, or a model's vectors cannot; finished scores stay.
    """
    options = options or Options()
    _check_names([model.name for model in models], reference)
    sizes = {each.name: sum(path.stat().st_size for path in each.files) for each in sets}
    total, done = sum(sizes.values()) * len(models), 0
    digests = {each.name: each.digest() for each in sets}
    prints = {model.name: model.fingerprint() for model in models}
    records: dict[str, dict[str, Record]] = {model.name: {} for model in models}
    for each in sets:
        data: SetData | None = None
        for model in models:
            key = _key(prints[model.name], digests[each.name], options)
            record = _cached(folder, key)
            if record is None:
                data = data or each.load(options.max_queries, options.seed)
                record = _scored(model, each, data, options, folder, key)
            records[model.name][each.name] = record
            _same_dimension(model.name, records[model.name])
            done += sizes[each.name]
            if note is not None:
                note(f"{each.name}  {model.name}  {record['metric']} {100 * record['score']:.2f}")
            if progress is not None:
                progress(round(100 * done / total), 100)
    results = {
        "models": [{"name": model.name, "fingerprint": prints[model.name]} for model in models],
        "sets": [{"name": each.name, "kind": each.kind.value, "split": each.split, "digest": digests[each.name]} for each in sets],
        "options": {**asdict(options), "dims": list(options.dims), "precisions": list(options.precisions)},
        **summarise(records, reference),
        "versions": versions(),
    }
    if folder is not None:
        _write(folder / "results.json", results)
        for name, scored in records.items():
            _write_picture(folder, name, scored)
    return results


def _scored(model: Embedder, each: EvalSet, data: SetData, options: Options, folder: Path | None, key: str) -> Record:
    encoded = encode_set(model, each.kind, data, full_train=options.full_train)
    result = evaluate_encoded(each.name, each.kind, data, encoded, full_train=options.full_train)
    cells: tuple[Cell, ...] = ()
    if options.dims and options.precisions and each.kind in COMPRESSED:
        dims = [dim for dim in options.dims if dim < encoded.dim]
        matrix = compression_matrix(each.name, each.kind, data, encoded, [encoded.dim, *dims], options.precisions)
        cells = matrix.cells
        if folder is not None:
            _write(folder / "calibration" / f"{key}.json", {"model": model.name, "set": each.name, "ranges": ranges_to_json(matrix.ranges)})
    record = to_record(result, cells)
    if folder is not None:
        _write(folder / "cache" / f"{key}.json", {"model": model.name, "record": record})
    return record


def _write_picture(folder: Path, name: str, records: dict[str, Record]) -> None:
    cells = mean_matrix(records)
    if cells:
        from taskdistill.evaluate.picture import compression_picture

        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        write_file(folder / f"compression-{slug}.png", compression_picture(cells, name, "mean score"))


def _key(fingerprint: str, digest: str, options: Options) -> str:
    return hashlib.sha256(json.dumps([fingerprint, digest, asdict(options)], sort_keys=True).encode()).hexdigest()[:32]


def _cached(folder: Path | None, key: str) -> Record | None:
    path = folder / "cache" / f"{key}.json" if folder is not None else None
    if path is None or not path.is_file():
        return None
    record: Record = json.loads(path.read_text("utf-8"))["record"]
    return record


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, dump_json(value))


def _check_names(names: list[str], reference: str | None) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"two models are called {twice[0]!r}; give each its own name")
    if reference is not None and reference not in names:
        raise BadInput(f"the reference {reference!r} is not among the models {', '.join(names)}; evaluate it too or name another")


def _same_dimension(name: str, records: dict[str, Record]) -> None:
    dims = {record["dim"]: each for each, record in records.items()}
    if len(dims) > 1:
        listed = ", ".join(f"{dim} on {each}" for dim, each in dims.items())
        raise BadInput(f"model {name!r} returned vectors of different dimensions: {listed}; one dimension for all texts is needed")
