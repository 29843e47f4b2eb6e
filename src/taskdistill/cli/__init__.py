"""The command line: argv to calls; the only place that prints or reads the environment."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with 0 (success), 1 (the work failed) or 2 (bad input)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from taskdistill.cli.main import run

    sys.exit(run(sys.argv[1:]))
