"""What holds for every export format: it is found by its file's name, and says how it is loaded."""

from __future__ import annotations

import pytest

from taskdistill.errors import BadInput
from taskdistill.export.export import FORMATS

NAMES = {"gguf", "jina-v5", "onnx", "openvino", "sentence-transformers"}


def test_formats_are_the_files_of_their_folder():
    assert set(FORMATS) == NAMES
    with pytest.raises(BadInput, match="unknown format 'onxx'; did you mean 'onnx'"):
        FORMATS["onxx"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_format_says_how_it_is_loaded(name):
    form = FORMATS[name]
    usage = form.usage.format(prompt="Document: ", task="retrieval")
    assert "a text" in usage and "{" not in usage.replace('{"input_ids": ids', "")
    assert form.all_tasks == (name == "jina-v5")
