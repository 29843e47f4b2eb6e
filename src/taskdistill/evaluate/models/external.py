"""Any model as evaluation sees it: folders, sentence-transformers, endpoints, vectors on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import torch

from taskdistill.device import RuntimeOptions, dtype_name, placement
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, did_you_mean, require_extra
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.protocol import Embedder
from taskdistill.io.atomic import sha256_file
from taskdistill.io.sealed import hash_json, read_sealed, write_sealed
from taskdistill.model.backbone import read_json, resolve
from taskdistill.model.layout import MODULES, POOLING_NAMES
from taskdistill.tasks import Role, Task
from taskdistill.teacher.http import HttpTeacher
from taskdistill.teacher.keys import text_keys
from taskdistill.teacher.precomputed import PrecomputedTeacher
from taskdistill.teacher.protocol import slug
from taskdistill.types import MANIFEST

OPTIONS = {
    "folder": ("name", "adapters"),
    "endpoint": ("name", "model", "revision", "key_env", "query", "document", "tasks"),
    "vectors": ("name", "revision", "query", "document"),
}
"""What may follow the `#` of each kind of model, as `key=value` with `&` between and %-escapes."""

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wie wird das Wetter morgen?",
    "def add(a, b): return a + b",
)
SAME_MODEL_COSINE = 0.999
"""An endpoint whose vectors of the probes are at least this similar to earlier ones is taken for
the same model.
"""

_SENT_TASKS = {
    (Task.RETRIEVAL, Role.QUERY): "retrieval.query",
    (Task.RETRIEVAL, Role.DOCUMENT): "retrieval.passage",
}
_DECIDING = (".safetensors", ".bin", ".json", ".txt", ".model")
_QUERY_NAMES = ("query", "search_query", "queries", "s2p_query")
_DOCUMENT_NAMES = ("document", "passage", "search_document", "text")


@dataclass(frozen=True)
class ModelSpec:
    """What a person wrote for a model: where it is, and options after a `#`."""

    kind: str
    place: str
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name given, or the shortest one that the place suggests."""
        if "name" in self.options:
            return self.options["name"]
        if self.kind == "endpoint":
            return self.options["model"]
        path = Path(self.place)
        short = path.name if path.name != "model" else f"{path.parent.name}/model"
        return f"{short} without adapters" if self.options.get("adapters") == "off" else short


def parse_spec(text: str) -> ModelSpec:
    """Read what a person wrote for a model.

    That is a model folder, a Hub id or `all-MiniLM-L6-v2`; `http(s)://.../v1#model=NAME`; or a
    folder with vectors.npy or a .parquet file. Raises BadInput if an option is unknown or
    malformed, or an endpoint has no model.
    """
    place, _, option_text = text.partition("#") if not Path(text).exists() else (text, "", "")
    if place.startswith(("http://", "https://")):
        kind = "endpoint"
    elif place.endswith(".parquet") or (Path(place) / "vectors.npy").is_file():
        kind = "vectors"
    else:
        kind = "folder"
    options = {}
    for part in option_text.split("&") if option_text else []:
        key, sign, value = part.partition("=")
        if not sign or key not in OPTIONS[kind]:
            raise BadInput(
                f"model {text!r}: {part!r} is no option of a model of kind"
                f" {kind}{did_you_mean(key, OPTIONS[kind])}"
            )
        options[key] = unquote(value)
    if kind == "endpoint" and not options.get("model"):
        raise BadInput(
            f"model {text!r}: an endpoint serves many models; name one, such as {place}#model=NAME"
        )
    for key, allowed in (("adapters", ("on", "off")), ("tasks", ("yes", "no"))):
        if options.get(key, allowed[0]) not in allowed:
            raise BadInput(
                f"model {text!r}: {key} is {options[key]!r}; it must be {' or '.join(allowed)}"
            )
    return ModelSpec(kind, place, options)


def open_model(
    spec: ModelSpec,
    *,
    memory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    runtime: RuntimeOptions = RuntimeOptions(),
) -> Embedder:
    """Open any model for evaluation, under `spec.name`.

    `memory`: folder of what endpoints answered before, so that a changed model is noticed.
    `environment`: where `key_env` is looked up. `runtime`: of a local model. Raises BadInput if
    there is no such model, or it needs a package or key that is not there.
    """
    if spec.kind == "endpoint":
        key_name, key = spec.options.get("key_env"), None
        if key_name is not None:
            key = (environment or {}).get(key_name)
            if not key:
                raise BadInput(
                    f"the environment variable {key_name}, named by key_env, is not set; put the"
                    f" key of {spec.place} there"
                )
        teacher = HttpTeacher(
            url=spec.place,
            model=spec.options["model"],
            revision=spec.options.get("revision"),
            api_key=key,
        )
        return EndpointEmbedder(
            name=spec.name,
            teacher=teacher,
            prompts=_prompts(spec),
            sends_task=spec.options.get("tasks") == "yes",
            memory=memory,
        )
    if spec.kind == "vectors":
        vectors = PrecomputedTeacher.load(Path(spec.place), revision=spec.options.get("revision"))
        return VectorsEmbedder(spec.name, vectors, _prompts(spec))
    folder = resolve(spec.place)
    if _needs_sentence_transformers(folder):
        if "adapters" in spec.options:
            raise BadInput(
                f"model {spec.place}: `adapters` has no effect on a model without adapters;"
                " leave it out"
            )
        return SentenceTransformersEmbedder(spec.name, folder, runtime)
    encoder = Encoder.load(
        folder, threads=runtime.threads, device=runtime.device, dtype=runtime.dtype
    )
    if "adapters" in spec.options and not encoder.tasks:
        raise BadInput(
            f"model {spec.place}: `adapters` has no effect on a model without adapters; leave it"
            " out"
        )
    return EncoderEmbedder(encoder, name=spec.name, adapters=spec.options.get("adapters") != "off")


@dataclass(kw_only=True)
class EndpointEmbedder:
    """A model behind an OpenAI-shaped endpoint, which puts prompts before texts or is sent ours."""

    name: str
    teacher: HttpTeacher
    prompts: Mapping[str, str]
    sends_task: bool
    memory: Path | None
    _by_task: dict[str, HttpTeacher] = field(default_factory=dict)

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> np.ndarray:
        """Return float32 (n, dim) unit rows; the task is sent only where the endpoint takes one."""
        teacher = self.teacher
        if self.sends_task and task is not None:
            sent_task = _SENT_TASKS.get((Task(task), Role(prompt_name)), task)
            teacher = self._by_task.setdefault(
                sent_task, replace(teacher, extra={"task": sent_task})
            )
        return teacher.embed([self.prompts[prompt_name] + text for text in texts])

    def fingerprint(self) -> str:
        """Hash the model by its name and its answers; another answer is another model."""
        parts = [
            self.teacher.url,
            self.teacher.identity.fields(),
            dict(self.prompts),
            self.sends_task,
        ]
        known = hash_json(parts)
        vectors = self.encode(
            PROBES, task=Task.TEXT_MATCHING.value, prompt_name=Role.DOCUMENT.value
        )
        place = (
            self.memory / f"{slug(self.teacher.model)}-{known[:16]}.json"
            if self.memory is not None
            else None
        )
        before = (
            []
            if place is None or not place.is_file()
            else read_sealed(place, "remove it to take the endpoint for a new model")
        )
        before = before["answers"] if isinstance(before, dict) else before
        number = next(
            (i for i, stored in enumerate(before) if _same_vectors(stored, vectors)), len(before)
        )
        if number == len(before) and place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(place, {"answers": [*before, np.round(vectors.astype(float), 6).tolist()]})
        return hashlib.sha256(f"{known} {number}".encode()).hexdigest()


@dataclass
class VectorsEmbedder:
    """Vectors that are on disk already, found by text."""

    name: str
    vectors: PrecomputedTeacher
    prompts: Mapping[str, str]

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> np.ndarray:
        """Look float32 (n, dim) unit rows up; a text has one vector for all tasks.

        The prompt of the role, if the options have one, stands before each text on disk. Raises
        BadInput if a text has no vector.
        """
        read = [self.prompts[prompt_name] + text for text in texts]
        missing = [
            text
            for text, row in zip(read, self.vectors.index.rows(text_keys(read)), strict=True)
            if row < 0
        ]
        if missing:
            raise BadInput(
                f"{len(missing)} of {len(read)} texts have no vector in {self.vectors.path},"
                f" such as {missing[0][:80]!r}; "
                "`taskdistill evaluate --data DIR --write-texts FILE` writes all texts of the"
                " sets, so that they can be embedded"
            )
        return self.vectors.embed(read)

    def fingerprint(self) -> str:
        """Hash the vectors and prompts."""
        parts = [self.vectors.identity.fields(), dict(self.prompts)]
        return hash_json(parts)


class SentenceTransformersEmbedder:
    """A folder with modules that only sentence-transformers knows, such as Dense.

    No code of the folder runs.
    """

    def __init__(self, name: str, folder: Path, runtime: RuntimeOptions = RuntimeOptions()) -> None:
        """Load the model.

        Raises BadInput if sentence-transformers is not installed or cannot load the folder.
        """
        require_extra("sentence_transformers", "st", f"model {folder}")
        from sentence_transformers import SentenceTransformer

        place, self._dtype = runtime.resolve()
        self.name, self._folder = name, folder
        self.placement = placement(place, self._dtype)
        try:
            self._model = SentenceTransformer(
                str(folder), trust_remote_code=False, device=str(place)
            ).to(self._dtype)
        except Exception as error:
            raise BadInput(
                f"sentence-transformers cannot load {folder}: {type(error).__name__}: {error}"
            ) from None
        known = dict(self._model.prompts or {})
        names = {Role.QUERY.value: _QUERY_NAMES, Role.DOCUMENT.value: _DOCUMENT_NAMES}
        self.prompts = {
            role: next((known[each] for each in result if known.get(each)), "")
            for role, result in names.items()
        }

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> np.ndarray:
        """Return float32 (n, dim); the model has no adapters, so the task says nothing."""
        return np.asarray(
            self._model.encode(
                list(texts), prompt=self.prompts[prompt_name], show_progress_bar=False
            ),
            np.float32,
        )

    def fingerprint(self) -> str:
        """Hash the files of weights and settings, and the prompts."""
        files = sorted(
            path for path in self._folder.rglob("*") if path.suffix in _DECIDING and path.is_file()
        )
        parts: list[object] = [
            [path.relative_to(self._folder).as_posix(), sha256_file(path)] for path in files
        ]
        parts += [] if self._dtype is torch.float32 else [dtype_name(self._dtype)]
        return hash_json([parts, self.prompts])


def _same_vectors(stored: Sequence[Sequence[float]], vectors: np.ndarray) -> bool:
    return np.shape(stored) == vectors.shape and bool(
        (np.array(stored) * vectors).sum(axis=1).min() >= SAME_MODEL_COSINE
    )


def _prompts(spec: ModelSpec) -> dict[str, str]:
    return {role.value: spec.options.get(role.value, "") for role in Role}


def _needs_sentence_transformers(folder: Path) -> bool:
    """Tell whether a folder has modules or poolings that our reader does not know."""
    path = folder / "modules.json"
    if (folder / MANIFEST).is_file() or not path.is_file():
        return False
    try:
        types = [str(each["type"]) for each in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    if not all(each.startswith("sentence_transformers.") for each in types):
        return False
    kinds = [each.rsplit(".", 1)[-1] for each in types]
    if not set(kinds) <= MODULES.keys():
        return True
    if "Pooling" not in kinds or not (folder / "1_Pooling" / "config.json").is_file():
        return False
    pooling_config = read_json(folder / "1_Pooling" / "config.json")
    names = [
        key.removeprefix("pooling_mode_")
        for key, value in pooling_config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = (
        [pooling_config["pooling_mode"]]
        if "pooling_mode" in pooling_config
        else [each.removesuffix("_tokens").removesuffix("_token") for each in names]
    )
    return len(modes) != 1 or modes[0] not in POOLING_NAMES
