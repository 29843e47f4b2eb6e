"""Public benchmarks through mteb, run as they are, with the averages of section 8.3."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.evaluate.mteb import MtebEncoder
from taskdistill.evaluate.records import Suite, SuiteModel, SuiteTask
from taskdistill.evaluate.results import aggregate, task_score

RTEB_PUBLIC = (
    "AILACasedocs AILAStatutes LegalSummarization LegalQuAD FinanceBenchRetrieval"
    " HC3FinanceRetrieval FinQARetrieval HumanEvalRetrieval "
    "MBPPRetrieval MIRACLRetrievalHardNegatives AppsRetrieval DS1000Retrieval WikiSQLRetrieval"
    " ChatDoctorRetrieval CUREv1 FreshStackRetrieval"
)
"""The sixteen public tasks that the paper reports (section 8.3)."""

SUITES = {
    "MTEB(eng, v2)": ("eng", "mteb-eng"),
    "MTEB(Multilingual, v2)": ("multilingual", "mteb-multilingual", "mmteb"),
    "RTEB public": ("rteb", "rteb-public"),
    "LongEmbed": ("longembed",),
    "BEIR": ("beir",),
}
"""Benchmark to the short names by which it is called too."""

TYPES = (
    "BitextMining",
    "Classification",
    "Clustering",
    "InstructionReranking",
    "MultilabelClassification",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "STS",
    "Summarization",
)
"""mteb's types of tasks in the order of tables."""

_BATCH = 512
"""Texts in one batch of mteb's loader; it only hands them over."""


def suite_name(name: str) -> str:
    """Return the benchmark that mteb's name or a short name stands for.

    Raises BadInput if mteb knows no such benchmark.
    """
    short = {alias: full for full, aliases in SUITES.items() for alias in (*aliases, full.lower())}
    if name in SUITES or name.lower() in short:
        return short.get(name.lower(), name)
    import mteb

    known = {benchmark.name for benchmark in mteb.get_benchmarks()}
    if name not in known:
        raise BadInput(
            f"no suite {name!r}{did_you_mean(name, [*SUITES, *short, *known])}; the suites:"
            f" {', '.join(SUITES)}"
        )
    return name


def suite_tasks(name: str) -> list[Any]:
    """Return the tasks of a benchmark; no data is read.

    Raises BadInput if there is no such benchmark, or it is about more than texts.
    """
    import mteb

    full = suite_name(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = list(
            mteb.get_tasks(tasks=RTEB_PUBLIC.split())
            if full == "RTEB public"
            else mteb.get_benchmark(full).tasks
        )
    if other := [
        task.metadata.name for task in tasks if list(task.metadata.modalities) != ["text"]
    ]:
        raise BadInput(
            f"suite {full!r} has tasks on more than texts, such as {other[0]}; only texts can be"
            " embedded"
        )
    return tasks


def run_suite(
    models: Sequence[MtebEncoder],
    names: Sequence[str],
    suite: str,
    tasks: Sequence[Any],
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Suite:
    """Run models on the tasks of a benchmark through `mteb.evaluate`.

    Scores are stored in `folder/results/` as mteb does, by the revision of each model; a finished
    task is not run again. A task whose data cannot be had is left out and named. `progress`: called
    with pairs of model and task that are done, and their number. `note`: called with a line for
    each score and each task that cannot be run. Raises BadInput if the data of no task can be had,
    WorkFailed if mteb cannot score a task whose data is there.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in names}
    splits: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in names}
    missing: dict[str, str] = {}
    done, total = 0, len(tasks) * len(models)
    for task in tasks:
        task_name = task.metadata.name
        for name, model in zip(names, models, strict=True):
            if task_name not in missing:
                result = _run_task(model, task, folder, missing)
                if result is not None:
                    splits[name][task_name] = result
                    scores[name][task_name] = task_score(result)
            if note is not None:
                score = scores[name].get(task_name)
                outcome = (
                    f"{100 * score:.2f}" if score is not None else f"left out: {missing[task_name]}"
                )
                note(f"{task_name}  {name}  {outcome}")
            done += 1
            if progress is not None:
                progress(done, total)
        if getattr(task, "data_loaded", False):
            task.unload_data()
    if len(missing) == len(tasks):
        raise BadInput(
            f"the data of no task of {suite} can be had: {next(iter(missing.values()))}; mteb"
            " takes it from the Hugging Face Hub, "
            "so connect this machine, or copy a filled cache (HF_HOME) to it"
        )
    types = {task.metadata.name: str(task.metadata.type) for task in tasks}
    by_model: dict[str, SuiteModel] = {
        name: {
            "revision": model.revision(),
            "scores": scores[name],
            "splits": splits[name],
            "means": aggregate(scores[name], types, TYPES),
        }
        for name, model in zip(names, models, strict=True)
    }
    described: dict[str, SuiteTask] = {
        task.metadata.name: {"type": str(task.metadata.type), "metric": task.metadata.main_score}
        for task in tasks
    }
    return {
        "suite": suite,
        "tasks": described,
        "models": by_model,
        "missing": missing,
        "mteb": metadata.version("mteb"),
    }


def _run_task(
    model: MtebEncoder, task: Any, folder: Path, missing: dict[str, str]
) -> dict[str, dict[str, float]] | None:
    """Return split to subset to main score, or None and a reason in `missing`."""
    import mteb

    cache = mteb.ResultCache(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached = _main_scores(
            cache.load_task_result(task.metadata.name, model.mteb_model_meta), task
        )
        if cached is not None:
            return cached
        try:
            for part in getattr(task, "tasks", [task]) if task.is_aggregate else [task]:
                if not part.data_loaded:
                    part.load_data()
        except Exception as error:
            missing[task.metadata.name] = _reason(error)
            return None
        try:
            how = {"batch_size": _BATCH, "show_progress_bar": False}
            mteb.evaluate(
                model,
                [task],
                cache=cache,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs=how,
            )
            result = _main_scores(
                cache.load_task_result(task.metadata.name, model.mteb_model_meta), task
            )
        except (BadInput, WorkFailed):
            raise
        except Exception as error:
            raise WorkFailed(
                f"mteb {metadata.version('mteb')} could not score {task.metadata.name}:"
                f" {_reason(error)}"
            ) from error
    if result is None:
        raise WorkFailed(
            f"mteb {metadata.version('mteb')} gave no score for some part of {task.metadata.name}"
        )
    return result


def _main_scores(result: Any, task: Any) -> dict[str, dict[str, float]] | None:
    """Return main scores of exactly the task's splits and subsets, None if one is missing."""
    if result is None:
        return None
    results: dict[str, dict[str, float]] = {}
    for split in task.eval_splits:
        scores = {
            str(each["hf_subset"]): each["main_score"] for each in result.scores.get(split, [])
        }
        requested = (
            [str(subset) for subset in task.hf_subsets] if not task.is_aggregate else list(scores)
        )
        if not requested or any(scores.get(subset) is None for subset in requested):
            return None
        results[split] = {subset: float(scores[subset]) for subset in requested}
    return results


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
