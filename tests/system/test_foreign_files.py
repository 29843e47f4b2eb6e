"""No command changes or removes what it did not write: somebody's files of every kind lie around,
at and in what it writes.

Every command that writes is run in a folder full of other files: with a free target, with one that
somebody has, with one of its own in which somebody has put something, and killed on its way. The
tree is compared before and after.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
from helpers.forked import Forked
from helpers.write_cases import (
    CASES,
    OUR_NAMES,
    SMALL,
    box_of,
    command,
    filled,
    lay,
    state,
    tree,
    unchanged,
)
from helpers.write_cases import home as home

from taskdistill.types import MANIFEST

SLOW = {"train profiled", "compare-teachers"}


def marked(names) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("name", marked(CASES))
def test_files_beside_and_within_stay_when_a_command_succeeds(home, tmp_path, name):
    case = CASES[name]
    box = box_of(home, tmp_path, case)
    outer, stem = lay(box, tmp_path / "outside", Path(case.out).name), box / case.out
    if case.setup is not None:
        assert command(case.setup.format(home=home, box=box)) == 0
    inner = lay(stem, tmp_path / "outside") if case.copies else set()
    before, inputs = tree(tmp_path), state(home)
    laid = (
        {f"box/{each}" for each in outer}
        | {f"box/{case.out}/{each}" for each in inner}
        | {"outside/thesis.txt"}
    )
    assert command(filled(case, home, box)) == 0
    assert stem.exists()
    unchanged(before, tree(tmp_path), laid)
    assert state(home) == inputs
    if case.folder and not case.copies:
        inner = lay(stem, tmp_path / "outside")
        laid |= {f"box/{case.out}/{each}" for each in inner}
        before = tree(tmp_path)
    assert command(filled(case, home, box)) == case.again
    unchanged(before, tree(tmp_path), laid)
    assert state(home) == inputs
    leftovers = [
        path.name
        for path in tmp_path.rglob("*")
        if ".taskdistill-" in path.name or path.name.endswith("lock")
    ]
    assert leftovers == []


def take_place(path: Path, outside: Path, kind: str) -> None:
    """Put something of somebody's at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "folder of files":
            lay(path, outside)
        case "folder with names of ours":
            for name in OUR_NAMES:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text(f"mine: {name}\n")
        case "folder of another kind":
            path.mkdir()
            (path / MANIFEST).write_text('{"kind": "data", "format_version": 1, "files": {}}\n')
            (path / "pairs.jsonl").write_text("{}\n")
        case "folder with somebody's manifest":
            path.mkdir()
            (path / MANIFEST).write_text("notes on distillation\n")
        case "file":
            path.write_text("mine")
        case "empty file":
            path.touch()
        case "json":
            path.write_text('{"rows": 1, "mine": true}\n')
        case "lines":
            path.write_text('{"text": "mine"}\n{"text": "too"}\n')
        case "link to a file":
            outside.mkdir(exist_ok=True)
            (outside / "thesis.txt").write_text("years of work")
            path.symlink_to(outside / "thesis.txt")
        case "link to a folder":
            lay(outside / "inner", outside)
            path.symlink_to(outside / "inner")
        case "link to nothing":
            path.symlink_to(outside / "nothing")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with (
                contextlib.closing(socket.socket(socket.AF_UNIX)) as made,
                contextlib.chdir(path.parent),
            ):
                made.bind(path.name)


PLACES = (
    "folder of files",
    "folder with names of ours",
    "folder of another kind",
    "folder with somebody's manifest",
    "file",
    "empty file",
    "json",
    "lines",
    "link to a file",
    "link to a folder",
    "link to nothing",
    "pipe",
    "socket",
)


@pytest.mark.parametrize("name", marked(name for name, case in CASES.items() if not case.copies))
def test_a_target_that_somebody_has_is_refused_before_anything_is_touched(home, tmp_path, name):
    case = CASES[name]
    for kind in PLACES:
        box = tmp_path / kind.replace(" ", "-").replace("'", "") / "box"
        box.mkdir(parents=True)
        take_place(box / case.out, box.parent / "outside", kind)
        before, inputs = tree(box.parent), state(home)
        assert command(filled(case, home, box)) == 2, kind
        after = tree(box.parent)
        unchanged(before, after, set(before))
        assert set(after) - set(before) <= {"box/shards"} | {
            each for each in after if each.startswith("box/shards/")
        }, kind
        assert state(home) == inputs


NOWHERE = {
    "under a file": "{box}/mine.txt/{name}",
    "under a link to nothing": "{box}/nothing/{name}",
    "under a link to itself": "{box}/loop/{name}",
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.copies])
def test_a_target_that_cannot_be_is_refused_before_anything_is_done(home, tmp_path, name):
    """One sentence with the name of what is in the way, and exit code 2; nothing is made on the way
    there.
    """
    case, box = CASES[name], tmp_path / "box"
    box.mkdir()
    (box / "mine.txt").write_text("mine")
    (box / "nothing").symlink_to(tmp_path / "nowhere")
    (box / "loop").symlink_to(box / "loop")
    before, inputs = tree(tmp_path), state(home)
    for place in NOWHERE.values():
        line = case.argv.replace(f"{{box}}/{case.out}", place.replace("{name}", case.out))
        assert command(line.format(home=home, box=box)) == 2, line
    assert tree(tmp_path) == before and state(home) == inputs


REPLACEABLE = {
    "a manifest": "{box}/model/taskdistill.json",
    "a file that a manifest lists": "{box}/model/golden.json",
    "a file of a folder within": "{box}/run/model/taskdistill.json",
    "scores of a run": "{box}/run/metrics.json",
    "a link into a folder": "{box}/link/metrics.json",
    "a manifest that is not there yet": "{box}/taskdistill.json",
    "the journal of an index": "{box}/index/journal.json",
    "the log of a run": "{box}/run/log.jsonl",
}


@pytest.mark.parametrize("kind", REPLACEABLE)
def test_no_result_is_written_over_what_a_folder_of_ours_needs(home, tmp_path, kind):
    """Whatever a command can be asked to write beside its work, it is not a part of a folder that
    another command made.
    """
    box = tmp_path / "box"
    for name in ("model", "run", "index"):
        shutil.copytree(home / name, box / name)
    (box / "link").symlink_to(box / "run")
    before = tree(box)
    place = REPLACEABLE[kind].format(box=box)
    for line in (
        f"plan {home}/train.yaml --quiet --json {place}",
        f"info {box}/model --json {place}",
        f"index {home}/model {home}/more.jsonl --out {box}/index --quiet --json {place}",
        f"search {home}/index ship --json {place}",
        f"evaluate --data {home}/data --eval-set sts/sts --write-texts {place} --quiet",
    ):
        if "--write-texts" in line and not os.path.lexists(place) and not place.endswith(MANIFEST):
            continue
        assert command(line) == 2, line
    assert tree(box) == before


def test_a_command_may_write_its_own_result_again(home, tmp_path):
    for _ in range(2):
        assert command(f"info {home}/model --json {tmp_path}/r.json") == 0
        assert (
            command(
                f"evaluate {home}/model --out {tmp_path}/out --json {tmp_path}/out/results.json"
                f" --dims 8 {SMALL.format(home=home)}"
            )
            == 0
        )


RESERVED = {
    "train": (
        "out/lock",
        "out/taskdistill.json",
        "out/model/mine",
        "out/static-model",
        "out/report.html",
        "out/metrics.json",
        "out/log.jsonl",
        "teacher-store",
    ),
    "evaluate": ("out/results.json", "out/report.html"),
    "needle": ("out/results.json", "out/report.html"),
    "mine": ("out.lock", "out.partial", "out.partial/fingerprint.json"),
    "encode folder": (".out.lock",),
    "adapt": (".model.adapt", ".model.adapt/0123456789abcdef", ".model.adapt/lock"),
    "index": ("out/lock", "out/journal.json"),
    "index delete": ("index/lock", "index/journal.json"),
    "repair": (
        "store.lock",
        "store/shards/.notes",
        "store/shards/notes.txt",
        "store/shards/20240115.json",
        "store/shards/00099.npy.bak",
    ),
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in RESERVED.items() for place in places]
)
def test_somebodys_file_under_a_name_that_a_command_needs_stays(home, tmp_path, name, place):
    """The command is done without the name, or refuses; whatever it does, the file is
    what it was.
    """
    case = CASES[name]
    box = box_of(home, tmp_path, case)
    target = box / place
    if name == "train":
        for part in ("run", "teacher-store"):
            shutil.copytree(home / part, box / part.replace("run", "out"))
    elif not case.copies and place.startswith(f"{case.out}/"):
        assert command(filled(case, home, box)) == 0
    target.unlink() if target.is_file() else shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix or target.name in ("lock", "mine", ".notes"):
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    before = {
        each: value
        for each, value in tree(box).items()
        if each == place or each.startswith(f"{place}/")
    }
    assert command(filled(case, home, box)) in (0, 2)
    unchanged(before, tree(box), set(before))


CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "fsync")


def in_child(line: str, die_at: int) -> tuple[int, int]:
    """Run a command in a child that dies at the given call that changes the disk; returns its exit
    code and the calls it made.
    """
    with Forked(counting, line, die_at) as child:
        said, _ = child.communicate()
        print(said)
        calls = re.findall(r"^calls (\d+)$", said, re.MULTILINE)
        assert child.returncode is not None
        return child.returncode, int(calls[-1]) if calls else 0


def counting(line: str, die_at: int) -> None:
    """Run a command, count its calls that change the disk, and die at one of them."""
    count = 0

    def counted(call):
        def wrapped(*arguments, **options):
            nonlocal count
            count += 1
            if count == die_at:
                os._exit(9)
            return call(*arguments, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    code = command(line)
    print("calls", count)
    sys.exit(code)


QUICK_KILLS = (
    "index",
    "index delete",
    "index compact",
    "encode npy",
    "encode folder",
    "migrate state",
    "export",
    "adapt",
    "mine",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK_KILLS else pytest.mark.slow) for name in CASES],
)
def test_a_kill_leaves_what_others_have_and_the_next_run_succeeds(home, tmp_path, name):
    case = CASES[name]
    inputs = state(home)
    box = box_of(home, tmp_path, case)
    if case.setup is not None:
        assert command(case.setup.format(home=home, box=box)) == 0
    shutil.copytree(box, tmp_path / "start", symlinks=True)
    code, calls = in_child(filled(case, home, box), 0)
    assert code == 0
    shutil.rmtree(box)
    for point in (
        sorted({1, max(1, calls // 3), max(1, 2 * calls // 3), max(1, calls - 1)}) if calls else ()
    ):
        shutil.copytree(tmp_path / "start", box, symlinks=True)
        outer = lay(box, tmp_path / "outside", Path(case.out).name)
        inner = lay(box / case.out, tmp_path / "outside") if case.copies else set()
        before = tree(box)
        laid = outer | {f"{case.out}/{each}" for each in inner}
        assert in_child(filled(case, home, box), point)[0] == 9
        unchanged(before, tree(box), laid)
        again = command(filled(case, home, box))
        assert again == 0 or (again == 2 and case.again == 2 and point == calls - 1), (
            f"after a kill at call {point} of {calls}"
        )
        unchanged(before, tree(box), laid)
        assert [path.name for path in box.rglob("*") if ".taskdistill-" in path.name] == []
        assert state(home) == inputs
        shutil.rmtree(box)


def test_every_command_that_writes_is_in_the_table():
    """A new command or a new path that is written has to be added, or named here with the reason
    why not.
    """
    from taskdistill.cli.main import app

    elsewhere = {
        "ablate": "tests/system/test_ablate_run.py",
        "merge": "writes as shrink does, where it writes at all",
        "tiers": "writes --json alone",
        "serve": "writes nothing",
        "docs": "writes as export does; reads every installed package",
        "inspect": "writes nothing",
    }
    commands = {
        str(each.name)
        for group in (app, *(each.typer_instance for each in app.registered_groups))
        for each in group.registered_commands
    }
    found = {
        next(
            (
                each
                for each in sorted(commands, key=len, reverse=True)
                if case.argv.startswith(f"{each} ")
            ),
            "",
        )
        for case in CASES.values()
    }
    assert commands - found == set(elsewhere)


REMOVING = {
    "io/atomic.py": (
        "names of this module's own making alone, `.NAME.taskdistill-XXXXXXXX`, locked by their"
        " writer; what is renamed over was decided on above"
    ),
    "io/folders.py": "files that the manifest of a folder of the same kind lists",
    "io/lock.py": (
        "a file that holds a process and a host, and is the one that this process has locked"
    ),
    "io/outputs.py": (
        "plain files under names that the caller gives; `check_output` decides on the place of each"
        " file that is written"
    ),
    "encode/corpus.py": "the manifest of a folder whose job is this one",
    "encode/shards.py": "writes into the temporary file that it is given",
    "io/vector_files.py": "writes into the temporary file that it is given",
    "io/arrays.py": "writes into a folder that `commit.commit` has named and made",
    "search/storage/commit.py": (
        "names that the journal or the manifest before holds, through no link"
    ),
    "search/alignment/maps.py": "writes into the temporary folder that it is given",
    "search/storage/folder.py": (
        "files that the manifest lists, in folders that are no links, and folders in which nothing"
        " is left"
    ),
    "teacher/fill.py": "files of shards whose writer was killed, by their form and number",
    "teacher/store.py": (
        "the JSON file of a shard that is damaged, when the repair is asked for, and files of"
        " shards as in filling"
    ),
    "train/log.py": "the end of a last line that a killed writer has left in its own log",
    "model/lora.py": "writes into the temporary folder that it is given",
    "model/add_adapter.py": "within the temporary folder of `write_folder`",
    "model/folder.py": "writes into the temporary folder that it is given",
    "model/onnx_graph.py": "writes to the null device",
    "export/vector_databases.py": "writes into the temporary folder that it is given",
    "export/formats/jina_v5.py": "writes into the temporary folder that it is given",
    "export/export.py": "writes into the temporary folder that it is given",
    "export/formats/sentence_transformers.py": "writes into the temporary folder that it is given",
    "export/parity.py": "writes into the temporary folder that it is given",
    "export/tokenizer_files.py": "writes into the temporary folder that it is given",
    "demo/folder.py": "writes into the temporary folder that it is given",
    "workflows/mine.py": (
        "writes into temporary files, and into the temporary folder that it is given"
    ),
    "workflows/mine_vectors.py": "writes into the temporary file that it is given",
    "pipeline/projection_start.py": "writes into the temporary folder that it is given",
    "pipeline/student_vocab.py": "writes into the temporary folder that it is given",
    "workflows/shrink.py": "writes into a folder of the system for temporary files",
    "pipeline/static_student.py": "writes into the temporary folder that it is given",
    "train/validation.py": "writes into the temporary folder that it is given",
    "train/checkpoint.py": "writes into the temporary folder that it is given",
    "train/phase_folder.py": "writes into the temporary folder that it is given",
}
"""Modules that call what can remove or write over something, each with who says that the thing is
ours.
"""

REMOVERS = {
    "rmtree",
    "unlink",
    "rmdir",
    "rename",
    "renames",
    "copyfile",
    "copytree",
    "copy2",
    "truncate",
    "ftruncate",
}
WRITERS = {"write_text", "write_bytes", "save_file", "save_pretrained", "savez"}


def test_whatever_can_remove_or_write_over_a_file_is_known():
    """A call of this kind in another module fails here until somebody has said, above, why what it
    touches is ours.
    """
    source = Path(__file__).parents[2] / "src" / "taskdistill"
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            words = [
                each.value
                for each in [*node.args, *(word.value for word in node.keywords)]
                if isinstance(each, ast.Constant)
            ]
            opens = name == "open" and any(
                isinstance(each, str) and len(each) < 4 and set(each) & set("wax+")
                for each in words
            )
            replaces = (
                name == "replace"
                and isinstance(node.func, ast.Attribute)
                and len(node.args) == 1
                and not node.keywords
            )
            method = isinstance(node.func, ast.Attribute)
            removes = method and (
                name in REMOVERS or ast.unparse(node.func) in ("os.remove", "shutil.move")
            )
            if opens or replaces or removes or name in WRITERS:
                found.add(path.relative_to(source).as_posix())
    assert found == set(REMOVING)
