"""Last pooling finds an end-of-sequence token, also where the base's tokenizer appends none by
itself (Qwen3-0.6B-Base).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from tokenizers import Tokenizer, pre_tokenizers, processors

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.folder import write_model
from taskdistill.model.tokenizer import TextTokenizer, end_token
from taskdistill.pipeline.setup import start_student

TEXT = "the old ship near the harbour"
START, END = 2, 3


def without_end(post: Any = None) -> Tokenizer:
    made = Tokenizer.from_str(tiny.tokenizer().to_str())
    made.post_processor = post or processors.ByteLevel(trim_offsets=False)
    return made


def begins() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B:1", special_tokens=[("[CLS]", START)]
    )


def folder(root: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A tokenizer folder that may name its end-of-sequence token."""
    tiny.write_tokenizer(root)
    tokenizer.save(str(root / "tokenizer.json"))
    said = json.loads((root / "tokenizer_config.json").read_text())
    (root / "tokenizer_config.json").write_text(json.dumps(said | settings))
    return root


def started(tmp_path: Path, tokenizer: Path, **student: Any):
    raw = tiny.recipe(tmp_path / "data", tmp_path / "teacher")
    raw["student"] = {
        "init": "config",
        "config": tiny.config("qwen3"),
        "tokenizer": str(tokenizer),
        "pooling": "last",
        "max_length": 64,
        "matryoshka_dims": [8],
        **student,
    }
    return start_student(tiny.parsed(raw))


def ids(tokenizer: TextTokenizer, most: int = 32) -> list[int]:
    return tokenizer.ids([TEXT], prompt="query: ", max_length=most).ids[0].tolist()


@pytest.mark.parametrize(
    ("name", "said"), [("plain", "[SEP]"), ("object", {"content": "[SEP]", "lstrip": False})]
)
def test_last_pooling_appends_the_tokenizer_s_own_end_token(tmp_path, name, said):
    source = folder(tmp_path / "tokenizer", without_end(), eos_token=said)
    assert END not in ids(TextTokenizer.load(source)) and end_token(source) == "[SEP]"
    student = started(tmp_path, source)
    found = ids(student.tokenizer)
    assert (
        found[-1] == END
        and found[:-1] == ids(TextTokenizer.load(source))
        and student.tokenizer.own_tokens == 1
    )
    assert ids(student.tokenizer, 5) == [*found[:4], END]  # the end stays where a text is cut


def test_other_poolings_and_null_leave_the_tokenizer_as_it_is(tmp_path):
    source = folder(tmp_path / "tokenizer", without_end(), eos_token="[SEP]")
    for options in ({"pooling": "mean"}, {"end_token": None}):
        student = started(tmp_path, source, **options)
        assert END not in ids(student.tokenizer) and student.tokenizer.own_tokens == 0
    assert ids(started(tmp_path, source, pooling="mean", end_token="[SEP]").tokenizer)[-1] == END


def test_a_token_before_every_text_stays(tmp_path):
    for post in (
        begins(),
        processors.Sequence([processors.ByteLevel(trim_offsets=False), begins()]),
    ):
        student = started(
            tmp_path, folder(tmp_path / "tokenizer", without_end(post), eos_token="[SEP]")
        )
        found = ids(student.tokenizer)
        assert (
            found[0] == START and found[-1] == END and found.count(START) == found.count(END) == 1
        )
        assert student.tokenizer.own_tokens == 2 and len(ids(student.tokenizer, 6)) == 6
        student.tokenizer.backend.no_truncation()
        pair = student.tokenizer.backend.encode("ship", "sail")
        assert [pair.ids[i] for i in (0, 2, -1)] == [START, END, END] and len(pair.ids) == 5


def test_a_tokenizer_that_ends_its_texts_is_left_alone(tmp_path):
    source = tiny.write_tokenizer(tmp_path / "tokenizer", end=True)
    student = started(tmp_path, source)
    assert (
        student.tokenizer.to_json() == TextTokenizer.load(source).to_json()
        and ids(student.tokenizer).count(END) == 1
    )
    with pytest.raises(
        BadInput,
        match=r"student.end_token is '\[SEP\]', but the tokenizer of .* already ends every text",
    ):
        started(tmp_path, source, end_token="[SEP]")


def test_where_no_end_token_is_known_the_recipe_must_say(tmp_path):
    source = folder(tmp_path / "tokenizer", without_end())
    with pytest.raises(
        BadInput,
        match=r"names no end-of-sequence token; name one as student.end_token, or set it to null",
    ):
        started(tmp_path, source)
    assert ids(started(tmp_path, source, end_token="[SEP]").tokenizer)[-1] == END
    with pytest.raises(BadInput, match=r"no token '<eos>' to end a text with"):
        started(tmp_path, source, end_token="<eos>")


def test_the_model_folder_and_stock_libraries_end_texts_alike(tmp_path):
    source = folder(tmp_path / "tokenizer", without_end(), eos_token="[SEP]")
    student = started(tmp_path, source)
    write_model(tmp_path / "model", student)
    ours = Encoder.load(tmp_path / "model", threads=1)
    assert ids(ours.model.tokenizer)[-1] == END
    stock = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    theirs = stock.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert (
        np.abs(
            theirs.encode([TEXT], prompt_name="query") - ours.encode([TEXT], prompt_name="query")
        ).max()
        <= 1e-5
    )


def test_a_byte_level_tokenizer_keeps_its_own_step(tmp_path):
    made = without_end()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = TextTokenizer(made)
    tokenizer.end_with("[SEP]")
    kinds = [
        part["type"] for part in json.loads(tokenizer.to_json())["post_processor"]["processors"]
    ]
    assert kinds == ["ByteLevel", "TemplateProcessing"]
