"""`serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taskdistill.cli.options import AUTO, Device, Dtype
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput, require_extra
from taskdistill.types import MANIFEST


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    model: Annotated[
        str, typer.Argument(help="Run folder, model folder, Hub id, or all-MiniLM-L6-v2")
    ],
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            help=(
                "Index of the model or of its teacher, for /search and the page; default: the"
                " run's own"
            ),
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback need a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes any free one")] = 8080,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env", help="Environment variable that holds the key clients must send"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Worker threads; default: the cores of this machine"),
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit", help="A limit of docs/serve.md, such as request_texts=512; may be repeated"
        ),
    ] = None,
    proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy",
            help=(
                "Address of a proxy whose X-Forwarded-For is believed, such as 127.0.0.1; may be"
                " repeated"
            ),
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Allow an address other than loopback without a key")
    ] = False,
) -> None:
    """Serve embeddings (OpenAI's, Jina's and TEI's shapes), search, metrics and a page to try it.

    Example: [bold]taskdistill serve runs/quickstart[/bold]
    """
    import os

    for module in ("fastapi", "uvicorn", "prometheus_client", "orjson"):
        require_extra(module, "serve", "the server")
    from taskdistill.encode.encoder import Encoder
    from taskdistill.search.index import Index
    from taskdistill.serve.server import serve as run
    from taskdistill.serve.settings import ServerSettings

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise BadInput(
            f"--api-key-env names {api_key_env}, which is not set in the environment; put the key"
            " there"
        )
    terminal = Terminal()
    run_folder = Path(model)
    if (run_folder / "model" / MANIFEST).is_file():
        model = str(run_folder / "model")
        index = index or (
            run_folder / "index" if (run_folder / "index" / MANIFEST).is_file() else None
        )
    opened: Any = None if index is None else Index.open(index)

    def load() -> Encoder:
        return Encoder.load(model, threads=threads, device=device, dtype=dtype)

    encoder = load()
    terminal.line(f"model  {model}, {encoder.placement}\nindex  {index or 'none'}")
    run(
        encoder,
        host=host,
        port=port,
        index=opened,
        load=load,
        settings=ServerSettings(
            api_key=key, public=public, proxies=tuple(proxies or ()), **_limits(limits or [])
        ),
        started=lambda address: terminal.line(
            f"listening on {address}; open it in a browser to try the model"
        ),
    )


def _limits(words: list[str]) -> dict[str, Any]:
    """Read `name=number` pairs that change the server's limits."""
    from dataclasses import fields

    from taskdistill.errors import did_you_mean
    from taskdistill.serve.settings import ServerSettings

    known = {
        field.name: type(field.default) is int
        for field in fields(ServerSettings)
        if type(field.default) in (int, float)
    }
    limits: dict[str, Any] = {}
    for each in words:
        name, _, value = each.partition("=")
        if name not in known:
            raise BadInput(f"--limit {each!r} names no limit{did_you_mean(name, known)}")
        try:
            limits[name] = int(value) if known[name] else float(value)
        except ValueError:
            raise BadInput(
                f"--limit {each!r}: {name} needs {'a whole number' if known[name] else 'a number'}"
            ) from None
    return limits
