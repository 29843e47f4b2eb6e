"""The texts of a file, row by row, and what became of each on its way to a vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from taskdistill.errors import BadInput, RowError
from taskdistill.io.records import Records, TextSource, text_of

EXAMPLES = 5


@dataclass(slots=True, kw_only=True)
class EncodeStats:
    """What became of every row: `read` = `used` + `rejected`."""

    read: int = 0
    used: int = 0
    rejected: int = 0
    truncated: int = 0
    vectors: int = 0
    windows: int = 0
    """Passes of the model over parts of texts, where long texts are read whole."""
    examples: list[str] = field(default_factory=list)

    def reject(self, where: str, why: RowError) -> None:
        """Count one rejected row."""
        self.rejected += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {why}")

    def add(self, other: EncodeStats) -> None:
        """Add the counts of further rows."""
        for name in ("read", "used", "rejected", "truncated", "vectors", "windows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    def as_dict(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


class TextReader:
    """The texts of a source, read forward only; rows can be passed over unparsed."""

    def __init__(self, source: TextSource) -> None:
        """Open a source.

        Raises BadInput if there is no such file, it is of no known kind, or it lacks the column.
        """
        self._source = source
        columns = None if source.path == "-" else {source.column}
        self._records = Records(Path(source.path), columns)
        names = self._records.names
        if names is not None and source.column not in names:
            raise BadInput(
                f"{source.path} has the columns {', '.join(names)}, none called"
                f" {source.column!r}; name one with --column"
            )
        self.place = 0
        """Number of the next row, from 0."""

    def skip(self, count: int | None = None) -> int:
        """Pass over rows without looking into them.

        `count`: how many; None for all that are left.
        """
        result = self._records.skip(count)
        self.place += result
        return result

    def take(self, stats: EncodeStats, count: int | None = None) -> Iterator[tuple[int, str]]:
        """Read rows, each with its number from 0; those without a usable text are counted and left
        out.

        `count`: how many rows; None for all that are left.
        """
        for number, record in self._records.take(count):
            row, self.place = self.place, self.place + 1
            stats.read += 1
            try:
                if isinstance(record, RowError):
                    raise record
                yield row, text_of(record, self._source.column)
            except RowError as error:
                stats.reject(f"{self._source.path}:{number}", error)

    def close(self) -> None:
        """Close the file."""
        self._records.close()


def nothing_usable(source: TextSource, stats: EncodeStats) -> BadInput:
    """Return the error for a source without a single usable text."""
    why = f" ({stats.examples[0]})" if stats.examples else ""
    return BadInput(
        f"{source.path} has no row with a usable text{why}; give a file with texts, or name their"
        " column with --column"
    )
