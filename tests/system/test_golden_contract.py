"""The frozen-space contract: golden vectors are checked by `info --verify` in every back end, and
by every export.
"""

from __future__ import annotations

import json

import pytest
import torch
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.export.export import export
from taskdistill.io.folders import seal
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.types import MANIFEST, Backend
from taskdistill.workflows.info import LEAST, backends_here, verify_model


@pytest.fixture
def folder(tmp_path):
    module = tiny.student()
    made = tiny.model(module, tiny.write_tokenizer(tmp_path / "tok"))
    made.adapter_configs["retrieval"] = tiny.add_adapter(module, "retrieval")
    write_model(
        tmp_path / "model",
        made,
        extra_files={FILE: json.dumps(golden_vectors(embed_with(made), ["retrieval"]))},
    )
    return tmp_path / "model"


def change_golden(folder, name: str) -> None:
    """Turn one coordinate of a golden vector round, in a folder that is whole by its manifest."""
    golden = json.loads((folder / FILE).read_text())
    golden["vectors"][name][0][0] += 0.5
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / FILE).write_text(json.dumps(golden))
    (folder / MANIFEST).unlink()
    known = {"kind", "format_version", "inputs", "created_by", "files", "sha256"}
    seal(
        folder,
        "model",
        meta={key: value for key, value in manifest.items() if key not in known},
        inputs=manifest["inputs"],
    )


@pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_installed_back_end_is_verified(folder, tmp_path, capsys, monkeypatch, graphs):
    here = backends_here() if graphs else [Backend.TORCH, Backend.INT8]
    monkeypatch.setattr("taskdistill.workflows.info.backends_here", lambda: here)
    assert run(["info", str(folder), "--verify", "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert {"golden_cosines", "golden_cosines_int8"} <= told.keys()
    for backend in here:
        key = "golden_cosines" if backend is Backend.TORCH else f"golden_cosines_{backend.value}"
        assert (
            told[key].keys() == {"base", "retrieval"} and min(told[key].values()) >= LEAST[backend]
        ), key
    assert told["faults"] == [] and "golden cosines" in capsys.readouterr().out


def test_another_space_is_a_fault_in_the_back_end_that_is_named(folder, capsys):
    change_golden(folder, "retrieval")
    assert verify_model(folder)["base"] > 1 - 1e-5
    assert run(["info", str(folder), "--verify", "--backend", "int8"]) == 1
    assert "golden vectors of retrieval in int8: cosine" in capsys.readouterr().out
    assert run(["info", str(folder), "--backend", "int8"]) == 2
    assert "no effect without --verify" in capsys.readouterr().err


def test_an_export_refuses_a_model_that_left_its_space(folder, tmp_path):
    certificate = export(folder, "sentence-transformers", tmp_path / "good", task="retrieval")
    assert certificate.golden.keys() == {"retrieval"} and certificate.golden["retrieval"] > 1 - 1e-5
    assert json.loads((tmp_path / "good/parity.json").read_text())["golden"] == certificate.golden
    change_golden(folder, "retrieval")
    with pytest.raises(WorkFailed, match="does not give the golden vectors of retrieval"):
        export(folder, "sentence-transformers", tmp_path / "bad", task="retrieval")
    assert not (tmp_path / "bad").exists()
    assert export(folder, "sentence-transformers", tmp_path / "base").golden.keys() == {"base"}


def test_a_back_end_that_cannot_run_a_model_is_said_and_no_fault(tmp_path, capsys):
    rows = tiny.tokenizer().get_vocab_size()
    made = Model(
        module=StaticModel(torch.randn(rows, 8)).eval(),
        tokenizer=TextTokenizer(tiny.tokenizer(), special=False),
        settings=ModelSettings(max_length=1000, matryoshka_dims=(8,)),
        name="table",
        source=tmp_path / "table",
    )
    write_model(
        tmp_path / "table",
        made,
        extra_files={FILE: json.dumps(golden_vectors(embed_with(made), []))},
    )
    assert run(["info", str(tmp_path / "table"), "--verify"]) == 0
    assert "not run: " in capsys.readouterr().out
    write_model(tmp_path / "bare", made)
    with pytest.raises(BadInput, match="no golden vectors"):
        verify_model(tmp_path / "bare")
