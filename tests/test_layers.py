"""Lower never imports higher: the imports of every module, deferred ones included, against the list
of the design.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.architecture import (
    LAYERS,
    PAGE,
    PICTURE,
    SOURCE,
    circles,
    drawing,
    imports,
    layer,
    modules,
    tree,
)
from helpers.forked import Forked

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "sklearn",
    "pyarrow",
    "sentence_transformers",
    "fastapi",
    "faiss",
}
"""What importing the package, or showing its help, must not load."""

NAMES = sorted(modules())


def test_every_folder_has_its_place_in_the_order():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders | {"ground", "quantization", "metrics", "stats"} == set(LAYERS)


@pytest.mark.parametrize("module", [name for name in NAMES if name != "__init__"])
def test_a_module_imports_nothing_above_it(module):
    order = list(LAYERS)
    for name in imports(module):
        assert order.index(layer(name)) <= order.index(layer(module)), f"{module} imports {name}"


def test_no_circles():
    assert circles() == []


def test_page_and_picture_are_of_this_code():
    stale = "run: make fix (python tests/helpers/architecture.py)"
    assert tree() in PAGE.read_text("utf-8"), stale
    assert drawing() == PICTURE.read_text("utf-8"), stale


def test_inference_reaches_no_training():
    closed = {"encode", "search", "serve"}
    reached = {
        layer(name) for module in NAMES if layer(module) in closed for name in imports(module)
    }
    assert not reached & {
        "losses",
        "recipe",
        "data",
        "demo",
        "teacher",
        "train",
        "evaluate",
        "report",
        "pipeline",
        "workflows",
        "ablate",
        "cli",
    }


def test_only_the_command_line_prints_or_reads_arguments_and_environment():
    for name, path in modules().items():
        if layer(name) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "input"), f"{path}:{node.lineno} prints"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {
                    ("sys", "argv"),
                    ("os", "environ"),
                    ("os", "getenv"),
                }, f"{name}:{node.lineno}"


def test_files_stay_small():
    sizes = {
        path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in modules().values()
    }
    assert {name: size for name, size in sizes.items() if size > 400} == {}


FIELDS = 4
PARAMETERS = 8
PUBLIC_SIGNATURES = {"encode/encoder:load", "encode/encoder:encode"}
"""What people call by hand, with one keyword for each thing that may be asked."""


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, kind):
                yield name, node


def test_records_of_many_fields_take_them_by_name():
    positional = []
    for name, record in nodes(ast.ClassDef):
        decorators = [ast.unparse(each) for each in record.decorator_list]
        if not any("dataclass" in each for each in decorators):
            continue
        fields = []
        for each in record.body:
            if isinstance(each, ast.AnnAssign):
                kind = ast.unparse(each.annotation)
                if kind.endswith("KW_ONLY"):
                    break
                fields += [] if "ClassVar" in kind else [each]
        if len(fields) > FIELDS and not any("kw_only=True" in each for each in decorators):
            positional.append(f"{name}.{record.name}: {len(fields)} fields")
    assert positional == []


def test_no_parameter_list_is_long():
    """But those of commands, whose parameters are the options of a command line."""
    long = []
    for name, function in nodes(ast.FunctionDef | ast.AsyncFunctionDef):
        listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = len([each for each in listed if each.arg not in ("self", "cls")])
        place = f"{name.replace('.', '/')}:{function.name}"
        if count > PARAMETERS and layer(name) != "cli" and place not in PUBLIC_SIGNATURES:
            long.append(f"{place} takes {count}")
    assert long == []


PRIVATE = {"found", "kept", "wanted", "said", "made", "given", "asked", "told", "drawn"} | {
    "theirs",
    "ours",
    "around",
    "twin",
    "crew",
    "lane",
    "watcher",
    "surroundings",
}
"""Words that say that there is a thing, but not which."""

PUBLISHED = {"asked", "asked_again", "kept", "told", "found"}
"""Fields of records and keys of files that stand in results on disk."""


def test_names_say_what_a_thing_is():
    private = set()
    for name, path in modules().items():
        tree = ast.parse(path.read_text("utf-8"))
        fields = {
            each.target.id
            for record in ast.walk(tree)
            if isinstance(record, ast.ClassDef)
            for each in record.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        for node in ast.walk(tree):
            word = None
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                word = node.id
            elif isinstance(node, ast.arg):
                word = node.arg
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                word = node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                word = node.attr
            if word is None or word in fields & PUBLISHED or word == "connection_made":
                continue
            parts = set(re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower().split("_"))
            if parts & PRIVATE:
                private.add(f"{name}: {word}")
    assert private == set()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_its_ground_and_its_help_load_nothing_heavy():
    code = f"""
import contextlib, io, sys
import taskdistill, taskdistill.recipe.recipe, taskdistill.io.folders
from taskdistill.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    for command in ("", "train", "plan", "encode", "evaluate", "ablate", "info", "data"):
        words = command.split()
        assert run([*words, "--help"]) == 0
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    assert run(code) == "[]\n"


def import_everything() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "taskdistill"]:
        del sys.modules[
            name
        ]  # other packages stay: to import them again takes longer than all that follows
    import taskdistill

    for name in taskdistill.__all__:
        getattr(taskdistill, name)
    for module in pkgutil.walk_packages(taskdistill.__path__, "taskdistill."):
        if module.name != "taskdistill.cli.__main__":
            importlib.import_module(module.name)
    for name in taskdistill.__all__:
        assert not hasattr(sys.modules.get(f"taskdistill.{name}"), "__path__"), (
            f"{name} is hidden by the package of that name"
        )
    try:
        taskdistill.nothing
    except AttributeError as error:
        print(error)


@pytest.mark.whole
def test_every_public_name_is_there_and_every_module_can_be_imported_by_itself():
    with Forked(import_everything) as child:
        assert (
            child.communicate() == ("module 'taskdistill' has no attribute 'nothing'\n", None)
            and child.returncode == 0
        )


@pytest.mark.parametrize("module", NAMES)
def test_a_docstring_names_no_argument_that_is_not_there(module):
    path = modules()[module]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and "Args:" in (text := ast.get_docstring(node) or ""):
            section = text.split("Args:\n")[1].split("\n\n")[0]
            named = re.findall(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:", section, re.MULTILINE)
            arguments = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            assert named and set(named) <= arguments, f"{module}:{node.lineno}"
