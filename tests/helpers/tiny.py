"""Tiny things built in memory: a tokenizer of about 200 tokens, three backbones, a teacher folder,
a data folder and a recipe.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    EuroBertConfig,
    EuroBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from taskdistill.model.backbone import without_dropout
from taskdistill.model.folder import write_model
from taskdistill.model.lora import adapter_parameters, attach, lora_config
from taskdistill.model.model import Model
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.recipe.recipe import Recipe, parse_recipe
from taskdistill.tasks import PROMPTS
from taskdistill.types import Pooling

FAMILIES = ("bert", "qwen3", "eurobert")
TOPICS = {
    "sea": "ship wave harbour sail tide anchor fish captain storm island whale net",
    "sky": "star planet moon comet orbit telescope cloud rocket galaxy sun light night",
    "farm": "cow field wheat barn tractor milk horse hen plough seed soil harvest",
    "town": "street house bridge market tower tram shop square school park river wall",
    "music": "song drum violin choir note piano rhythm opera guitar flute concert tune",
    "court": "judge law trial witness jury lawyer verdict crime appeal statute oath case",
    "kitchen": "bread soup oven knife salt butter plate recipe pepper rice sauce cake",
    "body": "heart blood bone nerve muscle lung skin brain liver fever pulse doctor",
}
COMMON = [
    "the",
    "a",
    "of",
    "and",
    "in",
    "to",
    "is",
    "on",
    "with",
    "by",
    "for",
    "at",
    "from",
    "near",
    "old",
    "new",
    "small",
    "what",
    "where",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OTHER = ["query", "document", "instruct", "topic", "theme", ":", "?", "."]
WORDS = [word for words in TOPICS.values() for word in words.split()]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


def tokenizer(*, end: bool = False) -> Tokenizer:
    """A WordPiece tokenizer that puts `[CLS]` before and `[SEP]` behind a text, or with `end` only
    `[SEP]` behind it.
    """
    pieces = [
        *SPECIAL,
        *COMMON,
        *OTHER,
        *WORDS,
        *map(chr, range(97, 123)),
        *(f"##{chr(n)}" for n in range(97, 123)),
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    single = "$A [SEP]" if end else "[CLS] $A [SEP]"
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=marks[1:] if end else marks
    )
    made.add_special_tokens(SPECIAL)
    return made


def config(family: str, *, layers: int = 2) -> dict[str, Any]:
    """The configuration of a family at 32 dimensions, as a recipe's `student.config` takes it."""
    shape = {
        "vocab_size": tokenizer().get_vocab_size(),
        "num_hidden_layers": layers,
        "max_position_embeddings": 64,
        **SHAPE,
    }
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 3}
    if family == "bert":
        return {"model_type": "bert", **shape, "pad_token_id": 0}
    if family == "qwen3":
        return {
            "model_type": "qwen3",
            **shape,
            **ids,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_theta": 1000.0,
        }
    return {
        "model_type": "eurobert",
        **shape,
        **ids,
        "num_key_value_heads": 2,
        "mask_token_id": 4,
        "rope_theta": 1000.0,
    }


def backbone(family: str, *, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """A random backbone on the packed stream, with weights large enough that every part shows in
    the output.
    """
    torch.manual_seed(seed)
    fields = {
        key: value for key, value in config(family, layers=layers).items() if key != "model_type"
    }
    if family == "bert":
        made: PreTrainedModel = BertModel(BertConfig(**fields), add_pooling_layer=False)
    elif family == "qwen3":
        made = Qwen3Model(Qwen3Config(**fields))
    else:
        made = EuroBertModel(EuroBertConfig(**fields))
    made.set_attn_implementation(ATTENTION)
    without_dropout(made)
    return made.eval()


def add_adapter(
    module: TransformerModel, task: str, *, rank: int = 4, dropout: float = 0.0, seed: int = 7
) -> LoraConfig:
    """Attach an adapter of which both factors are non-zero."""
    config = lora_config(module.backbone, rank=rank, alpha=2 * rank, dropout=dropout)
    attach(module.backbone, task, config)
    module.tasks.append(task)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(module.backbone, task).values():
        parameter.data.normal_(std=0.2, generator=generator)
    return config


def pooling_of(family: str) -> Pooling:
    """The pooling that suits a family."""
    return Pooling.MEAN if family == "bert" else Pooling.LAST


def student(family: str = "bert", *, seed: int = 0, layers: int = 2) -> TransformerModel:
    """A random model of a family."""
    return TransformerModel(backbone(family, seed=seed, layers=layers), pooling_of(family))


def write_tokenizer(folder: Path, *, end: bool = False) -> Path:
    """Write the tokenizer as a folder of its own, with the side files that other libraries read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(end=end).save(str(folder / "tokenizer.json"))
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return folder


def model(
    module: TransformerModel,
    source: Path,
    *,
    prompts: dict[str, str] | None = None,
    end: bool = False,
) -> Model:
    """Join a module with the tokenizer, as the job does."""
    settings = ModelSettings(
        prompts=dict(PROMPTS if prompts is None else prompts),
        max_length=64,
        matryoshka_dims=(8, 16, 32),
    )
    return Model(
        module=module,
        tokenizer=TextTokenizer(tokenizer(end=end)),
        settings=settings,
        name="tiny",
        source=source,
    )


def write_teacher(folder: Path, *, family: str = "bert", seed: int = 5) -> Path:
    """Write a random teacher as a plain model folder without prompts."""
    source = write_tokenizer(folder.with_name(f"{folder.name}-tokenizer"), end=family != "bert")
    write_model(folder, model(student(family, seed=seed), source, prompts={}, end=family != "bert"))
    return folder


def sentence(topic: str, rng: np.random.Generator, length: int = 8) -> str:
    """A made-up sentence about a topic."""
    own = rng.choice(TOPICS[topic].split(), size=length - length // 3, replace=False)
    return " ".join(rng.permutation([*own, *rng.choice(COMMON, size=length // 3)]).tolist()) + "."


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines, compressed where the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_data(root: Path, *, seed: int = 0) -> Path:
    """Write a data folder with every kind of rows, and an evaluation set of each kind that the job
    scores.
    """
    rng, topics = np.random.default_rng(seed), list(TOPICS)

    def about(n: int) -> str:
        return sentence(topics[n % len(topics)], rng, 6 + n % 5)

    def pair(n: int) -> dict[str, Any]:
        positive = about(n)
        words = [word for word in positive.strip(".").split() if word not in COMMON]
        row: dict[str, Any] = {"query": f"what is {' '.join(words[:3])}?", "positive": positive}
        return row | ({"negatives": [about(n), about(n + 1)]} if n % 2 else {})

    def scored(n: int) -> dict[str, Any]:
        first = about(n)
        second = (
            first.replace("the", "a") + " old" if n % 3 == 0 else about(n if n % 3 == 1 else n + 3)
        )
        return {"text1": first, "text2": second, "score": (1.0, 0.5, 0.0)[n % 3]}

    def labelled(n: int) -> dict[str, Any]:
        return {"text": about(n), "label": topics[n % len(topics)]}

    write_jsonl(root / "pairs/qa.train.jsonl.gz", [pair(n) for n in range(48)])
    write_jsonl(root / "texts/lone.jsonl.gz", [{"text": about(n)} for n in range(40)])
    for split, count in (("train", 36), ("dev", 18), ("test", 24)):
        write_jsonl(root / f"scored/sts.{split}.jsonl.gz", [scored(n) for n in range(count)])
        write_jsonl(
            root / f"labelled/topics.{split}.jsonl.gz",
            [labelled(n) for n in range(64 if split == "train" else count)],
        )
    for name, count in (("qa", 20), ("qa-dev", 12)):
        rows = [pair(n) for n in range(count)]
        write_jsonl(
            root / f"retrieval/{name}/corpus.jsonl.gz",
            [{"_id": f"d{i}", "text": row["positive"]} for i, row in enumerate(rows)],
        )
        write_jsonl(
            root / f"retrieval/{name}/queries.jsonl.gz",
            [{"_id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)],
        )
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(count))]
        (root / f"retrieval/{name}/qrels.tsv.gz").write_bytes(
            gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
        )
    return root


def recipe(root: Path, teacher: Path, *, steps: int = 6) -> dict[str, Any]:
    """A recipe over the data folder that goes through every phase."""
    phase = {"steps": steps, "max_length": 32, "lr": 1e-3, "checkpoint_every": 3, "batch_size": 6}
    return {
        "name": "tiny",
        "seed": 3,
        "threads": 1,
        "data": {
            "root": str(root),
            "sources": {
                "qa": {"path": "pairs/qa.train.jsonl.gz", "kind": "pairs"},
                "lone": {"path": "texts/lone.jsonl.gz", "kind": "texts"},
                "sts": {"path": "scored/sts.train.jsonl.gz", "kind": "scored"},
                "topics": {"path": "labelled/topics.train.jsonl.gz", "kind": "labelled"},
            },
        },
        "teacher": {
            "model": str(teacher),
            "max_length": 32,
            "instructions": {"query": "query", "topic": "theme"},
        },
        "student": {"layers": [0], "max_length": 64, "matryoshka_dims": [8, 16]},
        "static": {"sources": {"lone": 1}, "steps": steps, "batch_size": 8},
        "stage1": {**phase, "sources": {"qa": 2, "lone": 1}},
        "adapters": {
            "retrieval": {
                **phase,
                "sources": {"qa": 1},
                "rank": 4,
                "alpha": 4,
                "negatives": 2,
                "false_negative_margin": 0.05,
            },
            "text-matching": {
                **phase,
                "sources": {"sts": 1, "qa": 1},
                "rank": 4,
                "alpha": 4,
                "negatives": 1,
            },
            "clustering": {**phase, "sources": {"topics": 1, "qa": 1}, "rank": 4, "alpha": 4},
            "classification": {
                **phase,
                "sources": {"topics": 1},
                "rank": 4,
                "alpha": 4,
                "negatives": 3,
                "batch_size": 4,
            },
        },
        "evaluation": {"dev": ["retrieval/qa-dev", "sts/sts"]},
    }


def parsed(raw: dict[str, Any]) -> Recipe:
    """Check a recipe."""
    return parse_recipe(raw)
