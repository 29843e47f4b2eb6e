"""From the recipe's words to a teacher."""

from __future__ import annotations

from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.recipe import TeacherSettings
from taskdistill.teacher.protocol import Teacher


def make_teacher(settings: TeacherSettings, *, api_key: str | None = None, threads: int | None = None) -> Teacher:
    """Make the teacher that a recipe names.

    Args:
        settings: The recipe's teacher.
        api_key: The key of an HTTP endpoint; the caller reads it from the environment.
        threads: Worker threads of a local model.

    Returns:
        A teacher that is ready to embed.

    Raises:
        BadInput: If the settings do not fit together or name nothing that can be read.
    """
    teacher = _make(settings, api_key, threads)
    if settings.embedding_dim is not None and teacher.embedding_dim not in (None, settings.embedding_dim):
        raise BadInput(
            f"teacher.embedding_dim is {settings.embedding_dim}, but {settings.model!r} has {teacher.embedding_dim}; correct the recipe"
        )
    return teacher


def check_teacher(settings: TeacherSettings) -> None:
    """Check settings of a teacher that contradict each other.

    Args:
        settings: The teacher.

    Raises:
        BadInput: If an address and the kind do not go together.
    """
    if (settings.url is not None) != (settings.kind == "http"):
        raise BadInput(
            f"teacher.kind is {settings.kind!r} and teacher.url is {settings.url!r}; an address goes with kind http, and only with it"
        )


def _make(settings: TeacherSettings, api_key: str | None, threads: int | None) -> Teacher:
    check_teacher(settings)
    if settings.kind == "http":
        from taskdistill.teacher.http import HttpTeacher

        if settings.api_key_env is not None and not api_key:
            raise BadInput(f"the environment variable {settings.api_key_env}, named by teacher.api_key_env, is not set; put the key there")
        return HttpTeacher(str(settings.url), settings.model, settings.revision, settings.embedding_dim, api_key)
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
    )
