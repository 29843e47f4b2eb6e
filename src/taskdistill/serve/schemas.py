"""The fields of requests, and how their texts, task and model are read."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.serve.errors import ApiError
from taskdistill.tasks import Role, Task

Kind = Literal["float", "base64", "binary", "ubinary", "int8"]
"""How a vector is sent; binary and ubinary are packed sign bits as signed and unsigned bytes."""

MOST_ITEMS = 100
"""Most items of a field that is no list of texts; each would be checked and complained about."""

JINA_TASKS = {
    "retrieval.query": (Task.RETRIEVAL, Role.QUERY),
    "retrieval.passage": (Task.RETRIEVAL, Role.DOCUMENT),
    "separation": (Task.CLUSTERING, None),
}
"""Task names of Jina's API that are not names of tasks here, with the prompt that they imply."""

_STRING_OR_LIST: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "properties": {"text": {"type": "string"}}},
                ]
            },
        },
    ]
}


class RequestBody(BaseModel):
    """Strict fields, none unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmbeddingRequest(RequestBody):
    """POST /v1/embeddings: OpenAI's fields and Jina's."""

    input: Any = Field(
        description="A text, or a list of texts or of {'text': text}",
        json_schema_extra=_STRING_OR_LIST,
    )
    model: str | None = Field(
        None, description="Name of the model served; another name is an error"
    )
    task: str | None = Field(
        None,
        description=(
            "retrieval.query, retrieval.passage, a task of the model, or nothing for the base"
        ),
    )
    prompt_name: str | None = Field(
        None, description="Prompt put before each text: query or document; document if not given"
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep only the first numbers of each vector"
    )
    encoding_format: Kind | None = Field(None, description="OpenAI's name of embedding_type")
    embedding_type: Kind | list[Kind] | None = Field(
        None, description="float if not given; a list gives several of each vector"
    )
    late_chunking: bool = Field(
        False,
        description="Read all texts as one document, so that each one's vector has seen the others",
    )
    truncate: bool = Field(
        False, description="Whether the end of a text too long is cut off; otherwise it is an error"
    )
    normalized: bool = Field(True, description="Whether vectors have length one")
    user: str | None = Field(None, description="Accepted and not used")

    def kinds(self) -> list[Kind]:
        """Return how each vector is sent; `embedding_type` goes before `encoding_format`, which
        OpenAI's client sets by itself.
        """
        if isinstance(self.embedding_type, list):
            if not self.embedding_type or len(set(self.embedding_type)) < len(self.embedding_type):
                raise ApiError(
                    400,
                    "embedding_type is an empty list or names a type twice",
                    param="embedding_type",
                )
            return self.embedding_type
        return [self.embedding_type or self.encoding_format or "float"]


class TeiRequest(RequestBody):
    """POST /embed: the fields of text-embeddings-inference."""

    inputs: Any = Field(description="A text or a list of texts", json_schema_extra=_STRING_OR_LIST)
    truncate: bool = Field(
        False, description="Whether the end of a text too long is cut off; otherwise it is an error"
    )
    normalize: bool = Field(True, description="Whether vectors have length one")
    prompt_name: str | None = Field(
        None, description="Prompt put before each text: query or document; document if not given"
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep only the first numbers of each vector"
    )
    task: str | None = Field(
        None, description="As in /v1/embeddings; not a field of text-embeddings-inference"
    )


AnyBody = TypeVar("AnyBody", bound=RequestBody)


def parse(model: type[AnyBody], value: dict[str, Any]) -> AnyBody:
    """Check the fields of a request.

    Raises ApiError 400 naming the first field at fault, without its value.
    """
    unknown = next((name for name in value if name not in model.model_fields), None)
    if unknown is not None:
        raise _unknown_field(model, unknown)
    for name, each in value.items():
        if (
            isinstance(each, str)
            and model.model_fields[name].annotation is not Any
            and not _is_unicode(each)
        ):
            raise ApiError(
                400, f"{name} holds half of a surrogate pair; send valid Unicode", param=name
            )
        if (
            isinstance(each, list | dict)
            and len(each) > MOST_ITEMS
            and model.model_fields[name].annotation is not Any
        ):
            raise ApiError(
                400, f"{name} has {len(each):,} items, which is more than it can mean", param=name
            )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing":
            raise ApiError(
                400, f"the field {name!r} is missing", param=name, code="missing_field"
            ) from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ApiError(
            400, f"{name}: {message}, got {type(first['input']).__name__}", param=name
        ) from None


def _unknown_field(model: type[RequestBody], name: str) -> ApiError:
    return ApiError(
        400,
        f"unknown field {name[:60]!r}{did_you_mean(name[:60], model.model_fields)}",
        param=name[:60],
        code="unknown_field",
    )


def texts_of(value: Any, field: str, limit: int) -> list[str]:
    """Read the texts of a request.

    `value`: a string, or a list of strings or of `{"text": string}`. `limit`: most texts of a
    request. Returns the texts, at least one, none empty. Raises ApiError 400 or 413, naming the
    field and the place but not the text.
    """
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ApiError(
            400,
            f"{field} is an empty list; give at least one text",
            param=field,
            code="empty_input",
        )
    if len(items) > limit:
        raise ApiError(
            413,
            f"{field} has {len(items):,} items, the limit is {limit:,} a request; send several"
            " requests",
            param=field,
        )
    if all(isinstance(item, int) for item in items) or all(
        isinstance(item, list) for item in items
    ):
        raise ApiError(
            400,
            f"{field} holds token ids, which may come from another model's tokenizer; send strings "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param=field,
            code="token_input",
        )
    texts = []
    for place, item in enumerate(items):
        where = f"{field}[{place}]" if isinstance(value, list) else field
        if isinstance(item, dict) and set(item) == {"text"}:
            item = item["text"]
        if not isinstance(item, str):
            raise ApiError(
                400, f"{where} is a JSON {type(item).__name__}; give a string", param=field
            )
        if not item:
            raise ApiError(
                400,
                f"{where} is an empty string; leave empty texts out",
                param=field,
                code="empty_input",
            )
        if not _is_unicode(item):
            raise ApiError(
                400, f"{where} holds half of a surrogate pair; send valid Unicode", param=field
            )
        texts.append(item)
    return texts


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_task(task: str | None, prompt_name: str | None) -> tuple[str | None, str | None]:
    """Resolve Jina's task names.

    `task`: a task of the model or a name of Jina's API. Raises BadInput if the task implies another
    prompt.
    """
    if task not in JINA_TASKS:
        return task, prompt_name
    adapter, implied = JINA_TASKS[task]
    if implied is not None and prompt_name not in (None, implied):
        raise BadInput(
            f"task {task!r} means the prompt {implied.value!r}, but prompt_name is"
            f" {prompt_name!r}; give one of the two"
        )
    return adapter, implied or prompt_name
