"""From the recipe's words to a teacher."""

from __future__ import annotations

from pathlib import Path

from taskdistill.device import resolve_device
from taskdistill.errors import BadInput
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.protocol import Teacher
from taskdistill.teacher.store import stores_of


def make_teacher(
    settings: TeacherConfig,
    *,
    api_key: str | None = None,
    threads: int | None = None,
    root: Path | None = None,
) -> Teacher:
    """Make the teacher that a recipe names.

    `api_key`: the key of an HTTP endpoint; the caller reads it from the environment. `root`: where
    its vectors are kept; with `dtype: auto` a local teacher goes on in the arithmetic of those that
    are there. Returns a teacher that is ready to embed; a local one reads its weights when it has
    to. Raises BadInput if the settings do not fit together or name nothing that can be read.
    """
    teacher = _make(settings, api_key, threads, root)
    if settings.embedding_dim is not None and teacher.embedding_dim not in (
        None,
        settings.embedding_dim,
    ):
        raise BadInput(
            f"teacher.embedding_dim is {settings.embedding_dim}, but {settings.model!r} has"
            f" {teacher.embedding_dim}; correct the recipe"
        )
    return teacher


def check_teacher(settings: TeacherConfig) -> None:
    """Check settings of a teacher that contradict each other.

    Raises BadInput if an address and the kind do not go together, or a local teacher's device is
    not here.
    """
    if (settings.url is not None) != (settings.kind == "http"):
        raise BadInput(
            f"teacher.kind is {settings.kind!r} and teacher.url is {settings.url!r}; an address"
            " goes with kind http, and only with it"
        )
    if settings.kind == "local":
        try:
            resolve_device(settings.device)
        except BadInput as error:
            raise BadInput(f"teacher.device: {error}") from None


def _make(
    settings: TeacherConfig, api_key: str | None, threads: int | None, root: Path | None
) -> Teacher:
    check_teacher(settings)
    if settings.kind == "http":
        from taskdistill.teacher.http import HttpTeacher

        if settings.api_key_env is not None and not api_key:
            raise BadInput(
                f"the environment variable {settings.api_key_env}, named by teacher.api_key_env, is"
                " not set; put the key there"
            )
        return HttpTeacher(
            url=str(settings.url),
            model=settings.model,
            revision=settings.revision,
            embedding_dim=settings.embedding_dim,
            api_key=api_key,
        )
    if settings.kind == "precomputed":
        from taskdistill.teacher.precomputed import PrecomputedTeacher

        return PrecomputedTeacher.load(Path(settings.model), revision=settings.revision)
    from taskdistill.teacher.local import load_local

    return load_local(
        settings.model,
        revision=settings.revision,
        max_length=settings.max_length,
        threads=threads,
        trust_remote_code=settings.trust_remote_code,
        device=settings.device,
        dtype=settings.dtype,
        batch_tokens=settings.batch_tokens,
        at_hand=lambda identity: (
            root is not None and bool(stores_of(root, identity, settings.instructions))
        ),
    )
