"""The documentation of the Python packages installed here, read with `ast` and never imported."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from taskdistill.demo.prose import prose
from taskdistill.seeding import hash_unit

MAX_BYTES = 1 << 20
"""Larger files are tables or generated code."""

_SKIPPED_FOLDERS_LIST = """
test tests testing _testing unit_tests vendor _vendor _vendored vendored externals extern
third_party idlelib lib2to3 turtledemo ensurepip site-packages dist-packages __pycache__
node_modules benchmarks examples
"""
SKIPPED_FOLDERS = frozenset(_SKIPPED_FOLDERS_LIST.split())
SKIPPED_PACKAGES = frozenset({"taskdistill"})
CHUNK = 64


class Doc(NamedTuple):
    """One documented object: import name of its package, dotted module, name inside it, kind, and
    its prose.
    """

    package: str
    module: str
    name: str
    kind: str
    summary: str
    body: str

    @property
    def text(self) -> str:
        """Summary and body together."""
        return f"{self.summary}\n{self.body}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Everything found below some folders, in an order that depends on the files alone."""

    docs: list[Doc]
    docstrings: int
    files: int
    unreadable: int
    too_large: int


def search_folders() -> list[Path]:
    """Return where the running interpreter's packages lie.

    Returns the folders of the standard library and of installed packages that exist, without
    repeats.
    """
    paths = sysconfig.get_paths()
    folders = [Path(paths[key]) for key in ("stdlib", "purelib", "platlib")]
    folders += [
        Path(entry)
        for entry in sys.path
        if entry and Path(entry).name in ("site-packages", "dist-packages")
    ]
    return [
        folder for folder in dict.fromkeys(path.resolve() for path in folders) if folder.is_dir()
    ]


def scan(
    search_paths: Sequence[Path],
    *,
    enough: int | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Collect the docstrings of modules, classes, functions and methods.

    Files are read in the order of a hash of their module's name, so that stopping early leaves a
    sample of all packages. `enough`: stop once this many documented objects were found; None reads
    every file. `processes`: worker processes; None: one per usable core, at most 8. `progress`:
    called with files done and files in all. Returns the documented objects with a usable summary or
    body, in order of module and place. Test folders and copies of other packages are left out;
    `docstrings` counts the others too.
    """
    files, too_large = _files(search_paths)
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    docs: list[Doc] = []
    docstrings = unreadable = 0
    workers = min(processes or _cores(), len(chunks))
    read = 0
    with closing(_map(chunks, workers)) as results:
        for chunk, (result, seen, bad) in zip(chunks, results, strict=False):
            docs += result
            docstrings += seen
            unreadable += bad
            read += len(chunk)
            if progress is not None:
                progress(read, len(files))
            if enough is not None and len(docs) >= enough:
                break
    docs.sort(key=lambda doc: doc.module)
    return Scan(
        docs=docs, docstrings=docstrings, files=read, unreadable=unreadable, too_large=too_large
    )


def _cores() -> int:
    return min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _map(
    chunks: list[list[tuple[str, str]]], workers: int
) -> Generator[tuple[list[Doc], int, int], None, None]:
    if workers <= 1:
        yield from map(_read_chunk, chunks)
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield from pool.map(_read_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _files(search_paths: Sequence[Path]) -> tuple[list[tuple[str, str]], int]:
    """List (path, dotted module) of source files; a module found in an earlier folder hides a later
    one.
    """
    modules: dict[str, str] = {}
    too_large = 0
    for root in search_paths:
        for folder, folders, names in os.walk(root):
            inside = Path(folder).relative_to(root).parts
            folders[:] = sorted(name for name in folders if _is_read(name, top=not inside))
            for name in sorted(names):
                if (
                    not name.endswith(".py")
                    or name.startswith(("test_", "conftest", "setup.py"))
                    or name.endswith("_test.py")
                ):
                    continue
                module = ".".join((*inside, name.removesuffix(".py"))).removesuffix(".__init__")
                path = Path(folder) / name
                if path.stat().st_size > MAX_BYTES:
                    too_large += 1
                elif module.partition(".")[0] not in SKIPPED_PACKAGES:
                    modules.setdefault(module, str(path))
    order = sorted(modules, key=lambda module: (hash_unit(module + ":order"), module))
    return [(modules[module], module) for module in order], too_large


def _is_read(name: str, *, top: bool) -> bool:
    if name in SKIPPED_FOLDERS or not name.isidentifier():
        return False
    return not (top and name.startswith("__"))


def _read_chunk(files: list[tuple[str, str]]) -> tuple[list[Doc], int, int]:
    docs: list[Doc] = []
    docstrings = bad = 0
    for path, module in files:
        try:
            source = Path(path).read_bytes()
            if b'"""' not in source and b"'''" not in source:
                continue
            result, seen = read_module(source, module)
            docs += result
            docstrings += seen
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
            bad += 1
    return docs, docstrings, bad


def read_module(source: bytes, module: str) -> tuple[list[Doc], int]:
    """Collect the documented objects of one module.

    Returns the objects with a usable summary or body in file order, and how many docstrings there
    were. Raises SyntaxError if the source does not parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    package = module.partition(".")[0]
    docs: list[Doc] = []
    seen = 0
    for kind, name, docstring in _docstrings(tree, "module", ""):
        seen += 1
        summary, body = prose(docstring)
        if summary or body:
            docs.append(Doc(package, module, name, kind, summary, body))
    return docs, seen


def _docstrings(
    node: ast.Module | ast.ClassDef, kind: str, name: str
) -> Iterator[tuple[str, str, str]]:
    if docstring := ast.get_docstring(node):
        yield kind, name, docstring
    prefix = f"{name}." if name else ""
    for child in _definitions(node.body):
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, "class", prefix + child.name)
        elif docstring := ast.get_docstring(child):
            yield "method" if prefix else "function", prefix + child.name, docstring


def _definitions(
    body: Sequence[ast.stmt],
) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse])
