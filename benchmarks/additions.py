"""What each addition to an adapter's recipe is worth: the same adapter trained without and with it on one finished stage 1.

    taskdistill train recipes/quickstart.yaml --out runs/quickstart
    python benchmarks/additions.py runs/quickstart --data runs/quickstart-data --set retrieval/docs --seeds 2

Every variant trains the run's retrieval adapter again, from the same base, data order and seeds as the plain recipe, then scores one
retrieval set: nDCG@10 of float32 vectors whole and cut to a quarter, of int8 codes and of sign bits. The table holds the difference to
the plain recipe in points, with 95 % bootstrap intervals over queries, each a mean over the seeds. The last line is the largest gain of
sign bits, in points.
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

from taskdistill.compress import fit_ranges, pack_bits, truncate
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.compression import decoded
from taskdistill.evaluate.encoding import encode_set
from taskdistill.evaluate.ranking import ndcg_units, ndcg_units_of_bits
from taskdistill.evaluate.sets import find_sets
from taskdistill.evaluate.statistics import interval, paired_difference
from taskdistill.job.embedders import EncoderEmbedder
from taskdistill.job.run import store_root
from taskdistill.job.start import load_inputs, start_student
from taskdistill.job.state import Run, fill_stores, make_plans
from taskdistill.job.watch import Silent, never
from taskdistill.model.backbone import without_dropout
from taskdistill.model.projection import Projection
from taskdistill.recipe import load_recipe
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.store import open_views
from taskdistill.train.log import Log
from taskdistill.train.loop import Surroundings, run_phase
from taskdistill.train.phases import adapter_job
from taskdistill.train.workers import workers
from taskdistill.vocabulary import Precision, Task

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
    "distill ramps to 0": ["weight_schedule={distill: {start: 1.0, end: 0.0}}"],
}
"""Name to settings of the adapter that differ from the run's recipe."""
MEASURES = ("float32", "float32, a quarter", "int8", "sign bits")
Units = dict[str, np.ndarray]


def main() -> None:
    """Train and score every variant, and print the differences."""
    made = parser(__doc__, texts=0, rounds=1)
    made.add_argument("run", type=Path, help="folder of a finished run")
    made.add_argument("--set", dest="name", required=True, help="retrieval set that is scored")
    made.add_argument("--split", default="test")
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--steps", type=int, help="of the adapter; default: the recipe's")
    made.add_argument("--only", help="names of variants, separated by commas")
    made.add_argument("--variant", action="append", default=[], metavar="field=value,...", help="one more variant")
    asked = options(made)
    print(machine(asked.threads))
    chosen = {name: VARIANTS[name] for name in ([PLAIN, *asked.only.split(",")] if asked.only else VARIANTS)}
    chosen |= {each: each.split(",") for each in asked.variant}
    found: dict[str, list[Units]] = {name: [] for name in chosen}
    seconds: dict[str, float] = {}
    for seed in range(asked.seeds):
        for name, changes in chosen.items():
            start = time.perf_counter()
            found[name].append(variant(asked, changes, seed))
            seconds[name] = time.perf_counter() - start
            print(f"seed {seed}, {name}: {seconds[name]:.0f} s", flush=True)
    means = {name: {m: np.mean([units[m] for units in each], axis=0) for m in MEASURES} for name, each in found.items()}
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
        f"{asked.name}, {len(means[PLAIN][MEASURES[0]])} queries, {asked.seeds} seeds: nDCG@10, then the difference to {PLAIN}",
        ["variant", *MEASURES, "s"],
        rows,
    )
    finish(max(gains), {"rows": rows}, asked.json)


def variant(asked: argparse.Namespace, changes: list[str], seed: int) -> Units:
    """Train the adapter with some settings changed, and score the set."""
    prefix = f"adapters.{Task.RETRIEVAL.value}."
    steps = [f"{prefix}steps={asked.steps}"] if asked.steps else []
    recipe = load_recipe(asked.run / "recipe.yaml", [f"data.root={asked.data}", *steps, *(prefix + each for each in changes)])
    settings = recipe.adapters[Task.RETRIEVAL]
    recipe = recipe.model_copy(update={"adapters": {Task.RETRIEVAL: settings}, "static": None, "seed": recipe.seed + seed})
    inputs = load_inputs(recipe, asked.data, Silent())
    plan = f"adapters.{Task.RETRIEVAL.value}"
    teacher = make_teacher(recipe.teacher, threads=asked.threads)
    stores = open_views(store_root(recipe, asked.run), teacher, recipe.teacher.instructions)
    folder = Path(tempfile.mkdtemp(prefix="additions-"))
    plans = {plan: make_plans(recipe, inputs)[plan]}
    run = Run(recipe, folder, inputs, teacher, stores, Silent(), never, Log(folder / "log.jsonl"), asked.threads, plans, {})
    fill_stores(run, [plan])
    student = start_student(recipe)
    projection = trained_base(student.module, asked.run / "phases")
    without_dropout(student.module.backbone)
    torch.manual_seed(recipe.seed)
    job, config = adapter_job(
        Task.RETRIEVAL, settings, student.module, run.plans[plan], stores, projection, student.settings.matryoshka_dims
    )
    student.adapter_configs[Task.RETRIEVAL.value] = config
    with workers(asked.threads) as threads:
        around = Surroundings(
            student.tokenizer, student.settings.prompts, recipe.seed, threads, run.log, {}, run.watcher.step, never, 1, run.watcher.note
        )
        run_phase(job, student.module, folder / "checkpoints", around)
    shutil.rmtree(folder)
    student.module.eval()
    return scored(asked, Encoder(student, threads=asked.threads))


def trained_base(module: Any, phases: Path) -> Projection:
    """Give the module the weights of the run's last base phase, and return the projection."""
    last = "long" if (phases / "long").is_dir() else "stage1"
    weights = load_file(phases / last / "weights.safetensors")
    projection = Projection(module.embedding_dim, weights["projection.weight"].shape[0])
    places = dict(module.backbone.named_parameters()) | {f"projection.{name}": p for name, p in projection.named_parameters()}
    with torch.no_grad():
        for name, tensor in weights.items():
            places[name].copy_(tensor)
    return projection


def scored(asked: argparse.Namespace, encoder: Encoder) -> Units:
    """Score the set's queries in each form of the vectors."""
    (chosen,) = find_sets(asked.data, [asked.name], split=asked.split)
    data = chosen.load(None, 17)
    sides = encode_set(EncoderEmbedder(encoder), chosen.kind, data).sides
    queries, documents = sides["queries"], sides["documents"]
    quarter = queries.shape[1] // 4
    ranges = fit_ranges(documents, [documents.shape[1]])[documents.shape[1]]
    forms = (
        ndcg_units(data, queries, documents),
        ndcg_units(data, truncate(queries, quarter), truncate(documents, quarter)),
        ndcg_units(data, queries, decoded(documents, Precision.INT8, ranges)),
        ndcg_units_of_bits(data, pack_bits(queries), pack_bits(documents)),
    )
    return dict(zip(MEASURES, forms, strict=True))


if __name__ == "__main__":
    main()
