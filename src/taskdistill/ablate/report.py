"""The report of an experiment: one self-contained page from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskdistill.ablate.bench import Bench
from taskdistill.evaluate.report import ReportData, render_report
from taskdistill.folders import write_file


def write_report(out: Path, results: Mapping[str, Any], bench: Bench) -> None:
    """Write OUT/report.html.

    Args:
        out: Folder of the experiment.
        results: Content of results.json.
        bench: The bench.
    """
    data = ReportData(title=results["name"], warnings=results["warnings"], versions=results["versions"])
    write_file(out / "report.html", render_report(data))
