"""The compression curve as a picture that reads in black and white."""

from __future__ import annotations

import io
from collections.abc import Sequence

from taskdistill.evaluate.compression import CompressionResult

_STYLES = {
    ("float32", False): ("-", "o"),
    ("float16", False): ("--", "s"),
    ("int8", False): ("-.", "^"),
    ("int8", True): ("--", "v"),
    ("binary", False): (":", "D"),
    ("binary", True): ("-", "x"),
}


def compression_picture(
    cells: Sequence[CompressionResult], title: str, metric: str, file_format: str = "png"
) -> bytes:
    """Draw score against size, one line a precision, each with its own dashes and marks.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (precision, rescored), (dashes, mark) in _STYLES.items():
        line = sorted(
            (cell for cell in cells if (cell.precision, cell.rescored) == (precision, rescored)),
            key=lambda cell: cell.bytes,
        )
        if line:
            name = precision + (", rescored" if rescored else "")
            xs, ys = [cell.bytes for cell in line], [100 * cell.score for cell in line]
            axes.plot(
                xs,
                ys,
                dashes,
                marker=mark,
                color="black",
                markerfacecolor="white",
                label=name,
                linewidth=1.2,
                markersize=6,
            )
    axes.set_xscale("log", base=2)
    ticks = _apart(sorted({cell.bytes for cell in cells}))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("bytes a vector")
    axes.set_ylabel(f"{metric} x 100")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", linewidth=0.4, color="0.8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(
        stream,
        format=file_format,
        dpi=150,
        metadata={"Software": "taskdistill"} if file_format == "png" else None,
    )
    return stream.getvalue()


def _apart(sizes: Sequence[int], factor: float = 1.3) -> list[int]:
    """Leave out sizes whose labels would touch on the logarithmic axis."""
    apart: list[int] = []
    for size in sizes:
        if not apart or size >= factor * apart[-1]:
            apart.append(size)
    return apart
