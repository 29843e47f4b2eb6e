"""A whole corpus to a folder of shards: several processes or machines, continued after any
interruption, read as one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.device import AUTO, CPU, dtype_name
from taskdistill.encode.backends import runs_on_cpu
from taskdistill.encode.batches import cores
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import assign_devices
from taskdistill.encode.process_executor import run_processes
from taskdistill.encode.runner import EncodeOptions, Progress
from taskdistill.encode.shards import JOB, SHARDS, ShardJob, ShardWorker, finished, shard_files
from taskdistill.encode.texts import EncodeStats, TextReader, nothing_usable
from taskdistill.errors import BadInput
from taskdistill.io.atomic import check_place, remove_stale, remove_stale_within, sha256_file
from taskdistill.io.folders import read_manifest, seal
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import foreign_names, remove_names
from taskdistill.io.protection import check_writable
from taskdistill.io.records import TextSource
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.tasks import Role
from taskdistill.types import MANIFEST, Backend

KIND = "vectors"
SHARD_ROWS = 8_192

Execute = Callable[
    [ShardJob, Sequence[int], Sequence[str]], Generator[tuple[int, EncodeStats], None, None]
]
"""A way to run shards: the job, the shards to do, a device for each worker; gives each shard as it
is done.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWorkers:
    """Who encodes the shards of a corpus."""

    processes: int = 1
    """Each loads the model and holds one shard's texts and vectors."""
    devices: Sequence[str] = (AUTO,)
    """Where they run, in turn; `auto` stands for every accelerator and `cuda` for every GPU."""
    backend: str = Backend.TORCH.value
    dtype: str = AUTO
    threads: int | None = None
    """Of each process; None shares the cores of this machine among them."""
    execute: Execute | None = None
    """How shards are run; None for processes of this machine."""


def encode_corpus(
    model: str,
    source: TextSource,
    out: Path,
    options: EncodeOptions,
    workers: ShardWorkers | None = None,
    *,
    shard_rows: int = SHARD_ROWS,
    opened: Callable[[Encoder], None] | None = None,
    progress: Progress | None = None,
) -> EncodeStats:
    """Encode a file of texts into a folder of shards, each of `shard_rows` rows of the file in its
    order.

    Run again after any interruption, it encodes the shards that are missing and no other. The
    folder gets its manifest last; `VectorFolder` reads it as one. `model`: model folder, Hub id or
    `all-MiniLM-L6-v2`. `source`: the file; standard input cannot be read by several workers.
    `options`: arguments of `Encoder.encode`, with one task. `workers`: None for this process alone.
    `opened`: called with the model, loaded, before any row is encoded. `progress`:
    called with (rows done, rows in all). Returns what became of every row, those of earlier runs
    included. Raises BadInput if an argument cannot be used, or the folder holds another job.
    """
    workers = workers or ShardWorkers()
    processes, execute = workers.processes, workers.execute
    if source.path == "-":
        raise BadInput(
            "a folder of shards needs a file that can be read again after an interruption; save"
            " standard input to one"
        )
    if processes < 1 or shard_rows < 1:
        raise BadInput(f"processes {processes} and shard_rows {shard_rows} must be at least 1")
    names = assign_devices(
        [CPU.type]
        if list(workers.devices) == [AUTO] and runs_on_cpu(workers.backend)
        else workers.devices,
        processes,
    )
    job = ShardJob(
        model=model,
        source=source,
        folder=out,
        shard_rows=shard_rows,
        options=options,
        backend=workers.backend,
        dtype=workers.dtype,
        threads=workers.threads or max(1, cores() // processes),
    )
    if not isinstance(options.get("task"), str | None):
        raise BadInput(
            "a corpus has one task for all its texts; encode a list to give each text its own"
        )
    _check_place(out)
    here = [job.open(names[0])]
    description = _describe(job, here[0])
    formerly = {"model_hash": here[0].extends, "space_id": here[0].former_space_ids}
    if opened is not None:
        opened(here[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(out.with_name(f".{out.name}.lock")):
        _claim(out, description, formerly)
        shards = -(-description["rows"] // shard_rows)
        total, pending = _look(out, shards)
        note = progress or (lambda done, rows: None)
        note(total.read, description["rows"])
        if pending:
            (out / MANIFEST).unlink(missing_ok=True)
            if execute is None and processes == 1:
                results = _run_here(ShardWorker(job, here[0]), pending)
            else:
                results = (execute or run_processes)(job, pending, names)
            here.clear()  # its memory is the workers'
            with closing(results):
                for _, counts in results:
                    total.add(counts)
                    note(total.read, description["rows"])
        if total.used == 0:
            _take_back(out, shards)
            raise nothing_usable(source, total)
        if not _is_sealed(out):
            inputs = {"model": description["model_hash"], "source": description["source_sha256"]}
            files = [
                out / JOB,
                *(file for number in range(shards) for file in shard_files(out, number)),
            ]
            names = [file.relative_to(out).as_posix() for file in files]
            seal(
                out,
                KIND,
                meta=description | {"counts": total.as_dict()},
                inputs=inputs,
                names=names,
            )
    return total


def _run_here(
    worker: ShardWorker, pending: Sequence[int]
) -> Generator[tuple[int, EncodeStats], None, None]:
    for number in pending:
        yield number, worker.run(number)


def _describe(job: ShardJob, encoder: Encoder) -> dict[str, Any]:
    """Say what is asked for, in every respect that decides the vectors; a wrong argument is found
    here.
    """
    empty = encoder.encode_reporting([], **job.options).vectors
    rows = TextReader(job.source)
    try:
        count = rows.skip()
    finally:
        rows.close()
    options: dict[str, Any] = {
        "prompt_name": Role.DOCUMENT.value,
        "truncate_dim": None,
        "max_length": None,
        **job.options,
    }
    task = options.pop("task", None)
    return {
        "model": encoder.name,
        "model_hash": encoder.model_hash,
        "space_id": encoder.space_id,
        "source": Path(job.source.path).name,
        "source_sha256": sha256_file(Path(job.source.path)),
        "column": job.source.column,
        "rows": count,
        "shard_rows": job.shard_rows,
        "task": encoder.choose_task(task),
        **options,
        "backend": job.backend,
        "dtype": dtype_name(encoder.dtype),
        "width": empty.shape[1],
        "stored_as": empty.dtype.name,
    }


def _check_place(out: Path) -> None:
    """Refuse a place that somebody else has, before anything is read or written."""
    check_place(out)
    if (
        os.path.lexists(out)
        and not (out / JOB).is_file()
        and (not out.is_dir() or foreign_names(out, JOB))
    ):
        raise BadInput(f"{out} is there and holds no shards of vectors; give another --out")
    if (out / SHARDS).is_symlink():
        raise BadInput(
            f"{out / SHARDS} is a link; shards are written only where their folder is their own:"
            " make it a plain folder first"
        )
    check_writable(out.parent, purpose=out)
    check_writable(out, *(out / name for name in (SHARDS, JOB, MANIFEST)))


def _claim(
    out: Path, description: Mapping[str, Any], formerly: Mapping[str, Collection[str]]
) -> None:
    """Begin the folder, or make sure that it was begun for the same job."""
    _check_place(out)
    if (out / JOB).is_file():
        result = read_sealed(out / JOB, "remove the folder to encode the corpus again")
        if not isinstance(result, dict):
            raise BadInput(
                f"{out / JOB} describes no job; remove the folder to encode the corpus again"
            )
        if other := [
            f"{key} {result.get(key)!r} instead of {value!r}"
            for key, value in description.items()
            if result.get(key) not in (value, *formerly.get(key, ()))
        ]:
            raise BadInput(
                f"{out} holds the vectors of another job: {'; '.join(other)}; give another --out,"
                " or the same arguments to go on"
            )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / JOB).is_file():  # first of all, since by it the folder is known again
        write_sealed(out / JOB, description)
    (out / SHARDS).mkdir(exist_ok=True)
    remove_stale(out / JOB, out / MANIFEST)
    remove_stale_within(out / SHARDS)


def _take_back(out: Path, shards: int) -> None:
    """Remove a folder in which no text became a vector."""
    remove_names(
        out / SHARDS, [file.name for number in range(shards) for file in shard_files(out, number)]
    )
    remove_names(out, [JOB])


def _is_sealed(out: Path) -> bool:
    """Say whether the folder has its manifest, and it is whole."""
    try:
        read_manifest(out, KIND)
    except BadInput:
        return False
    return True


def _look(out: Path, shards: int) -> tuple[EncodeStats, list[int]]:
    """Count what is there, and list the shards that are not."""
    total, pending = EncodeStats(), []
    for number in range(shards):
        counts = finished(out, number)
        if counts is None:
            pending.append(number)
        else:
            total.add(counts)
    return total, pending
