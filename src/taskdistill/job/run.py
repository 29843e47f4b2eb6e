"""The main job, end to end and resumable: teacher store, every phase, the model folder, its scores and the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from taskdistill.data.batches import BatchPlan
from taskdistill.encode.batches import cores
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.folders import dump_json, read_manifest, remove_leftovers, write_file
from taskdistill.job.finish import finish_model, finish_static
from taskdistill.job.start import Inputs, data_root, load_inputs, start_student
from taskdistill.job.watch import Silent, Stop, Watcher, never
from taskdistill.model.backbone import rope_theta, set_rope_theta, weights_hash
from taskdistill.model.folder import Model
from taskdistill.model.projection import Projection
from taskdistill.model.student import TransformerModel
from taskdistill.model.text import TextTokenizer
from taskdistill.recipe import Adapter, Phase, Recipe, StaticSettings, dump_recipe
from taskdistill.teacher.lock import writer_lock
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.protocol import Teacher, View
from taskdistill.teacher.store import TeacherStore, open_views
from taskdistill.train.average import average
from taskdistill.train.log import Log, read_lines
from taskdistill.train.loop import Interrupted, PhaseJob, Surroundings, run_phase
from taskdistill.train.phases import adapter_job, load_phase, make_plan, save_phase, stage1_job, static_job, static_phase, teacher_needs
from taskdistill.train.static import start_table
from taskdistill.train.step import workers
from taskdistill.vocabulary import Task

FREE_KEYS = ("threads", "evaluation", "name")
"""Parts of a recipe that may differ when a run is continued: they move no weight."""


@dataclass
class Run:
    """What the parts of the job share."""

    recipe: Recipe
    out: Path
    inputs: Inputs
    teacher: Teacher
    stores: Mapping[View, TeacherStore]
    watcher: Watcher
    should_stop: Stop
    log: Log
    threads: int
    plans: dict[str, BatchPlan]
    facts: dict[str, Any]

    def count(self, done: int, total: int) -> None:
        """Tell how far a part has come whose finished items are kept on disk, and stop there if that was asked for.

        Args:
            done: Items done.
            total: Items in all.

        Raises:
            Interrupted: If a stop was asked for.
        """
        self.watcher.count(done, total)
        if self.should_stop():
            raise Interrupted("stopped; what is finished is kept, run the same command again to continue")

    def timed(self, part: str, start: float) -> None:
        """Add the seconds since `start` to a part; the log keeps them, so that a continued run counts its earlier parts too.

        Args:
            part: Name of the part.
            start: From the monotonic clock.
        """
        self.log.write({"part": part, "seconds": time.monotonic() - start})

    def seconds(self) -> dict[str, float]:
        """Sum the seconds of every part over all the processes that worked on the run.

        Returns:
            Part to seconds, in the order in which parts first ended.
        """
        found: dict[str, float] = {}
        for _, record in read_lines(self.log.path):
            if "part" in record:
                found[record["part"]] = found.get(record["part"], 0.0) + record["seconds"]
        return found


def train(
    recipe: Recipe,
    out: Path,
    *,
    recipe_folder: Path | None = None,
    watcher: Watcher | None = None,
    should_stop: Stop = never,
    api_key: str | None = None,
    assess: Callable[[Run, Model, Path | None], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run a recipe into a folder; run again after any interruption, it continues.

    Args:
        recipe: What to do.
        out: The run folder.
        recipe_folder: Where the recipe file is, for relative paths in it.
        watcher: Told what happens.
        should_stop: Asked before every step; true saves and stops.
        api_key: Key of an HTTP teacher.
        assess: Scores the finished model; None for the recipe's evaluation.

    Returns:
        The content of metrics.json.

    Raises:
        BadInput: If the recipe, data or folder cannot be used.
        WorkFailed: If the work could not be finished.
    """
    from taskdistill.job.assess import assess_run, first_result

    watcher = watcher or Silent()
    started = time.monotonic()
    check_recipe(recipe, out)
    root = data_root(recipe, recipe_folder or Path(), out.parent / f"{out.name}-data", watcher)
    inputs = load_inputs(recipe, root, watcher)
    plans = _plans(recipe, inputs)
    teacher = make_teacher(recipe.teacher, api_key=api_key, threads=recipe.threads)
    student = start_student(recipe)
    out.mkdir(parents=True, exist_ok=True)
    with writer_lock(out / "lock"):
        _same_recipe(recipe, out)
        for name in remove_leftovers(out, out / "phases"):
            watcher.note(f"removed {name}, left by an interrupted run")
        stores = open_views(store_root(recipe, out), teacher, recipe.teacher.instructions)
        threads = recipe.threads or cores()
        log = Log(out / "log.jsonl")
        run = Run(recipe, out, inputs, teacher, stores, watcher, should_stop, log, threads, plans, {})
        run.timed("data and models", started)
        try:
            static = _static(run, student) if recipe.static is not None else None
            if static is not None and not (out / "model").is_dir():
                first_result(run, static)
            _fill(run, [name for name in plans if name != "static"])
            model = _phases(run, student)
            metrics = (assess or assess_run)(run, model, static)
        finally:
            log.close()
        write_file(out / "metrics.json", dump_json(metrics))
    return metrics


def store_root(recipe: Recipe, out: Path) -> Path:
    """Say where the teacher's vectors are kept.

    Args:
        recipe: May name a folder.
        out: The run folder.

    Returns:
        That folder, or `teacher-store` beside the run folder, which runs share.
    """
    return Path(recipe.teacher.store) if recipe.teacher.store else out.parent / "teacher-store"


def check_recipe(recipe: Recipe, out: Path) -> None:
    """Find settings that cannot work before anything is read or written.

    Args:
        recipe: The recipe.
        out: The run folder.

    Raises:
        BadInput: If the run folder is something else, or settings contradict each other.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "recipe.yaml").is_file())):
        raise BadInput(f"{out} exists and is no run folder; give another --out")
    for task, settings in recipe.adapters.items():
        if settings.average is not None and settings.average.gate and not recipe.evaluation.dev:
            raise BadInput(f"adapters.{task.value}.average.gate needs evaluation.dev sets to decide by; name some or set gate: false")
    if recipe.stage1.projection == "none" and recipe.long is not None and recipe.long.projection != "none":
        raise BadInput("long.projection wants a projection that stage1 did not train; set both to the same")


def _as_phase(settings: Phase | StaticSettings) -> Phase:
    return static_phase(settings) if isinstance(settings, StaticSettings) else settings


def _same_recipe(recipe: Recipe, out: Path) -> None:
    path = out / "recipe.yaml"
    text = dump_recipe(recipe)
    if path.is_file():
        before, now = _flat(yaml.safe_load(path.read_text("utf-8"))), _flat(yaml.safe_load(text))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and key.split(".")[0] not in FREE_KEYS]
        if changed:
            shown = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed[:5])
            raise BadInput(f"{out} was begun with another recipe ({shown}); use a new --out, or the recipe in {path}")
    write_file(path, text)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return out


def _meta(run: Run) -> dict[str, Any]:
    fixed = run.recipe.model_dump(mode="json", exclude=set(FREE_KEYS))
    import hashlib
    import json

    return {"recipe": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest(), "data": run.inputs.digest()}


def _fill(run: Run, names: Collection[str]) -> None:
    """Embed with the teacher exactly the texts that some step of these phases will compare with it.

    Rows with a text for which the teacher has no usable vector are rejected and counted, and the batches are drawn anew.
    """
    start = time.monotonic()
    for _ in range(FILL_ROUNDS):
        wanted: dict[int, tuple[TeacherStore, dict[str, None]]] = {}
        for name in names:
            for view, texts in teacher_needs(name, _as_phase(run.recipe.phases()[name]), run.plans[name]).items():
                store = run.stores[view]
                wanted.setdefault(id(store), (store, {}))[1].update(dict.fromkeys(texts))
        unusable: set[str] = set()
        for store, found in wanted.values():
            unusable.update(_fill_store(run, store, list(found)))
        if not unusable:
            run.timed("teacher", start)
            return
        run.watcher.note(f"rows with {len(unusable)} texts that have no teacher vector are left out")
        run.inputs = run.inputs.without(unusable)
        run.plans = _plans(run.recipe, run.inputs)
    raise WorkFailed(f"the teacher keeps giving unusable vectors, the last for {sorted(unusable)[0][:60]!r}; look at the teacher")


FILL_ROUNDS = 4
"""Times that batches are drawn anew because the teacher has no usable vector for some text."""


def _fill_store(run: Run, store: TeacherStore, texts: list[str]) -> list[str]:
    """Fill a store, tell what was done, and return the texts that stay without a vector."""
    missing = len(store.missing(texts))
    if missing:
        run.watcher.stage(f"embedding {missing:,} texts with the teacher")
    report = store.fill(texts, run.teacher, progress=run.count)
    told = f" under {store.instruction!r}" if store.instruction else ""
    run.watcher.note(
        f"teacher store{told}: {report.distinct:,} distinct texts, {report.found:,} already there, {report.embedded:,} embedded, "
        f"{len(report.quarantined):,} set aside"
    )
    for note in report.notes:
        run.watcher.note(f"  {note}")
    run.log.write({"teacher": store.instruction or "raw text", "texts": report.distinct, "embedded": report.embedded})
    return store.missing(texts)


def _plans(recipe: Recipe, inputs: Inputs) -> dict[str, BatchPlan]:
    return {name: make_plan(recipe, name, _as_phase(settings), inputs.datasets) for name, settings in recipe.phases().items()}


def _around(run: Run, tokenizer: TextTokenizer, prompts: Mapping[str, str], threads: Any) -> Surroundings:
    return Surroundings(
        tokenizer, prompts, run.recipe.seed, threads, run.log, _meta(run), run.watcher.step, run.should_stop, run.threads, run.watcher.note
    )


def _train_phase(run: Run, job: PhaseJob, model: Any, tokenizer: TextTokenizer, prompts: Mapping[str, str]) -> bool:
    """Run a phase unless it is finished; say whether anything was run."""
    start = time.monotonic()
    done = run.out / "phases" / job.name
    if load_phase(done, job, _meta(run)):
        run.watcher.note(f"{job.name}: finished before")
        return False
    run.watcher.stage(f"{job.name}: {job.settings.steps:,} steps")
    with workers(run.threads) as threads:
        run_phase(job, model, run.out / "checkpoints" / job.name, _around(run, tokenizer, prompts, threads))
    run.timed(job.name, start)
    return True


def _static(run: Run, student: Model) -> Path:
    """Train the instant student first: it is the first result."""
    assert run.recipe.static is not None
    torch.manual_seed(run.recipe.seed)
    phase, store = static_phase(run.recipe.static), run.stores["document"]
    folder = run.out / "static-model"
    _fill(run, ["static"])
    if folder.is_dir():
        _same_data(run, folder)
        return folder
    plan = run.plans["static"]
    texts = [text for found in teacher_needs("static", phase, plan).values() for text in found]
    start = time.monotonic()
    tokenizer = TextTokenizer.load(student.source, special=False)
    run.watcher.stage("embedding the vocabulary with the teacher")
    table = start_table(tokenizer, run.teacher, store, texts, run.count)
    run.timed("teacher", start)
    job = static_job(
        run.recipe.static, table, plan, store, [dim for dim in run.recipe.student.matryoshka_dims if dim <= table.embedding_dim]
    )
    if _train_phase(run, job, table, tokenizer, {}):
        save_phase(run.out / "phases" / job.name, job, _meta(run))
    finish_static(run, table, tokenizer, folder, texts)
    return folder


def _same_data(run: Run, folder: Path) -> None:
    made_from, now = read_manifest(folder, "model")["inputs"].get("data"), run.inputs.digest()
    if made_from != now:
        raise BadInput(f"{folder} was made with data = {made_from!r}, this run has {now!r}; use a new --out")


def _phases(run: Run, student: Model) -> Model:
    """Stage 1, the long phase, then one adapter per task on the frozen base."""
    recipe, module = run.recipe, student.module
    assert isinstance(module, TransformerModel)
    torch.manual_seed(recipe.seed)
    teacher_dim = run.stores["document"].embedding_dim
    if teacher_dim is None:
        raise WorkFailed("the teacher store is empty: no phase compares any text with the teacher; give stage1 a source")
    dims, inference_theta = student.settings.matryoshka_dims, rope_theta(module.backbone)
    projection = None
    if recipe.stage1.projection == "student":
        projection = Projection(module.embedding_dim, teacher_dim, recipe.stage1.projection_init)
    elif teacher_dim != module.embedding_dim:
        raise BadInput(f"stage1.projection is none, but the teacher has {teacher_dim} dimensions and the student {module.embedding_dim}")
    for name, settings in (("stage1", recipe.stage1), ("long", recipe.long)):
        if settings is not None:
            _with_theta(module, settings, inference_theta)
            job = stage1_job(name, settings, module, run.plans[name], run.stores, projection, dims)
            if _train_phase(run, job, module, student.tokenizer, student.settings.prompts):
                save_phase(run.out / "phases" / name, job, _meta(run))
    before = weights_hash(module.backbone)
    for task in Task:
        if task in recipe.adapters:
            _with_theta(module, recipe.adapters[task], inference_theta)
            _adapter(run, task, recipe.adapters[task], student, run.plans[f"adapters.{task.value}"], projection, dims, before)
    run.facts["base_weights"] = before
    if inference_theta is not None:
        set_rope_theta(module.backbone, inference_theta)
    student.projection = projection
    finish_model(run, student)
    return student


def _with_theta(module: TransformerModel, settings: Phase, otherwise: float | None) -> None:
    theta = settings.rope_theta if settings.rope_theta is not None else otherwise
    if theta is not None:
        set_rope_theta(module.backbone, theta)


def _adapter(
    run: Run,
    task: Task,
    settings: Adapter,
    student: Model,
    plan: Any,
    projection: Projection | None,
    dims: tuple[int, ...],
    base: str,
) -> None:
    module = student.module
    assert isinstance(module, TransformerModel)
    torch.manual_seed(run.recipe.seed)
    theirs = projection
    if projection is not None and settings.train_projection:
        theirs = Projection(module.embedding_dim, projection.weight.shape[0])
        theirs.load_state_dict(projection.state_dict())
    job, config = adapter_job(task, settings, module, plan, run.stores, theirs, dims)
    student.adapter_configs[task.value] = config
    if _train_phase(run, job, module, student.tokenizer, student.settings.prompts):
        if weights_hash(module.backbone) != base:
            shutil.rmtree(run.out / "checkpoints" / job.name)
            raise WorkFailed(f"the base's weights changed while {job.name} was trained; nothing of it was kept, please report this")
        if settings.average is not None:
            _average(run, task, settings, job, student)
        save_phase(run.out / "phases" / job.name, job, _meta(run))
    module.select(None)


def _average(run: Run, task: Task, settings: Adapter, job: PhaseJob, student: Model) -> None:
    """Average the adapter with its earlier state, and keep that only if the dev score allows."""
    from taskdistill.job.assess import dev_score

    assert settings.average is not None
    earlier = load_file(run.out / "checkpoints" / f"{job.name}.earlier.safetensors")
    last = {name: p.detach().clone() for name, p in job.trained.items()}
    before = dev_score(run, student, task) if settings.average.gate else None
    mean = average(last, earlier, settings.average.weight, settings.average.mode)
    with torch.no_grad():
        for name, parameter in job.trained.items():
            parameter.copy_(mean[name])
    if before is None:
        return
    after = dev_score(run, student, task)
    kept = after >= before
    run.watcher.note(
        f"{job.name}: dev score {before:.4f} of the last checkpoint, {after:.4f} averaged; {'averaged' if kept else 'last'} kept"
    )
    run.facts.setdefault("averaging", {})[task.value] = {"last": before, "averaged": after, "kept": "averaged" if kept else "last"}
    if not kept:
        with torch.no_grad():
            for name, parameter in job.trained.items():
                parameter.copy_(last[name])
