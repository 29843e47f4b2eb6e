"""What CONTRIBUTING says of an extension is true: a toy in a copy of the package, in the files that
its row names and no other, runs and is seen.

Loss terms and evaluation task types have tests of their own (`tests/losses/test_toy_term.py`,
`tests/evaluate/test_task_types.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taskdistill

ROOT = Path(__file__).parents[1]

COMMAND = '''
import typer


def register(app):
    app.command("greet")(greet)


def greet(name: str) -> None:
    """Greet somebody.

    The second paragraph is
    wrapped by the terminal.
    """
    typer.echo(f"hello {name}")
'''

ROUTE = '''
def add_routes(app, site):
    @app.get("/toy", tags=["about"])
    async def toy() -> dict[str, str]:
        """Say the model's name."""
        return {"model": site.holder.now.encoder.name}
'''

FORMAT = """
class Rows:
    usage = "numpy.load('table.npy')"
    all_tasks = False

    def check(self, model):
        pass

    def write(self, job):
        import numpy

        numpy.save(job.folder / "table.npy", job.reference[job.task])
        job.notes.append("a toy compares nothing")


FORMAT = Rows()
"""

TOYS = {
    "a command": ("cli/commands/greet.py", COMMAND),
    "a route of the server": ("serve/routes/toy.py", ROUTE),
    "an export format": ("export/formats/rows.py", FORMAT),
}

CHILD = """
import contextlib
import io
import json
from pathlib import Path

from taskdistill.cli.main import run


def said(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(list(words))
    return [code, " ".join(out.getvalue().split())]


found = {"help": said("--help"), "greet": said("greet", "you"), "own": said("greet", "--help")}

from taskdistill.errors import BadInput
from taskdistill.export.export import FORMATS

try:
    FORMATS["row"]
except BadInput as error:
    found["near"] = str(error)
found["formats"] = [list(FORMATS.names), FORMATS["rows"].usage]

from fastapi.testclient import TestClient
from helpers import tiny
from taskdistill.encode.encoder import Encoder
from taskdistill.serve.app import make_app

encoder = Encoder(tiny.model(tiny.student(), Path(".")))
with TestClient(make_app(encoder), base_url="http://127.0.0.1") as client:
    found["route"] = client.get("/toy").json()
    found["page"] = "/toy" in client.get("/openapi.json").json()["paths"]
    found["counted"] = 'route="/toy"' in client.get("/metrics").text
print(json.dumps(found))
"""


def rows() -> dict[str, str]:
    """What to add, to what CONTRIBUTING says of it."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## To add")[2]
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))


def test_every_file_that_a_row_names_is_there():
    source = ROOT / "src" / "taskdistill"
    for what, touch in list(rows().items())[1:]:
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", touch):
            path = source / name if not name.startswith("tests/") else ROOT / name
            assert path.exists() or path.name == "x.py", f"{what}: {name}"


def test_a_toy_touches_what_its_row_names():
    for what, (file, _) in TOYS.items():
        assert f"`{file.rpartition('/')[0]}/`" in rows()[what], what


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        Path(taskdistill.__file__).parent,
        root / "taskdistill",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for file, text in TOYS.values():
        (root / "taskdistill" / file).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.whole
def test_a_command_is_listed_runs_and_helps(found):
    assert "greet Greet somebody." in found["help"][1]
    assert found["greet"] == [0, "hello you"]
    assert "The second paragraph is wrapped by the terminal." in found["own"][1]


@pytest.mark.whole
def test_an_export_format_is_named_and_found(found):
    names, usage = found["formats"]
    assert "rows" in names and usage == "numpy.load('table.npy')"
    assert "did you mean 'rows'" in found["near"]


@pytest.mark.whole
def test_a_route_answers_stands_on_the_page_and_is_counted(found):
    assert found["route"] == {"model": "tiny"} and found["page"] and found["counted"]
