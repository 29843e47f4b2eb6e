"""A teacher of a recipe: where its vectors come from and what it is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from taskdistill.config import ConfigModel, Positive

SEARCH_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
TOPIC_INSTRUCTION = "Identify the topic or theme of the given document:"


class InstructionConfig(ConfigModel):
    """What the teacher is told, by view of a text; None means the raw text (section 4.1)."""

    query: str | None = SEARCH_INSTRUCTION
    document: str | None = None
    topic: str | None = TOPIC_INSTRUCTION
    template: str = Field(
        default="Instruct: {instruction}\nQuery:{text}",
        description="How an instruction and a text become one string",
    )

    @field_validator("template")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("the template has no {text}")
        return value


class TeacherConfig(ConfigModel):
    """The teacher: where its vectors come from and what it is told."""

    kind: Literal["local", "http", "precomputed"] = "local"
    model: str = Field(
        description=(
            "Folder or Hub id (local), model name (http), folder of vectors "
            "(precomputed); `all-MiniLM-L6-v2` is embedded"
        )
    )
    revision: str | None = Field(
        default=None, description="Revision; part of every key of the store"
    )
    url: str | None = Field(default=None, description="http: base URL up to and including /v1")
    api_key_env: str | None = Field(
        default=None, description="http: name of the environment variable that holds the key"
    )
    max_length: Positive = Field(
        default=256, description="Tokens of one text that the teacher sees"
    )
    embedding_dim: Positive | None = Field(
        default=None, description="Refuse vectors of another size; None takes what comes"
    )
    instructions: InstructionConfig | None = Field(
        description="What the teacher is told; null says that this teacher knows no instruction"
    )
    trained_on: list[str] | None = Field(
        default=None,
        description=(
            "Evaluation sets that the teacher is known to have seen, by name or pattern "
            "(sts/*); None: not declared"
        ),
    )
    store: str | None = Field(
        default=None,
        description="Folder of the teacher store; default: teacher-store beside the run folder",
    )
    trust_remote_code: bool = Field(
        default=False, description="local: let the model folder run its own code"
    )
    device: str = Field(
        default="auto",
        description=(
            "local: where it runs: auto (an accelerator if there is one) or any device of torch"
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description=(
            "local: arithmetic of its weights. auto: that of the store at hand; for a new "
            "store bfloat16 on an accelerator that "
            "computes in it, float32 elsewhere"
        ),
    )
    batch_tokens: Positive | None = Field(
        default=None, description="local: tokens of one batch; None: by the memory that is free"
    )
    licence: str | None = Field(
        default=None, description="Licence of the teacher, copied to the model card"
    )
