"""The student of a recipe: where it starts from, its vocabulary, and what its vectors look like."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from taskdistill.config import ConfigModel, Positive
from taskdistill.tasks import PROMPTS
from taskdistill.types import Pooling


class StaticVocabConfig(ConfigModel):
    """A vocabulary of its own for the instant student, learned from texts.

    Pieces of a unigram model, without case.
    """

    size: int = Field(
        ge=100, le=500_000, description="Pieces, at most; each is one row of the token table"
    )
    sources: list[str] | None = Field(
        default=None,
        description="Sources whose texts are counted; None: those that the table learns from",
    )
    texts: Positive = Field(
        default=400_000, description="At most this many texts are counted, drawn by the seed"
    )


class StudentVocabConfig(ConfigModel):
    """A vocabulary of its own for the student, learned from the texts of stage 1.

    Its token table is mixed from the initial model's.
    """

    size: int = Field(
        ge=100,
        le=500_000,
        description="Pieces that are learned, at most; each is one row of the token table",
    )
    keep_words: bool = Field(
        default=True,
        description=(
            "Add the whole words of the initial vocabulary, so that its language and "
            "names stay whole"
        ),
    )
    texts: Positive = Field(
        default=400_000, description="At most this many texts are counted, drawn by the seed"
    )
    pairs: Positive = Field(
        default=400_000,
        description="At most this many pairs of texts are aligned, drawn by the seed",
    )


class StudentConfig(ConfigModel):
    """The student: where it starts from and what its vectors look like."""

    init: str = Field(
        default="teacher",
        description=(
            "`teacher`, or a model folder, Hub id, or `config` to build from `config` at random"
        ),
    )
    layers: list[int] | None = Field(
        default=None, description="Layers of the initial model to keep, in order; None keeps all"
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="With init: config, the backbone's configuration with its model_type",
    )
    tokenizer: str | None = Field(
        default=None, description="Tokenizer folder; default: the initial model's"
    )
    vocabulary: StudentVocabConfig | None = Field(
        default=None,
        description=(
            "Learn a vocabulary from the texts of stage 1, for languages that the initial "
            "one does not know"
        ),
    )
    pooling: Pooling | None = Field(
        default=None, description="last, mean or cls; default: the initial model's"
    )
    end_token: str | None = Field(
        default="auto",
        description=(
            "Token appended to every text. auto: with last pooling, a tokenizer that ends "
            "no text with a special token "
            "appends its own end-of-sequence token; null: never"
        ),
    )
    max_length: Positive = Field(default=512, description="Tokens of one text at inference")
    rope_theta: float | None = Field(
        default=None, gt=0, description="RoPE theta at inference; None keeps the backbone's"
    )
    matryoshka_dims: list[Positive] = Field(
        description="Prefix sizes trained for; the full size is always among them"
    )
    prompts: dict[str, str] = Field(default_factory=lambda: dict(PROMPTS))
    binary_offsets: bool = Field(
        default=False,
        description=(
            "Store the mean vector of queries and of documents, for each task and size, "
            "and take it from vectors before their signs"
        ),
    )
    trust_remote_code: bool = False
    licence: str | None = Field(
        default=None, description="Licence of the initial model, copied to the model card"
    )

    @model_validator(mode="after")
    def _config_with_init(self) -> StudentConfig:
        if (self.init == "config") != (self.config is not None):
            raise ValueError("`init: config` and `config: {...}` go together")
        if self.vocabulary is not None and (self.tokenizer is not None or self.init == "config"):
            other = "tokenizer" if self.tokenizer is not None else "init: config"
            raise ValueError(
                "`vocabulary` replaces that of a trained initial model and does not go with "
                f"`{other}`; leave one out"
            )
        return self
