"""What each addition to a recipe is worth: the same phase trained without and with it.

    taskdistill train recipes/quickstart.yaml --out runs/quickstart python benchmarks/additions.py
    runs/quickstart --data runs/quickstart-data --set retrieval/docs --seeds 2 python
    benchmarks/additions.py runs/quickstart --data runs/quickstart-data --set retrieval/docs --phase
    stage1 --steps 200

Every variant trains the run's retrieval adapter on its finished base again, or its stage 1 from the
start, with the same data order and seeds as the plain recipe, then scores one retrieval set:
nDCG@10 of float32 vectors whole and cut to a quarter, of int8 codes and of sign bits. The table
holds the difference to the plain recipe in points, with 95 % bootstrap intervals over queries, each
a mean over the seeds. The last line is the largest gain of sign bits, in points.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, machine, options, parser, table
from safetensors.torch import load_file

from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.compression import decoded
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.encode import encode_set
from taskdistill.evaluate.exact_search import ndcg_by_query, ndcg_by_query_of_bits
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.model.backbone import without_dropout
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.setup import load_inputs, make_plans, start_student
from taskdistill.pipeline.teacher_store import fill_stores, store_root
from taskdistill.progress import SilentProgress, never
from taskdistill.quantization import fit_ranges, pack_bits, truncate
from taskdistill.recipe.recipe import FIRST, load_recipe
from taskdistill.stats.intervals import interval, paired_difference
from taskdistill.tasks import Task
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.store import open_views
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.log import Log
from taskdistill.train.loop import run_phase
from taskdistill.train.phases import build_adapter, build_stage1
from taskdistill.train.workers import workers
from taskdistill.types import Precision

PLAIN = "plain"
VARIANTS: dict[str, list[str]] = {
    PLAIN: [],
    "binary_info_nce 0.5": ["weights.binary_info_nce=0.5"],
    "int8_info_nce 0.5": ["weights.int8_info_nce=0.5"],
    "gor_hinged for gor": ["weights.gor=0", "weights.gor_hinged=4"],
    "no gor": ["weights.gor=0"],
    "centre 1": ["weights.centre=1"],
    "matryoshka off": ["matryoshka=false"],
    "focal 1": ["sharpen.focal=1"],
    "similarity 1": ["weights.similarity=1"],
    "relative 1": ["weights.relative=1"],
    "rkd_distance 1": ["weights.rkd_distance=1"],
    "rkd_angle 1": ["weights.rkd_angle=1"],
    "score_softmax 1": ["weights.score_softmax=1"],
    "list_kl 1": ["weights.list_kl=1"],
    "l2 2 for distill": ["weights.distill=0", "weights.l2=2"],
    "mse 400 for distill": ["weights.distill=0", "weights.mse=400"],
    "distill ramps to 0": ["weight_schedule={distill: {start: 1.0, end: 0.0}}"],
    "distill ramps from 0": ["weight_schedule={distill: {start: 0.0, end: 1.0}}"],
}
"""Name to settings of the adapter that differ from the run's recipe."""
NEED_NEGATIVES: dict[str, list[str]] = {
    "hardness 5": ["sharpen.hardness=5"],
    "mixed_negatives 4": ["sharpen.mixed_negatives=4"],
}
"""Further ones, for rows with hard negatives (`taskdistill mine`)."""
STAGE1: dict[str, list[str]] = {
    PLAIN: [],
    "l2 for distill": ["weights.distill=0", "weights.l2=1"],
    "mse 200 for distill": ["weights.distill=0", "weights.mse=200"],
    "score_softmax for distill": ["weights.distill=0", "weights.score_softmax=1"],
    "score_softmax 1": ["weights.score_softmax=1"],
    "similarity 20": ["weights.similarity=20"],
    "relative 2": ["weights.relative=2"],
    "rkd_distance 1": ["weights.rkd_distance=1"],
    "rkd_angle 2": ["weights.rkd_angle=2"],
    "list_kl 1": ["weights.list_kl=1"],
    "matryoshka off": ["matryoshka=false"],
}
"""Name to settings of stage 1 that differ; similarity and relative stand to the cosine as in Jasper
(10 : 200 : 20).
"""
MEASURES = ("float32", "float32, a quarter", "int8", "sign bits")
Units = dict[str, np.ndarray]


def main() -> None:
    """Train and score every variant, and print the differences."""
    made = parser(__doc__, texts=0, rounds=1)
    made.add_argument("run", type=Path, help="folder of a finished run")
    made.add_argument("--set", dest="name", required=True, help="retrieval set that is scored")
    made.add_argument("--split", default="test")
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument(
        "--phase",
        choices=("retrieval", "stage1"),
        default="retrieval",
        help="what is trained again",
    )
    made.add_argument(
        "--negatives",
        action="store_true",
        help="the rows have hard negatives: measure what weighs and mixes them too",
    )
    made.add_argument("--steps", type=int, help="of the phase; default: the recipe's")
    made.add_argument("--only", help="names of variants, separated by commas")
    made.add_argument(
        "--variant", action="append", default=[], metavar="field=value,...", help="one more variant"
    )
    made.add_argument(
        "--always",
        action="append",
        default=[],
        metavar="field=value",
        help="setting of the phase in every variant, plain too",
    )
    asked = options(made)
    print(machine(asked.threads))
    known = (
        STAGE1
        if asked.phase == "stage1"
        else VARIANTS | (NEED_NEGATIVES if asked.negatives else {})
    )
    chosen = {
        name: known[name] for name in ([PLAIN, *asked.only.split(",")] if asked.only else known)
    }
    chosen |= {each: each.split(",") for each in asked.variant}
    found: dict[str, list[Units]] = {name: [] for name in chosen}
    seconds: dict[str, float] = {}
    for seed in range(asked.seeds):
        for name, changes in chosen.items():
            start = time.perf_counter()
            found[name].append(variant(asked, changes, seed))
            seconds[name] = time.perf_counter() - start
            print(f"seed {seed}, {name}: {seconds[name]:.0f} s", flush=True)
    means = {
        name: {m: np.mean([units[m] for units in each], axis=0) for m in MEASURES}
        for name, each in found.items()
    }
    rows, gains = [], []
    for name, units in means.items():
        cells = []
        for measure in MEASURES:
            if name == PLAIN:
                cells.append(f"{100 * interval({'': units[measure]}).value:.1f}")
                continue
            gap = paired_difference({"": units[measure]}, {"": means[PLAIN][measure]}).estimate
            cells.append(f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})")
            if measure == MEASURES[-1]:
                gains.append(100 * gap.value)
        rows.append([name, *cells, f"{seconds[name]:.0f}"])
    table(
        f"{asked.name}, {len(means[PLAIN][MEASURES[0]])} queries, {asked.seeds} seeds: nDCG@10,"
        f" then the difference to {PLAIN}",
        ["variant", *MEASURES, "s"],
        rows,
    )
    finish(max(gains), {"rows": rows}, asked.json)


def variant(asked: argparse.Namespace, changes: list[str], seed: int) -> Units:
    """Train the phase with some settings changed, and score the set."""
    plan = "stage1" if asked.phase == "stage1" else f"adapters.{Task.RETRIEVAL.value}"
    steps = [f"{plan}.steps={asked.steps}"] if asked.steps else []
    recipe = load_recipe(
        asked.run / "recipe.yaml",
        [
            f"data.root={asked.data}",
            *steps,
            *(f"{plan}.{each}" for each in (*asked.always, *changes)),
        ],
    )
    adapters = {} if asked.phase == "stage1" else {Task.RETRIEVAL: recipe.adapters[Task.RETRIEVAL]}
    recipe = recipe.model_copy(
        update={"adapters": adapters, "static": None, "seed": recipe.seed + seed}
    )
    inputs = load_inputs(recipe, asked.data, SilentProgress())
    teacher = make_teacher(recipe.teacher, threads=asked.threads)
    stores = open_views(store_root(recipe, asked.run), teacher, recipe.teacher.instructions)
    folder = Path(tempfile.mkdtemp(prefix="additions-"))
    plans = {plan: make_plans(recipe, inputs)[plan]}
    run = RunContext(
        recipe=recipe,
        out=folder,
        inputs=inputs,
        teachers=[(FIRST, teacher, stores)],
        progress=SilentProgress(),
        should_stop=never,
        log=Log(folder / "log.jsonl"),
        threads=asked.threads,
        plans=plans,
    )
    fill_stores(run, [plan])
    student = start_student(recipe)
    job = (
        stage1_again(run, student)
        if asked.phase == "stage1"
        else adapter_again(run, student, asked.run)
    )
    with workers(asked.threads) as threads:
        ctx = TrainContext(
            tokenizer=student.tokenizer,
            prompts=student.settings.prompts,
            seed=recipe.seed,
            threads=threads,
            log=run.log,
            meta={},
            on_step=run.progress.step,
            should_stop=never,
            thread_count=1,
            note=run.progress.note,
        )
        run_phase(job, student.module, folder / "checkpoints", ctx)
    shutil.rmtree(folder)
    student.module.eval()
    return scored(asked, Encoder(student, threads=asked.threads))


def stage1_again(run: RunContext, student: Model) -> Phase:
    """Describe stage 1 from the student before its first step."""
    assert isinstance(student.module, TransformerModel)
    settings = run.recipe.first_stage()
    torch.manual_seed(run.recipe.seed)
    width = run.stores["document"].embedding_dim
    assert width is not None
    projection = (
        None
        if settings.projection == "none"
        else Projection(student.module.embedding_dim, width, settings.projection_init)
    )
    return build_stage1(
        "stage1",
        settings,
        student.module,
        run.plans["stage1"],
        run.stores,
        projection,
        student.settings.matryoshka_dims,
    )


def adapter_again(run: RunContext, student: Model, source: Path) -> Phase:
    """Describe the retrieval adapter on a finished base."""
    assert isinstance(student.module, TransformerModel)
    projection = trained_base(student.module, source / "phases")
    without_dropout(student.module.backbone)
    torch.manual_seed(run.recipe.seed)
    settings, plan = (
        run.recipe.adapters[Task.RETRIEVAL],
        run.plans[f"adapters.{Task.RETRIEVAL.value}"],
    )
    dims = student.settings.matryoshka_dims
    job, config = build_adapter(
        Task.RETRIEVAL, settings, student.module, plan, run.stores, projection, dims
    )
    student.adapter_configs[Task.RETRIEVAL.value] = config
    return job


def trained_base(module: Any, phases: Path) -> Projection:
    """Give the module the weights of the run's last base phase, and return the projection."""
    last = "long" if (phases / "long").is_dir() else "stage1"
    weights = load_file(phases / last / "weights.safetensors")
    projection = Projection(module.embedding_dim, weights["projection.weight"].shape[0])
    places = dict(module.backbone.named_parameters()) | {
        f"projection.{name}": p for name, p in projection.named_parameters()
    }
    with torch.no_grad():
        for name, tensor in weights.items():
            places[name].copy_(tensor)
    return projection


def scored(asked: argparse.Namespace, encoder: Encoder) -> Units:
    """Score the set's queries in each form of the vectors."""
    (chosen,) = find_eval_sets(asked.data, [asked.name], split=asked.split)
    data = chosen.load(None, 17)
    sides = encode_set(EncoderEmbedder(encoder), chosen.task, data).sides
    queries, documents = sides["queries"], sides["documents"]
    quarter = queries.shape[1] // 4
    ranges = fit_ranges(documents, [documents.shape[1]])[documents.shape[1]]
    forms = (
        ndcg_by_query(data, queries, documents),
        ndcg_by_query(data, truncate(queries, quarter), truncate(documents, quarter)),
        ndcg_by_query(data, queries, decoded(documents, Precision.INT8, ranges)),
        ndcg_by_query_of_bits(data, pack_bits(queries), pack_bits(documents)),
    )
    return dict(zip(MEASURES, forms, strict=True))


if __name__ == "__main__":
    main()
