"""The script for a machine with an accelerator runs here too, tells a device that is right from one
that is not, and measures a rate.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from helpers import twin

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """Load the script, which finds its neighbours beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("gpu_check", FOLDER / "gpu_check.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        gc.freeze()  # what pytest and torch hold is not looked through again at each run
        yield module
    sys.modules.pop("common", None)


def test_every_comparison_is_made_and_one_that_fails_is_the_exit_code(
    script, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "found.json"
    assert script.main(["--device", str(twin.DEVICE), "--quick", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["right"] and found["device"] == "twin:0" and len(found["checks"]) == 5
    assert all(
        float(figure) == pytest.approx(1, abs=1e-6)
        for what, figure, _, _ in found["checks"]
        if "bfloat16" not in what
    )
    assert found["speed"]["tokens a second"] > 0 and found["speed"]["arithmetic"] == "bfloat16"
    assert capsys.readouterr().out.splitlines()[-1].startswith("right; ")
    monkeypatch.setattr(script, "compare", lambda *_, **__: [("x", "0.5", "0.999", False)])
    assert script.main(["--device", "cpu", "--quick"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("WRONG; ")
