"""For the server tests: a tiny model with adapters, prompts and int8 ranges, an engine that
misbehaves on purpose, a live server.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.long_text import encode_chunks
from taskdistill.model.backbone import build_backbone
from taskdistill.model.lora import adapter_parameters, attach, lora_config
from taskdistill.model.model import Model, memory_files
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.quantization import fit_ranges, ranges_to_json
from taskdistill.serve.app import make_app
from taskdistill.serve.server import make_server
from taskdistill.serve.settings import ServerSettings as Limits
from taskdistill.tasks import PROMPTS
from taskdistill.types import Pooling

TASKS = ("retrieval", "text-matching", "clustering", "classification")
DIMS = (16, 32)
MAX_LENGTH = 300


def tiny_tokenizer() -> TextTokenizer:
    """One token a byte, between a first and a last special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return TextTokenizer(tokenizer)


def tiny_model(source: Path = Path(), layers: int = 2) -> Model:
    """A random BERT of 32 dimensions with four adapters that differ visibly."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    backbone = build_backbone(
        {
            "model_type": "bert",
            **shape,
            "max_position_embeddings": MAX_LENGTH,
            "initializer_range": 0.3,
        }
    )
    configs = {task: lora_config(backbone, rank=4, alpha=8, dropout=0.0) for task in TASKS}
    module = TransformerModel(backbone.eval(), Pooling.MEAN)
    for task, config in configs.items():
        attach(backbone, task, config)
        for parameter in adapter_parameters(backbone, task).values():
            parameter.data.normal_(std=0.2)
        module.tasks.append(task)
    module.select(None)
    settings = ModelSettings(prompts=dict(PROMPTS), max_length=MAX_LENGTH, matryoshka_dims=DIMS)
    model = Model(
        module=module.eval(),
        tokenizer=tiny_tokenizer(),
        settings=settings,
        name="tiny",
        source=source,
        adapter_configs=configs,
    )
    texts = [f"{word} number {i}" for i in range(40) for word in ("one", "another")]
    ranges = {
        task or "base": ranges_to_json(fit_ranges(Encoder(model).encode(texts, task=task), DIMS))
        for task in (None, "retrieval")
    }
    model.settings = ModelSettings(
        prompts=dict(PROMPTS), max_length=MAX_LENGTH, matryoshka_dims=DIMS, int8_ranges=ranges
    )
    model.files = memory_files(model)
    return model


def tiny_encoder(threads: int = 2) -> Encoder:
    return Encoder(tiny_model(), threads=threads)


class Panic(BaseException):
    """What a panic of a native library looks like from Python."""


class FakeEngine:
    """Vectors are the sum and the number of the ids; a text whose first id is negative is
    poison.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        has_short_worker: bool = True,
        budget: int = 256,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.workers, self.has_short_worker, self.budget, self.embedding_dim = (
            workers,
            has_short_worker,
            budget,
            2,
        )
        self.seconds_per_token = seconds_per_token
        self.batches: list[tuple[str | None, list[int]]] = []
        self.views = 0
        self.held = threading.Event()
        self.held.set()
        self.panicking = False

    def view(self):
        self.views += 1
        return self

    def embed(self, ids, task):
        self.held.wait(10)
        if any(row[0] == -2 for row in ids) or self.panicking:
            raise Panic("a native library panicked")
        if any(row[0] == -1 for row in ids):
            raise ValueError("poison")
        self.batches.append((task, [len(row) for row in ids]))
        if self.seconds_per_token:
            time.sleep(self.seconds_per_token * sum(map(len, ids)))
        return np.array([expected(row) for row in ids], np.float32)


def late_vectors(encoder: Encoder, texts: list[str], **options) -> np.ndarray:
    """What the library gives for texts read as one document."""
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    return encode_chunks(
        encoder, " ".join(texts), spans=list(pairwise([0, *ends.tolist()])), **options
    ).vectors


def expected(row) -> list[float]:
    return [float(np.sum(row)), float(len(row))]


@contextmanager
def live(encoder: Encoder, index=None, settings: Limits | None = None, load=None):
    """Run a server on a free loopback port; yields its address and what it serves."""
    settings = settings or Limits()
    app = make_app(encoder, index, settings, load)
    server = make_server(app, settings)
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive(), "the server did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.holder
    finally:
        server.should_exit = True
        thread.join(20)
