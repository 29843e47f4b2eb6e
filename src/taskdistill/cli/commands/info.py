"""`info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.types import Backend


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info")(info)


def info(
    path: Annotated[
        Path, typer.Argument(help="A run, model, data, teacher-store, checkpoint or index folder")
    ],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Teacher store: drop broken shards, so that they are made again"
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Model: run it and compare with its golden vectors")
    ] = False,
    backend: Annotated[
        list[Backend] | None,
        typer.Option(
            "--backend",
            help="With --verify: what runs it, may be repeated; default: every one installed",
        ),
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
) -> None:
    """Say what a folder is and whether it is whole, reading every byte. Exit code 1 if it is
    damaged.

    Example: [bold]taskdistill info runs/quickstart/model[/bold]
    """
    from taskdistill.io.outputs import write_result
    from taskdistill.workflows.info import (
        backends_here,
        describe_folder,
        least_cosine,
        repair_folder,
        verify_model,
    )

    terminal = Terminal()
    if repair:
        for line in repair_folder(path):
            terminal.line(line)
    result = describe_folder(path)
    if backend and not verify:
        raise BadInput("--backend has no effect without --verify; add it or leave it out")
    if (device, dtype) != (AUTO, AUTO) and not verify:
        raise BadInput(
            "--device and --dtype have no effect without --verify; add it or leave them out"
        )
    if verify and not result["faults"]:
        for each in backend or backends_here():
            key = "golden_cosines" if each is Backend.TORCH else f"golden_cosines_{each.value}"
            try:
                cosines = verify_model(path, each, device=device, dtype=dtype, note=terminal.note)
            except BadInput as error:
                if backend or each is Backend.TORCH:
                    raise
                result[key] = f"not run: {error}"
                continue
            result[key] = {name: round(cosine, 7) for name, cosine in cosines.items()}
            result["faults"] += [
                f"golden vectors of {name} in {each.value}: cosine {cosine}"
                for name, cosine in result[key].items()
                if cosine < least_cosine(each, dtype)
            ]
    for key, value in result.items():
        if key != "faults":
            terminal.line(f"{key.replace('_', ' '):<20} {_plain(value)}")
    if json is not None:
        write_result(json, result)
    if result["faults"]:
        for fault in result["faults"]:
            terminal.line(f"damaged: {fault}")
        raise WorkFailed(
            f"{path} is damaged in {len(result['faults'])} places; make or copy it again"
        )


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
