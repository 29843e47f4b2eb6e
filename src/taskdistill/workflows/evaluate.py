"""An evaluation from end to end.

Models of any kind on local sets and public benchmarks, into one results file and one report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from taskdistill.device import RuntimeOptions
from taskdistill.errors import BadInput, require_extra
from taskdistill.evaluate.contamination import seen_in, teacher_saw, warnings_of
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import RunsHere
from taskdistill.evaluate.models.external import ModelSpec, open_model
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.records import Results, Suite
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.set_data import all_texts
from taskdistill.evaluate.set_runner import EvalOptions
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.json import open_regular
from taskdistill.io.outputs import check_claim, claim, is_result, write_output
from taskdistill.io.sealed import dump_json
from taskdistill.progress import Progress
from taskdistill.report.pages import write_evaluation
from taskdistill.types import Precision
from taskdistill.workflows.training_texts import read_training

KIND = "evaluation"
_PARTS = ("cache", "calibration", "endpoints")
"""Of the folder that it writes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What is to be evaluated.

    Attributes:
        models: The models, in the order of columns.
        data: Folder of local sets, or None.
        sets: Names of local sets; None takes all.
        seen: Where to read what models were trained on.
        reference: Name of the model the others are compared with; None takes the first.
    """

    models: Sequence[ModelSpec]
    out: Path
    data: Path | None = None
    sets: Sequence[str] | None = None
    split: str = "test"
    suites: Sequence[str] = ()
    seen: Sequence[Path] = ()
    options: EvalOptions = field(default_factory=EvalOptions)
    reference: str | None = None
    command: str = ""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def evaluate(
    request: EvaluateRequest, progress: Progress, environment: Mapping[str, str]
) -> Results:
    """Run an evaluation and write results.json and report.html.

    Args:
        environment: Where keys of endpoints are looked up.
    """
    claims: dict[str, Any] = {
        "earlier": lambda path: _is_evaluation(path),
        "files": ("results.json", "report.html"),
        "parts": _PARTS,
    }
    check_claim(request.out, KIND, **claims)
    suites = _suite_tasks(request.suites)
    sets = (
        find_eval_sets(request.data, request.sets, request.split)
        if request.data is not None
        else []
    )
    models = open_models(
        request.models,
        request.out / "endpoints",
        environment,
        request.runtime,
    )
    if placement_lines := placements(models):
        progress.note(placement_lines)
    trainings = [read_training(path, progress) for path in request.seen]
    claim(request.out, KIND, **claims)
    if sets:
        progress.stage(f"{_some(len(models), 'model')} on {_some(len(sets), 'local set')}")
    cache_folder = request.out if sets else None
    results = evaluate_models(
        models,
        sets,
        cache_folder,
        request.options,
        reference=request.reference,
        progress=progress.count,
        note=progress.note,
    )
    results["seen"] = []
    for training in trainings:
        data = {
            each.name: each.load(request.options.max_queries, request.options.seed) for each in sets
        }
        seen_texts = seen_in(training, sets, data)
        results["seen"].append(
            {"training": training.name, "texts": training.texts, "sets": seen_texts}
        )
        for line in warnings_of(training.name, seen_texts):
            progress.note(line)
    results["suites"] = [
        _run_suite(name, tasks, models, request, progress) for name, tasks in suites.items()
    ]
    for suite in results["suites"]:
        suite["seen_by_teacher"] = {
            training.name: [name for name in suite["tasks"] if teacher_saw(training.teacher, name)]
            for training in trainings
        }
    write_output(request.out / "results.json", dump_json(results))
    write_evaluation(request.out, results, [request.command] if request.command else [])
    return results


def open_models(
    specs: Sequence[ModelSpec],
    memory: Path | None,
    environment: Mapping[str, str],
    runtime: RuntimeOptions = RuntimeOptions(),
) -> list[Embedder]:
    """Open models under names that tell them apart. Returns the models in their order."""
    often = Counter(spec.name for spec in specs)
    named = [
        (
            spec
            if often[spec.name] == 1 or "name" in spec.options
            else replace(spec, options={**spec.options, "name": spec.place})
        )
        for spec in specs
    ]
    opened = (
        open_model(
            spec,
            memory=memory,
            environment=environment,
            runtime=runtime,
        )
        for spec in named
    )
    return list(opened)


def placements(models: Sequence[Embedder]) -> str:
    """Say where the models run that run here.

    Returns one line; empty if all are endpoints or vectors on disk.
    """
    return "; ".join(
        dict.fromkeys(model.placement for model in models if isinstance(model, RunsHere))
    )


def write_texts(sets: Sequence[EvalSet], options: EvalOptions, path: Path) -> int:
    """Write every text that a model has to embed for some sets, for another program to embed.

    `path`: a JSONL file, one `{"text": ...}` a line.
    """
    texts: dict[str, None] = {}
    for each in sets:
        data = each.load(options.max_queries, options.seed)
        texts.update(dict.fromkeys(all_texts(data)))
    import json

    content = "".join(
        json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts
    ).encode()
    write_output(
        path, content, lambda file: file.read(len(content) + 1) == content
    )  # texts of somebody look like these
    return len(texts)


def _is_evaluation(path: Path) -> bool:
    try:
        with open_regular(path / "results.json") as file:
            return is_result(file)
    except (OSError, BadInput):
        return False


def _suite_tasks(names: Sequence[str]) -> dict[str, list[Any]]:
    if not names:
        return {}
    require_extra("mteb", "mteb", "--suite")
    from taskdistill.evaluate.suites import suite_name, suite_tasks

    return {suite_name(name): suite_tasks(name) for name in names}


def _run_suite(
    name: str,
    tasks: Sequence[Any],
    models: Sequence[Embedder],
    request: EvaluateRequest,
    progress: Progress,
) -> Suite:
    """Run a benchmark with every model, at every dimension and precision that was asked for."""
    from taskdistill.evaluate.mteb import MtebEncoder
    from taskdistill.evaluate.suites import run_suite

    options = request.options
    encoders, names = [], []
    for model in models:
        for dim in options.dims or (None,):
            for precision in options.precisions or (Precision.FLOAT32.value,):
                setting = [
                    *([f"{dim} dimensions"] if options.dims else []),
                    *([precision] if options.precisions else []),
                ]
                encoders.append(MtebEncoder(model, dim=dim, precision=precision))
                names.append(", ".join([model.name, *setting]))
    progress.stage(f"{name}: {_some(len(tasks), 'task')}, through mteb")
    return run_suite(
        encoders,
        names,
        name,
        tasks,
        request.out / "mteb",
        progress=progress.count,
        note=progress.note,
    )


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def check_options(request: EvaluateRequest) -> None:
    """Refuse a request in which something has no effect."""
    if request.data is None and not request.suites:
        raise BadInput(
            "nothing to evaluate on; give --data DIR, a folder of local sets, or --suite NAME, "
            "a public benchmark"
        )
    options, default = request.options, EvalOptions()
    options_in_use = {
        "--set": request.sets is not None,
        "--split": request.split != "test",
        "--train-data": bool(request.seen) and not request.suites,
        "--max-queries": options.max_queries is not None,
        "--full-train": options.full_train,
        "--no-languages": not options.languages,
        "--prompts": bool(options.prompts),
    }
    if request.data is None:
        for name, wrong in options_in_use.items():
            if wrong:
                raise BadInput(
                    f"{name} has no effect without --data: a suite is run as it is; leave it "
                    "out, or give local sets"
                )
    if options.rescore != default.rescore and not options.precisions:
        raise BadInput(
            "--no-rescore has no effect without --dims or --precisions; leave it out, or give them"
        )
