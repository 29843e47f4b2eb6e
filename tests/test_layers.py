"""The imports of the package, held to the list of docs/overview.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "taskdistill"
BASE = {"vocabulary", "errors", "folders", "recipe"}
ALLOWED = {
    "vocabulary": set(),
    "errors": set(),
    "folders": BASE,
    "recipe": BASE,
    "losses": set(),
    "metrics": BASE | {"compress"},
    "compress": BASE,
    "data": BASE,
    "model": BASE,
    "encode": BASE | {"model", "compress"},
    "teacher": BASE | {"model", "encode"},
    "train": BASE | {"losses", "data", "model", "encode", "teacher"},
    "evaluate": BASE | {"metrics", "compress"},
    "search": BASE | {"compress"},
    "serve": BASE | {"compress", "encode", "search"},
    "export": BASE | {"model", "encode", "compress"},
    "job": BASE | {"losses", "metrics", "compress", "data", "model", "encode", "teacher", "train", "evaluate", "search", "export"},
    "cli": BASE | {"data", "model", "encode", "teacher", "train", "evaluate", "search", "serve", "export", "job"},
    "__init__": set(),
}


def modules():
    return sorted(ROOT.rglob("*.py"))


def part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Parts of this package that a module imports, at its top or inside a function, and in annotations."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "taskdistill" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("taskdistill."):
                yield name.split(".")[1]


def test_every_part_is_on_the_list():
    assert {part(path) for path in modules()} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_lower_never_imports_higher(name):
    found = {other: path.relative_to(ROOT).as_posix() for path in modules() if part(path) == name for other in imports(path)}
    wrong = {other: path for other, path in found.items() if other != name and other not in ALLOWED[name]}
    assert not wrong, f"{name} may import {sorted(ALLOWED[name])}"


def test_the_list_has_no_cycle():
    done = set()
    while len(done) < len(ALLOWED):
        ready = {name for name, below in ALLOWED.items() if name not in done and below - {name} - BASE <= done}
        assert ready, f"a cycle among {sorted(set(ALLOWED) - done)}"
        done |= ready


@pytest.mark.parametrize(
    "statement", ["import taskdistill", "from taskdistill.cli.app import run; run(['--help'])", "import taskdistill.recipe"]
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement):
    code = f"{statement}\nimport sys\nprint([m for m in ('torch', 'transformers', 'sklearn', 'scipy', 'pyarrow', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip().endswith("[]")


def test_only_the_command_line_prints_or_reads_the_environment():
    wrong = []
    for path in modules():
        if part(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            environment = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "argv")
            if printed or environment:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
