"""`evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, EvalSets, JsonPath, MaxQueries, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate.records import ModelScore, Results
from taskdistill.types import Precision

MODEL_HELP = (
    "Model folders, Hub ids, all-MiniLM-L6-v2, an endpoint http://HOST/v1#model=NAME, or vectors on"
    " disk (a folder with vectors.npy and texts.jsonl, or a .parquet file); several side by side."
    " Options follow a #, such as runs/a/model#adapters=off&name=base"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=MODEL_HELP)] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for results.json, report.html and finished scores."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of evaluation sets in the layout of docs/data.md."),
    ] = None,
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help=(
                "A public benchmark through mteb: eng, multilingual, rteb, longembed, beir, or"
                " mteb's name."
            ),
        ),
    ] = None,
    sets: EvalSets = None,
    split: Annotated[str, typer.Option("--split", help="test or dev.")] = "test",
    dims: Annotated[
        str | None,
        typer.Option("--dims", help="Truncations for the compression matrix, such as 64,128,256."),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option("--precisions", help="Among float32,float16,int8,binary; all with --dims."),
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore/--no-rescore", help="Whether the matrix also rescores.")
    ] = True,
    languages: Annotated[
        bool,
        typer.Option(
            "--languages/--no-languages",
            help="Sets that differ only in language: also crosswise and in one pool.",
        ),
    ] = True,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="File of prompts, one a line or a JSON list: the spread of scores over them.",
        ),
    ] = None,
    seen: Annotated[
        list[Path] | None,
        typer.Option(
            "--train-data",
            help=(
                "Recipe, run, model, data folder or file: flag evaluation texts seen in this"
                " training; repeatable."
            ),
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", help="The model that others are compared with; default: first."
        ),
    ] = None,
    max_queries: MaxQueries = None,
    full_train: Annotated[
        bool,
        typer.Option(
            "--full-train", help="Classification: also a linear probe on the whole training split."
        ),
    ] = False,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--write-texts",
            help="Only write the texts of the sets to this file, to embed them elsewhere.",
        ),
    ] = None,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Score models on local evaluation sets or public benchmarks, side by side, with intervals; run
    again to continue.

    Example: [bold]taskdistill evaluate runs/quickstart/model all-MiniLM-L6-v2 --data
    runs/quickstart-data --out eval[/bold]

    Example: [bold]taskdistill evaluate runs/quickstart/model --data my-sets --dims 64,128,256
    --train-data runs/quickstart --out eval[/bold]

    Example: [bold]taskdistill evaluate http://localhost:8000/v1#model=name --suite rteb --out
    eval[/bold]
    """
    import os

    if suites:
        os.environ.setdefault("TQDM_DISABLE", "1")
    from taskdistill.device import RuntimeOptions
    from taskdistill.evaluate.models.external import parse_spec
    from taskdistill.evaluate.set_runner import EvalOptions
    from taskdistill.io.outputs import copy_result
    from taskdistill.workflows.evaluate import EvaluateRequest, check_options
    from taskdistill.workflows.evaluate import evaluate as run

    if split not in ("test", "dev"):
        raise BadInput(f"--split {split!r}: it must be test or dev")
    options = EvalOptions(
        max_queries=max_queries,
        full_train=full_train,
        dims=_numbers(dims),
        precisions=_precisions(precisions, dims),
        rescore=rescore,
        languages=languages,
        prompts=_prompts(prompts),
    )
    if texts is not None:
        options_in_use = {
            "--out": out is not None,
            "--device": device != AUTO,
            "--dtype": dtype != AUTO,
        }
        _write_texts(
            texts,
            data,
            sets,
            split,
            options,
            [*(models or []), *(name for name, is_set in options_in_use.items() if is_set)],
        )
        return
    if not models or out is None:
        raise BadInput(
            "give at least one MODEL and --out DIR; `taskdistill evaluate --help` has examples"
        )
    request = EvaluateRequest(
        models=[parse_spec(model) for model in models],
        out=out,
        data=data,
        sets=sets,
        split=split,
        suites=suites or (),
        seen=seen or (),
        options=options,
        reference=reference,
        command=_command(models, out, data, suites, sets, split, dims, precisions, seen),
        runtime=RuntimeOptions(device, dtype),
    )
    check_options(request)
    terminal = Terminal(quiet)
    try:
        results = run(request, terminal, os.environ)
    finally:
        terminal.end()
    _show(terminal, results)
    terminal.line(f"results  {out / 'results.json'}")
    terminal.line(f"report   {out / 'report.html'}")
    if json is not None:
        copy_result(out / "results.json", json)


def _show(terminal: Terminal, results: Results) -> None:
    from taskdistill.report.languages import pool_tables
    from taskdistill.report.scores import notes

    names = [model["name"] for model in results["models"]]
    rows = [
        [
            each["name"],
            results["scores"][names[0]][each["name"]]["metric"],
            *(_cell(results["scores"][name][each["name"]]) for name in names),
        ]
        for each in results["sets"]
    ]
    if rows:
        terminal.table("Scores x 100, with 95 % intervals", ["set", "metric", *names], rows)
    for table in pool_tables(results):
        terminal.table(
            table.title, list(table.columns), [[cell.main for cell in row] for row in table.cells()]
        )
    for name, sentence in results["verdicts"].items():
        terminal.line(f"{name}: {sentence}")
    for suite in results["suites"]:
        means = [
            [name, _mean(each["means"]["sets"]), _mean(each["means"]["types"])]
            for name, each in suite["models"].items()
        ]
        terminal.table(
            f"{suite['suite']}: {len(suite['tasks']) - len(suite['missing'])} of"
            f" {len(suite['tasks'])} tasks",
            ["model", "mean of tasks", "mean of types"],
            means,
        )
    for note in notes(results):
        terminal.note(note)


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _cell(score: ModelScore) -> str:
    low, high = score["interval"]
    return f"{100 * score['score']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _numbers(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise BadInput(
            f"--dims {text!r}: needs numbers above 0 with commas between, such as 64,128,256"
        )
    return numbers


def _precisions(text: str | None, dims: str | None) -> tuple[str, ...]:
    if text is None:
        return tuple(each.value for each in Precision) if dims else ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for each in names:
        if each not in tuple(Precision):
            raise BadInput(
                f"--precisions: unknown precision {each!r}{did_you_mean(each, Precision)}"
            )
    return names


def _prompts(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from taskdistill.io.json import open_regular, read_value

    try:
        with open_regular(path) as stream:
            text = stream.read().decode("utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
        prompts = read_value(text) if text.lstrip().startswith("[") else lines
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--prompts {path}: {error}; give a file with one prompt a line, or a JSON list of"
            " texts"
        ) from None
    if not prompts or not all(isinstance(each, str) for each in prompts):
        raise BadInput(f"--prompts {path}: no prompts; give one a line, or a JSON list of texts")
    return tuple(dict.fromkeys(prompts))


def _write_texts(
    path: Path,
    data: Path | None,
    sets: list[str] | None,
    split: str,
    options: Any,
    without: list[str],
) -> None:
    from taskdistill.evaluate.datasets import find_eval_sets
    from taskdistill.workflows.evaluate import write_texts

    if without:
        raise BadInput(
            f"--write-texts evaluates nothing, so {without[0]} has no effect; leave it out"
        )
    if data is None:
        raise BadInput("--write-texts needs --data DIR, the folder whose texts are wanted")
    count = write_texts(find_eval_sets(data, sets, split), options, path)
    Terminal().line(f"{count:,} texts  {path}")


def _command(models: list[str], out: Path, data: Path | None, *rest: Any) -> str:
    import shlex

    suites, sets, split, dims, precisions, seen = rest
    parts = ["taskdistill", "evaluate", *models, "--out", out.name]
    parts += ["--data", data.name] if data is not None else []
    for name, values in (
        ("--suite", suites),
        ("--eval-set", sets),
        ("--train-data", [path.name for path in seen or ()]),
    ):
        for value in values or ():
            parts += [name, value]
    for name, value in (
        ("--split", split if split != "test" else None),
        ("--dims", dims),
        ("--precisions", precisions),
    ):
        parts += [name, value] if value is not None else []
    return shlex.join(parts)
