"""The modules of one folder as plug-ins, by name: the only place that imports what a name says."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Generic, TypeVar

from taskdistill.errors import BadInput, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins, each in a module of `package` under `attribute`.

    A plug-in's name is its file's, with hyphens for underscores. A module is imported when its
    plug-in is first asked for, so that listing names loads nothing.
    """

    def __init__(
        self, package: str, attribute: str, *, noun: str, plugin_type: type[T] | None = None
    ) -> None:
        """Name the folder; `noun` is what messages call a plug-in, such as `export format`."""
        self._package, self._attribute = package, attribute
        self._type, self._noun = plugin_type, noun

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names in alphabetical order, read from the folder without importing its modules."""
        paths = importlib.import_module(self._package).__path__
        return tuple(
            sorted(
                module.name.replace("_", "-")
                for module in pkgutil.iter_modules(paths)
                if not module.name.startswith("_")
            )
        )

    def module(self, name: str) -> ModuleType:
        """Import the module of a plug-in.

        Raises BadInput if there is no such name; it says the nearest one.
        """
        if name not in self.names:
            raise BadInput(f"unknown {self._noun} {name!r}{did_you_mean(name, self.names)}")
        return importlib.import_module(f"{self._package}.{name.replace('-', '_')}")

    def __getitem__(self, name: str) -> T:
        plugin: T = getattr(self.module(name), self._attribute)
        assert self._type is None or isinstance(plugin, self._type), f"{self._package}.{name}"
        return plugin

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def values(self) -> Iterator[T]:
        """Import and give every plug-in, in the order of names."""
        return (self[name] for name in self.names)
