"""The source as a tree in the order of its imports: read from the code, written into
docs/architecture.md and drawn beside it.

`python tests/helpers/architecture.py` writes page and picture; tests/test_layers.py compares them
with the code.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "taskdistill"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.svg"
TREE = re.compile(r"(<!-- tree -->\n).*?(<!-- end -->)", re.DOTALL)

LAYERS = {
    "ground": "what every layer shares",
    "io": "everything that touches a disk format",
    "quantization": "vectors in fewer bytes",
    "metrics": "scores",
    "stats": "intervals and tests",
    "losses": "tensors in, scalar out",
    "recipe": "the schema of a run",
    "data": "rows and batches",
    "demo": "the embedded default data",
    "model": "tokens to embeddings; the model folder",
    "encode": "texts to vectors",
    "teacher": "teachers and the store of their vectors",
    "train": "phases, steps, checkpoints",
    "evaluate": "eval sets to scores",
    "report": "what people read",
    "search": "an index of vectors",
    "serve": "HTTP",
    "export": "what other programs load",
    "pipeline": "one run of a recipe",
    "workflows": "what each further command does",
    "ablate": "the controlled experiment",
    "cli": "the commands; the only layer that prints",
}
"""The layers, lowest first: each imports only itself and what stands before it."""


def layer(module: str) -> str:
    """The layer of a dotted module below the package."""
    first = module.partition(".")[0]
    return first if first in LAYERS else "ground"


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package, without those that only hold a
    docstring.
    """
    paths = {
        path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."): path
        for path in sorted(SOURCE.rglob("*.py"))
    }
    return {name: path for name, path in paths.items() if not name.endswith(".__init__")}


@cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module imports: at its top, within functions, for types only, and all of a
    folder that it makes a Registry of.
    """
    names = set()
    for node in ast.walk(ast.parse(modules()[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskdistill"):
            assert node.level == 0
            base = (node.module or "").removeprefix("taskdistill").removeprefix(".")
            names |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names} | {base}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("taskdistill.") for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Registry":
            folder = ast.literal_eval(node.args[0]).removeprefix("taskdistill.")
            names |= {name for name in modules() if name.rpartition(".")[0] == folder}
    return frozenset(names & modules().keys() - {module})


def circles() -> list[list[str]]:
    """Modules that import each other, over whatever others."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(imports(module)):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                circles.append(sorted(members))

    sys.setrecursionlimit(10_000)
    for module in sorted(modules()):
        if module not in number:
            visit(module)
    return circles


def ordered(name: str) -> list[str]:
    """The modules of a layer, each behind those that it imports; else by name."""
    waiting = sorted(module for module in modules() if layer(module) == name)
    order: list[str] = []
    while waiting:
        free = (module for module in waiting if not imports(module) & set(waiting))
        module = next(free, waiting[0])  # a circle, which its own test reports
        waiting.remove(module)
        order.append(module)
    return order


def owns(module: str) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(modules()[module].read_text("utf-8"))) or ""
    return re.split(r"\.\s|\n\n", text)[0].replace("\n", " ").rstrip(".")


def tree() -> str:
    """The layers and their files, lowest first, each with what it owns."""
    lines = []
    for name, about in LAYERS.items():
        files = ordered(name)
        if files == [name]:
            lines += [f"\n**{name}**: {about}. {owns(name)}."]
            continue
        lines += [f"\n**{name}/** {about}\n" if name != "ground" else f"\n**{name}** {about}\n"]
        for module in files:
            path = module.removeprefix(f"{name}.").replace(".", "/")
            lines.append(f"- `{path}` {owns(module)}")
    return "\n".join(lines).lstrip() + "\n"


def drawing() -> str:
    """A matrix of layers: how many imports the row's layer has of the column's; nothing stands
    right of the diagonal.
    """
    names, cell, left, top = list(LAYERS), 26, 360, 90
    counts: Counter[tuple[str, str]] = Counter(
        (layer(module), layer(other)) for module in modules() for other in imports(module)
    )
    size = cell * len(names)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + size + 20}'
            f' {top + size + 20}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{left + size + 20}" height="{top + size + 20}" fill="white"/>',
    ]
    for row, name in enumerate(names):
        y = top + row * cell
        parts += [
            f'<text x="8" y="{y + 17}" font-weight="bold">{name}</text>',
            f'<text x="100" y="{y + 17}" fill="#666">{escape(LAYERS[name])}</text>',
        ]
        x = left + row * cell + 17
        parts.append(f'<text transform="translate({x} {top - 8}) rotate(-60)">{name}</text>')
        for column, other in enumerate(names):
            count = counts[name, other]
            fill = "#ddd" if row == column else f"rgba(31,90,160,{min(1, 0.15 + count / 60):.2f})"
            if not count and row != column:
                fill = "#f6f6f6" if column < row else "none"
            parts.append(
                f'<rect x="{left + column * cell + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" fill="{fill}"/>'
            )
            if count:
                color = "white" if count > 25 and row != column else "black"
                parts.append(
                    f'<text x="{left + column * cell + cell // 2}" y="{y + 17}" fill="{color}" '
                    f'text-anchor="middle" font-size="10">{count}</text>'
                )
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    page = TREE.sub(lambda match: match[1] + tree() + match[2], PAGE.read_text("utf-8"))
    PAGE.write_text(page, "utf-8")
    PICTURE.write_text(drawing(), "utf-8")
    for circle in circles():
        print("circle:", " ".join(circle))


if __name__ == "__main__":
    main()
