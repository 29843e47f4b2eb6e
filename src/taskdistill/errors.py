"""The errors and the warning that a person is meant to read, and the choice of a nearest name to
suggest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """What was given cannot be used: says what it got, what it needs and what to do. Exit
    code 2.
    """


class WorkFailed(RuntimeError):
    """The input was good but the work could not be finished; what was saved stays valid. Exit code
    1.
    """


class RowError(ValueError):
    """Why one row of many cannot be used; it is counted under its reason, and the others go on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Say what is wrong.

        `reason`: the same words for every such row. `detail`: what is particular to this one.
        """
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads, and their ends were cut."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word closest to `word`, or the list of known
    words.
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def require_extra(module: str, extra: str, purpose: str) -> None:
    """Check that an optional package can be imported.

    `purpose`: what it is needed for, to finish the sentence "X needs ...". Raises BadInput if the
    module is not installed.
    """
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise BadInput(
            f"{purpose} needs the package {module!r}, which is not installed; run: pip install"
            f" 'taskdistill[{extra}]'"
        )
