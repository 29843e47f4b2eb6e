"""Every command that writes, what it reads, and what others may have around its target."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.model import base_space_id

Tree = dict[str, tuple[int, int | None, object]]


@dataclass(frozen=True)
class Case:
    """A command, what it writes, and what of the home it changes and so gets as a copy."""

    argv: str
    out: str
    """What it writes, below the box."""
    copies: tuple[str, ...] = ()
    again: int = 0
    """Exit code of the same command run once more: 2 where it refuses what is there."""
    folder: bool = True
    setup: str | None = None
    """A command that is run before."""
    occupied: Callable[[Path], None] | None = None
    """Puts somebody's things at the target, where a command that changes something has it already.
    """


ENCODE = "encode {home}/model {home}/texts.jsonl --task retrieval --quiet"

SMALL = "--eval-set sts/sts --data {home}/data --quiet"

CASES: dict[str, Case] = {
    "train": Case("train {home}/train.yaml --out {box}/out --quiet", "out"),
    "train profiled": Case("train {home}/train.yaml --out {box}/out --quiet --profile", "out"),
    "encode npy": Case(f"{ENCODE} --out {{box}}/out.npy", "out.npy", folder=False),
    "encode parquet": Case(f"{ENCODE} --out {{box}}/out.parquet", "out.parquet", folder=False),
    "encode jsonl": Case(f"{ENCODE} --out {{box}}/out.jsonl", "out.jsonl", folder=False),
    "encode folder": Case(f"{ENCODE} --out {{box}}/out --shard-rows 7", "out"),
    "encode merged": Case(
        f"{ENCODE} --out {{box}}/shards --shard-rows 7 --merge {{box}}/out.npy",
        "out.npy",
        folder=False,
    ),
    "evaluate": Case(
        f"evaluate {{home}}/model --out {{box}}/out --dims 8,32 --precisions float32 {SMALL}", "out"
    ),
    "write-texts": Case(
        "evaluate --data {home}/data --eval-set sts/sts --write-texts {box}/out.jsonl --quiet",
        "out.jsonl",
        folder=False,
    ),
    "needle": Case(
        "needle {home}/model --lengths 64 --kinds passkey --documents 4 --out {box}/out --quiet",
        "out",
    ),
    "compare-teachers": Case(
        f"compare-teachers {{home}}/model --out {{box}}/out --steps 2 {SMALL}", "out"
    ),
    "index": Case("index {home}/model {home}/corpus.jsonl --out {box}/out --bm25 --quiet", "out"),
    "index delete": Case("index delete {box}/index d1", "index", ("index",)),
    "index compact": Case(
        "index compact {box}/index", "index", ("index",), setup="index delete {box}/index d2"
    ),
    "index more": Case(
        "index {home}/model {home}/more.jsonl --out {box}/index --quiet", "index", ("index",)
    ),
    "search tune": Case(
        "search tune {box}/index --dev {home}/data/retrieval/qa-dev --dims 16,32 --oversample 2"
        " --no-refine --quiet",
        "index",
        ("index",),
    ),
    "migrate": Case(
        "migrate {home}/index {home}/other --dev {home}/data/retrieval/qa-dev --out {box}/out"
        " --threshold 0 --map procrustes --quiet",
        "out",
        again=2,
    ),
    "migrate state": Case("migrate state {box}/migration --to old", "migration", ("migration",)),
    "adapt": Case(
        "adapt {box}/model {home}/rows.csv --task classification --name mine --set steps=2 --set"
        " batch_size=4 --quiet",
        "model",
        ("model",),
        again=2,
    ),
    "shrink": Case(
        "shrink {home}/other --texts {home}/texts.jsonl --out {box}/out --layers 1 --sample 8"
        " --quiet",
        "out",
        again=2,
    ),
    "export": Case(
        "export {home}/model --format sentence-transformers --out {box}/out --quiet", "out", again=2
    ),
    "export index": Case(
        "export {home}/index --format qdrant --out {box}/out --quiet", "out", again=2
    ),
    "mine": Case(
        "mine {home}/train.yaml --source qa --model {home}/model --out {box}/out --quiet", "out"
    ),
    "repair": Case("info {box}/store --repair", "store", ("store",)),
    "plan json": Case(
        "plan {home}/train.yaml --quiet --json {box}/out.json", "out.json", folder=False
    ),
    "info json": Case("info {home}/model --json {box}/out.json", "out.json", folder=False),
    "search json": Case("search {home}/index ship --json {box}/out.json", "out.json", folder=False),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the commands read; nothing in it may change."""
    home = tmp_path_factory.mktemp("home")
    for name, seed in (("model", 1), ("other", 2), ("teacher", 5)):
        module = tiny.student(seed=seed)
        made = tiny.model(module, tiny.write_tokenizer(home / f"{name}-tokenizer"))
        if name == "model":
            made.adapter_configs["retrieval"] = tiny.add_adapter(module, "retrieval")
        made.settings = replace(made.settings, space_id=base_space_id(made))
        golden = golden_vectors(embed_with(made), module.tasks)
        write_model(
            home / name, made, extra_files={FILE: json.dumps(golden), "README.md": "# tiny\n"}
        )
    data = tiny.write_data(home / "data")
    raw = tiny.recipe(data, home / "teacher", steps=2)
    raw = {key: value for key, value in raw.items() if key != "static"} | {
        "adapters": {"retrieval": raw["adapters"]["retrieval"]}
    }
    raw["evaluation"] = {"sets": ["sts/sts"], "dims": [8], "precisions": ["float32"]}
    (home / "train.yaml").write_text(yaml.safe_dump(raw))
    rows = [
        {"_id": f"d{n}", "text": f"the {word} and the {tiny.WORDS[n + 1]}"}
        for n, word in enumerate(tiny.WORDS[:20])
    ]
    tiny.write_jsonl(home / "texts.jsonl", rows)
    tiny.write_jsonl(home / "more.jsonl", rows[15:])
    more = [
        {
            "_id": f"m{n}",
            "text": (
                f"a {tiny.WORDS[n % 96]} near the {tiny.WORDS[(7 * n + 1) % 96]} by {n % 5} ships"
            ),
        }
        for n in range(100)
    ]
    judged = [
        json.loads(line)
        for line in gzip.decompress(
            (home / "data/retrieval/qa-dev/corpus.jsonl.gz").read_bytes()
        ).splitlines()
    ]
    tiny.write_jsonl(home / "corpus.jsonl", judged + more)
    (home / "rows.csv").write_text(
        "text,label\n"
        + "".join(f"the ship {word},a\nthe judge {word},b\n" for word in tiny.WORDS[:6])
    )
    assert command(f"index {home}/model {home}/corpus.jsonl --out {home}/index --bm25 --quiet") == 0
    assert (
        command(
            f"migrate {home}/index {home}/other --dev {home}/data/retrieval/qa-dev --out"
            f" {home}/migration --threshold 0 --map procrustes --quiet"
        )
        == 0
    )
    assert command(f"train {home}/train.yaml --out {home}/run --quiet") == 0
    shutil.copytree(next((home / "teacher-store").glob("*/")), home / "store")
    return home


def command(line: str) -> int:
    """Run a command line here."""
    print(f"$ taskdistill {line}")
    return run(line.split())


def tree(root: Path) -> Tree:
    """Mode, time and content of everything below a folder; folders have no time, which changes with
    what is in them.
    """
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = (
            path.readlink()
            if kind == stat.S_IFLNK
            else path.read_bytes()
            if kind == stat.S_IFREG
            else None
        )
        found[path.relative_to(root).as_posix()] = (
            status.st_mode,
            None if kind == stat.S_IFDIR else status.st_mtime_ns,
            content,
        )
    return found


def state(root: Path) -> dict[str, tuple[int, ...]]:
    """What changes when anything below a folder does, without reading it."""
    found = {}
    for here, folders, files in os.walk(root):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(here, name))  # noqa: PTH118 (thousands of them)
            found[f"{here}/{name}"] = (
                status.st_mode,
                status.st_size,
                status.st_mtime_ns,
                status.st_ino,
            )
    return found


def lay(folder: Path, outside: Path, name_of_target: str = "out") -> set[str]:
    """Put somebody's files of every kind into a folder; returns their names."""
    before = set(folder.rglob("*"))
    folder.mkdir(parents=True, exist_ok=True)
    outside.mkdir(exist_ok=True)
    (outside / "thesis.txt").write_text("years of work")
    near = [
        f".{name_of_target}.0a1b2c3d",
        f".{name_of_target}.0a1b2c3d.old",
        f".{name_of_target}.20240115",
        f".{name_of_target}.bak",
        f"{name_of_target}.bak",
        f"{name_of_target}.20240115",
        f".{name_of_target}~",
    ]
    for name in (
        "notes.txt",
        ".hidden",
        ".bashrc.20240115",
        "20240115.npy",
        "archive.tar.gz",
        "Data.JSON",
        "00007.json",
        ".recipe.yaml.swp",
        *near,
    ):
        (folder / name).write_text(f"mine: {name}")
    for name in (
        "20240115",
        ".config.20231201",
        ".othermodel.0a1b2c3d",
        "day1",
        "step-0000001",
        "old-checkpoints",
        *(f"{each}.d" for each in near),
    ):
        (folder / name).mkdir()
        (folder / name / "take1.mp4").write_text("video")
        (folder / name / "weights.safetensors.bak").write_text("mine")
    for name in ("empty", ".empty.0a1b2c3d", "00000099"):
        (folder / name).mkdir()
    (folder / "link").symlink_to(outside / "thesis.txt")
    (folder / "folder-link").symlink_to(outside)
    (folder / "dangling").symlink_to(outside / "nothing")
    os.link(outside / "thesis.txt", folder / "hard-link")
    os.mkfifo(folder / "pipe")
    (folder / "read-only").write_text("mine")
    (folder / "read-only").chmod(0o400)
    return {path.relative_to(folder).as_posix() for path in set(folder.rglob("*")) - before}


OUR_NAMES = (
    "segments/day1/take1.mp4",
    "deletes/old.npy",
    "bm25/notes/x",
    "phases/stage1/mine.txt",
    "checkpoints/stage1/mine.txt",
    "shards/mine.npy",
    "cache/mine.json",
    "model/mine.txt",
    "students/mine/x",
    "recipe.yaml",
    "log.jsonl",
    "results.json",
    "report.html",
    "metrics.json",
    "job.json",
    "probe.json",
    "map.npz",
)
"""Files with names that some command gives, as somebody else might."""


def box_of(home: Path, tmp_path: Path, case: Case) -> Path:
    box = tmp_path / "box"
    box.mkdir()
    for name in case.copies:
        shutil.copytree(home / name, box / name)
    return box


def filled(case: Case, home: Path, box: Path) -> str:
    return case.argv.format(home=home, box=box)


def unchanged(before: Tree, after: Tree, names: set[str]) -> None:
    gone = {name for name in names if name not in after}
    assert not gone, f"removed: {sorted(gone)[:5]}"
    changed = {name for name in names if before[name] != after[name]}
    assert not changed, f"changed: {sorted(changed)[:5]}"
