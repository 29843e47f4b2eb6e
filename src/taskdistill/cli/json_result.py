"""The --json option: checked before a command does anything, so that no work ends at somebody's
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from taskdistill.io.outputs import IsReplaceable, check_result, is_list_of, is_result

HIT_FIELDS = ("id", "score", "text", "metadata", "start", "end")
TIER_FIELDS = (
    "queries",
    "documents",
    "space",
    "task",
    "ndcg",
    "retention",
    "query_milliseconds",
    "search_milliseconds",
    "document_milliseconds",
    "end_to_end_milliseconds",
)

is_hits = is_list_of(*HIT_FIELDS)
is_tiers = is_list_of(*TIER_FIELDS)

_LISTS: Mapping[str, IsReplaceable] = {"search": is_hits, "tiers": is_tiers}
"""Commands whose result is a list."""


class Checked(TyperCommand):
    """A command that looks at the path of its JSON result first."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        path = ctx.params.get("json")
        if isinstance(path, Path):
            out = ctx.params.get("out")
            check_result(
                path, _LISTS.get(str(self.name), is_result), out if isinstance(out, Path) else None
            )
        return super().invoke(ctx)
