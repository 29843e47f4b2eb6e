"""One flipped bit in any file of any folder that this program reads back is refused with the name
of the file.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.search_fakes import FakeEncoder
from helpers.teacher_fakes import FakeTeacher
from safetensors.torch import save_file

from taskdistill.ablate import costs
from taskdistill.ablate.checks import freeze
from taskdistill.ablate.context import UNUSABLE, _unusable
from taskdistill.ablate.controls import FILE as CONTROL
from taskdistill.ablate.controls import positive_control
from taskdistill.ablate.experiment import MATCHED, TEACHER, _match_costs, _score_teacher
from taskdistill.ablate.phases import Hyperparameters
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.training_run import RESULT, result_of
from taskdistill.data.sources import load_source
from taskdistill.encode.corpus import ShardWorkers, encode_corpus
from taskdistill.encode.shards import finished
from taskdistill.encode.vectors import VectorFolder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.result_cache import ResultCache
from taskdistill.export.export import export
from taskdistill.io.folders import open_folder, write_folder
from taskdistill.io.records import TextSource
from taskdistill.io.sealed import write_sealed
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.golden import embed_with, golden_vectors
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.search.alignment.maps import AlignmentMap
from taskdistill.search.alignment.migration import read_migration, write_migration
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.store import TeacherStore, open_store
from taskdistill.train.checkpoint import (
    load_checkpoint,
    load_snapshot,
    save_checkpoint,
    save_snapshot,
)
from taskdistill.train.log import Log, read_lines
from taskdistill.train.phase_folder import load_phase, save_phase
from taskdistill.train.validation import KIND as BEST
from taskdistill.train.validation import best_folder, load_best
from taskdistill.types import MANIFEST
from taskdistill.workflows.info import describe_folder
from taskdistill.workflows.mine import _begin, _finished
from taskdistill.workflows.mine_vectors import is_intact, sealed_file

FLIPS = 140
"""Bits of each folder, over all of its files."""

META = {"recipe": "r", "data": "d", "phase": "stage1"}
TEXTS = [f"{word} by the sea" for word in tiny.WORDS[:24]]


@dataclass(frozen=True)
class Kind:
    """How a folder is made, and how it is read back."""

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]


# What training writes
# --------------------------------------------------------------------------------------------------
# -------


def trained() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    parameters = {
        "a": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "b": torch.nn.Parameter(torch.ones(3)),
    }
    optimiser = torch.optim.AdamW(parameters.values(), lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    return parameters, optimiser


def job() -> Any:
    return SimpleNamespace(name="stage1", trained=trained()[0], moving_heads=dict)


def checkpoint(home: Path) -> Path:
    save_checkpoint(home, 20, *trained(), META)
    return home / "step-0000020"


def phase(home: Path) -> Path:
    save_phase(home / "stage1", job(), META)
    return home / "stage1"


def best(home: Path) -> Path:
    with write_folder(
        best_folder(home / "stage1"), BEST, meta={**META, "step": 0, "metric": "mean", "score": 0.5}
    ) as folder:
        save_file(
            {name: p.detach() for name, p in trained()[0].items()}, folder / "weights.safetensors"
        )
    return best_folder(home / "stage1")


def snapshot(home: Path) -> Path:
    save_snapshot(home / "stage1", 10, trained()[0], META)
    return home / "stage1.earlier"


# Models and what is made of them
# ----------------------------------------------------------------------------------------------


def with_golden(folder: Path, made: Model) -> Path:
    golden = json.dumps(golden_vectors(embed_with(made), made.module.tasks))
    write_model(folder, made, extra_files={"golden.json": golden, "README.md": "# A card\n"})
    return folder


def model(home: Path) -> Path:
    made = tiny.model(
        tiny.student("qwen3", layers=1),
        tiny.write_tokenizer(home / "tokenizer", end=True),
        end=True,
    )
    for number, task in enumerate(("retrieval", "clustering")):
        made.adapter_configs[task] = tiny.add_adapter(made.module, task, seed=number)
    made.projection = Projection(32, 24)
    ranges = {
        task: {"8": {"minimum": [-1.0] * 8, "maximum": [1.0] * 8}}
        for task in ("base", "retrieval", "clustering")
    }
    offsets = {task: {role: {"8": [0.25] * 8} for role in ("query", "document")} for task in ranges}
    made.settings = replace(
        made.settings, int8_ranges=ranges, binary_offsets=offsets, rope_theta=1000.0
    )
    return with_golden(home / "model", made)


def static(home: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = TextTokenizer(tiny.tokenizer(), special=False)
    settings = ModelSettings(max_length=1_000_000, matryoshka_dims=(8, 32))
    return with_golden(
        home / "static",
        Model(
            module=StaticModel(torch.randn(len(tokenizer), 32)).eval(),
            tokenizer=tokenizer,
            settings=settings,
            name="s",
            source=home,
        ),
    )


def exported(home: Path) -> Path:
    export(model(home), "sentence-transformers", home / "export", task="retrieval")
    return home / "export"


def vectors(home: Path) -> Path:
    (home / "in.txt").write_text("\n".join(TEXTS) + "\n")
    encode_corpus(
        str(static(home)),
        TextSource(str(home / "in.txt")),
        home / "vectors",
        {"precision": "float32"},
        ShardWorkers(threads=1),
        shard_rows=10,
    )
    return home / "vectors"


def load_vectors(folder: Path) -> Any:
    return VectorFolder(folder).load()


def tokenizer(home: Path) -> Path:
    with write_folder(home / "learned", "tokenizer", meta=META) as folder:
        tiny.write_tokenizer(folder)
    return home / "learned"


# Teacher stores, indexes, migrations
# ------------------------------------------------------------------------------------------


def store(home: Path) -> Path:
    teacher = FakeTeacher()
    fill_store(open_store(home / "stores", teacher.identity, None), TEXTS, teacher, shard_rows=9)
    return next(path for path in (home / "stores").iterdir() if path.is_dir())


def load_store(folder: Path) -> Any:
    return TeacherStore(folder, FakeTeacher().identity, None, None).get(TEXTS)


def index(home: Path) -> Path:
    documents = [Document(f"d{i}", f"word{i % 7} common text {i}", {"i": i}) for i in range(24)]
    made, _ = build_index(FakeEncoder(), documents, home / "index", batch=16)
    made.delete(["d3"])
    made.build_bm25()
    return home / "index"


def load_index(folder: Path) -> Any:
    opened = Index.open(folder)
    hits = (
        opened.search(["word3 common"], 5, encoder=FakeEncoder(), hybrid=True),
        opened.search(["word3"], 5, encoder=FakeEncoder(), filter="i>=10"),
    )
    return [[(hit.id, hit.score, hit.text) for hit in each[0]] for each in hits]


def migration(home: Path) -> Path:
    made = AlignmentMap(
        "procrustes", {"matrix": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    )
    write_migration(
        home / "migration",
        made,
        {"state": "both", "old_index": "i", "model_hash": "h", "calibration": [1.0, 0.0]},
    )
    return home / "migration"


# Data, mined data, ablations
# --------------------------------------------------------------------------------------------------


def data(home: Path) -> Path:
    with write_folder(
        home / "data", "data", meta={"name": "docs", "counts": {"files": 3}}
    ) as folder:
        tiny.write_data(folder)
    return home / "data"


def load_data(folder: Path) -> Any:
    recipe = parse_recipe(tiny.recipe(folder, folder))
    sources = [
        load_source(folder, name, each, max_bad=0.0, seed=1).sha256
        for name, each in recipe.data.sources.items()
    ]
    return sources, [
        repr(each.load())
        for split in ("test", "dev")
        for each in find_eval_sets(folder, split=split)
    ]


FINGERPRINT = {"vectors": {"model": "m"}, "data": "0", "settings": {"margin": None}}


def mined(home: Path) -> Path:
    with write_folder(
        home / "mined", "mined", meta={"fingerprint": FINGERPRINT, "counts": {"rows": 3}}
    ) as folder:
        (folder / "pairs").mkdir()
        (folder / "pairs" / "qa.train.jsonl.gz").write_bytes(
            gzip.compress(b'{"query": "a", "positive": "b"}\n', mtime=0)
        )
    return home / "mined"


EXPERIMENT: Any = SimpleNamespace(
    digest=lambda: "e" * 64,
    frozen=lambda: {"arms": ["D", "C"]},
    arms=lambda: [],
    recipe=SimpleNamespace(first_stage=lambda: SimpleNamespace(steps=4)),
)
CELL = TrainingRun(kind="run", arm="D", seed=3, steps=4, point=Hyperparameters(1e-3, 0.05, 1.0))


def ablation(home: Path) -> Path:
    out, bench = home / "ablation", SimpleNamespace(experiment=EXPERIMENT, data_hash="0")
    freeze(EXPERIMENT, out)
    (out / CELL.key).mkdir(parents=True)
    write_sealed(
        out / CELL.key / RESULT,
        {
            "meta": CELL.meta(bench),
            "curve": [{"step": 4, "score": 0.25}],
            "test": {"sts": [0.5, 0.25]},
        },
    )
    write_sealed(out / costs.FILE, {"texts": 12, "tokens": 100, "cpu_seconds": 1.5, "flops": None})
    write_sealed(
        out / CONTROL, {"student": {"sts": 0.5}, "teacher": {"sts": 0.5}, "retention": 1.0}
    )
    write_sealed(
        out / MATCHED,
        {
            "flops": {"factor": 1.5, "run": 1.5, "steps": 6},
            "seconds": {"factor": 1.0, "run": 1.0, "steps": 4},
        },
    )
    write_sealed(out / TEACHER, {"test": {"sts": [0.75]}})
    write_sealed(out / UNUSABLE, {"texts": ["a text"]})
    log = Log(out / CELL.key / "log.jsonl")
    for step in range(4):
        log.write(
            {
                "phase": "phase-1",
                "step": step,
                "curve": {"step": step, "score": 0.25},
                "cpu_seconds": 0.5,
            }
        )
    log.close()
    return out


def load_ablation(out: Path) -> Any:
    bench: Any = SimpleNamespace(experiment=EXPERIMENT, data_hash="0", out=out)
    return [
        freeze(EXPERIMENT, out),
        result_of(bench, CELL),
        costs.teacher_cost(bench, 4),
        positive_control(bench),
        _match_costs(SimpleNamespace(context=bench), {}, []),  # type: ignore[arg-type]
        _score_teacher(bench, SilentProgress()),
        _unusable(out / UNUSABLE),
        read_lines(out / CELL.key / "log.jsonl"),
    ]


def projection(home: Path) -> Path:
    with write_folder(
        home / "projections" / "stage1", "projection", meta={**META, "ridge": 0.5}
    ) as folder:
        save_file({"weight": torch.eye(4), "bias": torch.zeros(4)}, folder / "weights.safetensors")
    return home / "projections" / "stage1"


KINDS = {
    "checkpoint": Kind(checkpoint, lambda folder: load_checkpoint(folder, *trained(), META)),
    "phase": Kind(phase, lambda folder: load_phase(folder, job(), META)),
    "best": Kind(best, lambda folder: load_best(folder.with_name("stage1"), trained()[0], META)),
    "snapshot": Kind(snapshot, lambda folder: load_snapshot(folder.with_name("stage1"), META)),
    "model": Kind(model, read_model),
    "static": Kind(static, read_model),
    "export": Kind(exported, read_model),
    "export-info": Kind(exported, lambda folder: faults(describe_folder(folder))),
    "vectors": Kind(vectors, load_vectors),
    "teacher-store": Kind(store, load_store),
    "index": Kind(index, load_index),
    "migration": Kind(migration, read_migration),
    "data": Kind(data, load_data),
    "mined": Kind(mined, lambda folder: _finished(folder, FINGERPRINT, SilentProgress())),
    "ablation": Kind(ablation, load_ablation),
    "projection": Kind(
        projection, lambda folder: open_folder(folder, "projection", "make it again")
    ),
    "tokenizer": Kind(tokenizer, lambda folder: open_folder(folder, "tokenizer", "make it again")),
}


def faults(described: dict[str, Any]) -> None:
    if described["faults"]:
        raise BadInput("; ".join(described["faults"]))


def bits(files: list[Path], rng: np.random.Generator) -> list[tuple[Path, int]]:
    """Places to flip: the ends of every file, and others by chance, as many in each file."""
    found = []
    for path in files:
        size = 8 * path.stat().st_size
        some = rng.integers(0, size, max(6, FLIPS // len(files)))
        found += [(path, int(bit)) for bit in {0, 7, size - 8, size - 1, *some.tolist()}]
    return found


def flip(path: Path, bit: int) -> bytes:
    """Flip a bit of a file, and return what the file held."""
    raw = path.read_bytes()
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return raw


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_in_any_file_is_refused_naming_it(tmp_path, name):
    kind = KINDS[name]
    folder = kind.make(tmp_path)
    kind.load(folder)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != "lock"
    )
    flipped = bits(files, np.random.default_rng([ord(letter) for letter in name]))
    assert len(flipped) >= FLIPS
    for path, bit in flipped:
        raw = flip(path, bit)
        with pytest.raises(BadInput) as refused:
            kind.load(folder)
        place = path.relative_to(folder).as_posix()
        assert path.name in str(refused.value), f"{place}, bit {bit}: {refused.value}"
        path.write_bytes(raw)
    kind.load(folder)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda raw: b"",
    "cut by a byte": lambda raw: raw[:-1],
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "longer by a byte": lambda raw: raw + b"\n",
    "zeroed": lambda raw: bytes(len(raw)),
    "line ends of another system": lambda raw: raw.replace(b"\n", b"\r\n") if b"\n" in raw else b"",
}


MISSED = {
    "data": "an evaluation set that is not there is no set",
    "ablation": "a cell or cost that is not there is computed",
}
"""Kinds of which a file may be missing, and so be a pipe, without a fault."""


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_emptied_cut_or_exchanged_is_refused(tmp_path, name):
    """What copying, unpacking and full disks do to files; a pipe in the place of a file is no
    reason to wait.
    """
    kind = KINDS[name]
    folder = kind.make(tmp_path)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != "lock"
    )
    for path in files:
        raw = path.read_bytes()
        for damage in (
            DAMAGES.values() if path.suffix != ".jsonl" or name != "ablation" else ()
        ):  # a killed writer's log may end anywhere
            path.write_bytes(damage(raw))
            with pytest.raises(BadInput, match=re.escape(path.name)):
                kind.load(folder)
        path.unlink()
        os.mkfifo(path)
        with (
            pytest.raises(BadInput)
            if name not in MISSED
            else contextlib.suppress(BadInput, AttributeError)
        ):
            kind.load(folder)
        path.unlink()
        path.write_bytes(raw)
    for one, two in itertools.combinations(files, 2):
        first, second = one.read_bytes(), two.read_bytes()
        if one.suffix != two.suffix or first == second:
            continue
        one.write_bytes(second)
        two.write_bytes(first)
        with pytest.raises(BadInput):
            kind.load(folder)
        one.write_bytes(first)
        two.write_bytes(second)
    kind.load(folder)


@pytest.mark.parametrize("name", ["role-000000.npy", "block-000000000.npz"])
def test_progress_of_mining_that_was_flipped_is_made_again(tmp_path, name):
    """What a killed run has left is believed only if it is what was written; otherwise it counts as
    not done.
    """
    partial = tmp_path / "mined.partial"
    _begin(partial, FINGERPRINT, SilentProgress())
    with sealed_file(partial / name) as stream:
        (
            np.savez(stream, counts=np.arange(9))
            if name.endswith("npz")
            else np.save(stream, np.arange(9.0))
        )
    assert is_intact(partial / name)
    for path, bit in bits(
        [partial / name, partial / f"{name}.json", partial / "fingerprint.json"],
        np.random.default_rng(1),
    ):
        raw = flip(path, bit)
        if path.name == "fingerprint.json":
            with pytest.raises(BadInput, match=r"fingerprint.json (is damaged|cannot be read)"):
                _begin(partial, FINGERPRINT, SilentProgress())
        else:
            assert not is_intact(partial / name), (path.name, bit)
        path.write_bytes(raw)
    assert is_intact(partial / name)


def test_progress_of_encoding_that_was_flipped_is_made_again(tmp_path):
    folder = vectors(tmp_path)
    (folder / MANIFEST).unlink()
    for path, bit in bits(sorted((folder / "shards").iterdir()), np.random.default_rng(2)):
        raw = flip(path, bit)
        number = int(path.name[:6])
        assert (
            finished(folder, number) is None and finished(folder, (number + 1) % 3) is not None
        ), (path.name, bit)
        path.write_bytes(raw)


def test_a_kept_score_that_was_flipped_is_computed_again(tmp_path):
    kept = ResultCache(tmp_path)
    kept.write("k", {"score": 0.25, "units": [1.0, 0.5]}, model="m")
    for path, bit in bits([tmp_path / "k.json"], np.random.default_rng(3)):
        raw = flip(path, bit)
        assert kept.read("k") is None, bit
        path.write_bytes(raw)
    assert kept.read("k") == {"score": 0.25, "units": [1.0, 0.5]}


KEPT = Path(__file__).parents[1] / "kept"
FIRST: dict[str, Callable[[Path], Any]] = {
    "teacher-store-1/*": lambda folder: TeacherStore(
        folder, FakeTeacher().identity, "find it: {text}", None
    ),
    "model-1": read_model,
    "static-1": read_model,
    "checkpoints-1/step-*": lambda folder: load_checkpoint(folder, *trained(), {"recipe": "kept"}),
    "phase-1": lambda folder: load_phase(folder, job(), {"recipe": "kept"}),
    "shards-1": load_vectors,
    "search-index-1": Index.open,
    "jina-v5-qwen3-1": read_model,
}


@pytest.mark.parametrize("pattern", FIRST)
def test_folders_without_a_hash_of_themselves_are_refused_in_words_where_they_are_refused(
    tmp_path, pattern
):
    """Their manifests are not protected, so some flips pass; none ends in anything but a
    message.
    """
    (kept,) = KEPT.glob(pattern)
    folder = Path(shutil.copytree(kept, tmp_path / "x" / kept.name))
    files = [
        path
        for path in sorted(folder.rglob("*.json"))
        if path.name == MANIFEST or path.parent.name == "shards"
    ]
    for path, bit in bits(files, np.random.default_rng(4))[::3]:
        raw = flip(path, bit)
        for load in (FIRST[pattern], describe_folder):
            with contextlib.suppress(BadInput):
                load(folder)
        path.write_bytes(raw)
    FIRST[pattern](folder)


def test_two_thousand_bits_are_flipped():
    assert FLIPS * len(KINDS) >= 2000


@pytest.mark.parametrize("name", ["vectors", "ablation"])
def test_a_folder_whose_first_file_was_never_finished_is_begun_again(tmp_path, name):
    """A writer that is killed there leaves an empty folder or a temporary file of its own, by which
    nobody knows what was asked for.
    """
    first = {"vectors": "job.json", "ablation": "experiment.json"}[name]
    folder = tmp_path / name
    folder.mkdir()
    (folder / f".{first}.taskdistill-0123abcd").write_text("{")
    assert KINDS[name].make(tmp_path) == folder
    KINDS[name].load(folder)


def test_a_killed_writer_of_shards_leaves_its_job_first(tmp_path, monkeypatch):
    def killed(path: Path, body: Any) -> None:
        assert [each.name for each in path.parent.iterdir()] == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("taskdistill.encode.corpus.write_sealed", killed)
        vectors(tmp_path)
    shutil.rmtree(tmp_path / "static")
    shutil.rmtree(tmp_path / "tokenizer", ignore_errors=True)
    load_vectors(vectors(tmp_path))
