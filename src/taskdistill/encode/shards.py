"""One shard of a corpus: some rows in, a file of vectors out. The one function that every way of
running a corpus calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.runner import EncodeOptions
from taskdistill.encode.texts import EncodeStats, TextReader
from taskdistill.errors import BadInput
from taskdistill.io.atomic import replacing, sha256_file
from taskdistill.io.records import TextSource
from taskdistill.io.sealed import read_sealed, write_sealed

SHARDS = "shards"
JOB = "job.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """What every worker needs to encode any shard of a corpus; can be sent to another process or
    machine.
    """

    model: str
    """Model folder or name, readable by every worker."""
    source: TextSource
    """The texts, readable by every worker."""
    folder: Path
    """Output, writable by every worker."""
    shard_rows: int
    options: EncodeOptions
    """Arguments of `Encoder.encode`."""
    backend: str
    dtype: str
    threads: int
    """Threads of each worker."""

    def open(self, device: str) -> Encoder:
        """Load the model."""
        return Encoder.load(
            self.model, threads=self.threads, backend=self.backend, device=device, dtype=self.dtype
        )


class ShardWorker:
    """A loaded model and the corpus, opened once: shard number in, report out."""

    def __init__(self, job: ShardJob, encoder: Encoder) -> None:
        self.job = job
        self.encoder = encoder
        self._rows: TextReader | None = None

    def run(self, number: int) -> EncodeStats:
        """Encode one shard; ascending numbers read the corpus once."""
        first = number * self.job.shard_rows
        if self._rows is None or self._rows.place > first:
            if self._rows is not None:
                self._rows.close()
            self._rows = TextReader(self.job.source)
        self._rows.skip(first - self._rows.place)
        return encode_shard(self.encoder, self._rows, number, self.job)


def encode_shard(encoder: Encoder, texts: TextReader, number: int, job: ShardJob) -> EncodeStats:
    """Encode the next rows of a corpus and write them: vectors, row numbers, and last the report
    that makes them count.

    Raises BadInput if a text cannot be encoded as asked.
    """
    counts, first = EncodeStats(), texts.place
    result = list(texts.take(counts, job.shard_rows))
    try:
        encoded = encoder.encode_reporting([text for _, text in result], **job.options)
    except BadInput as error:
        raise BadInput(f"shard {number}, rows from {first}: {error}") from None
    counts.used, counts.vectors, counts.truncated = (
        len(result),
        len(result),
        int(encoded.truncated.sum()),
    )
    vectors, rows, report = shard_files(job.folder, number)
    _save(vectors, encoded.vectors)
    _save(rows, np.array([row for row, _ in result], dtype=np.int64))
    hashes = {path.name: sha256_file(path) for path in (vectors, rows)}
    write_sealed(
        report, {"job": sha256_file(job.folder / JOB), "files": hashes, "counts": counts.as_dict()}
    )
    return counts


def finished(folder: Path, number: int) -> EncodeStats | None:
    """Say whether a shard is there, reading every byte of it.

    Returns what became of its rows; None if it is missing, damaged, half written or of another job,
    and has to be encoded.
    """
    vectors, rows, report = shard_files(folder, number)
    try:
        report_fields = read_sealed(report, "the shard has to be encoded again")
        # Reports of the first format call the table of hashes by another name, and name no job.
        unchanged = (
            report_fields["sha256"] if "sha256" in report_fields else report_fields["files"]
        ) == {path.name: sha256_file(path) for path in (vectors, rows)}
        if unchanged and report_fields.get("job", "") in ("", sha256_file(folder / JOB)):
            return EncodeStats(**report_fields["counts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def shard_files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Name the files of a shard."""
    base = folder / SHARDS / f"{number:06d}"
    return base.with_suffix(".npy"), base.with_suffix(".rows.npy"), base.with_suffix(".json")


def _save(path: Path, values: np.ndarray) -> None:
    with replacing(path) as beside, beside.open("wb") as stream:
        np.save(stream, values)
