"""What can be chosen by name: a file of ours, a class or function in the user's own file, or an installed package's.

A choice is one file. `dpo` is `cwdpo/methods/dpo.py`; `my_losses.py:MyLoss` is a class in the user's file, looked for
from the current directory; a package offers its own by an entry point in the group `cwdpo.methods`. Nothing lists the
choices a second time.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from cwdpo.errors import RecipeError, one_line
from cwdpo.files import file_digest

__all__ = ["Registry", "user_file", "without_user_files"]

_LOADS_FILES = ContextVar("loads_files", default=True)

T = TypeVar("T")


class Registry(Generic[T]):
    """The choices of one kind.

    Args:
        kind: What an error calls one of them: "method".
        package: The package whose modules are our choices; also the group of entry points.
        base: What every choice is a subclass of.
        adapt: Turns a user's function into a choice; None where functions are no choices.
    """

    def __init__(
        self, kind: str, package: str, base: type[T], adapt: Callable[[Callable[..., Any]], type[T]] | None = None
    ) -> None:
        self.kind, self._package, self._base, self._adapt = kind, package, base, adapt

    def find(self, name: str) -> type[T]:
        """Return the choice of this name. Imports its module only.

        Raises:
            RecipeError: There is none, or the user's file does not give one.
        """
        if (asked := user_file(name)) is not None:
            return self._from_file(*asked)
        if (choice := self.installed(name)) is not None:
            return choice
        close = difflib.get_close_matches(name, self.names(), n=1)
        known = f"known: {', '.join(self.names())}; " if self.names() else ""
        hint = f"did you mean {close[0]}? " if close else known
        raise RecipeError(f"{name}: no such {self.kind}; {hint}a file of yours is written as my_file.py:Name")

    def installed(self, name: str) -> type[T] | None:
        """Return the choice of this name among ours and those of installed packages; runs no file of a user's."""
        if name in self._modules and (choice := self._in_module(name)) is not None:
            return choice
        if name in self._offered:
            return self._checked(self._offered[name].load(), f"entry point {name}")
        return None

    def make(self, asked: Iterable[str | Mapping[str, Mapping[str, Any]]], where: str) -> list[T]:
        """Return choices with their settings.

        Args:
            asked: Names, or `{name: {setting: value}}`.
            where: The key or option that lists them, for errors.

        Raises:
            RecipeError: One is unknown, or has other settings.
        """
        made: list[T] = []
        for item in asked:
            for name, settings in ({item: {}} if isinstance(item, str) else item).items():
                try:
                    choice = self.find(name)
                except RecipeError as error:
                    raise RecipeError(f"{where}: {error}") from None
                try:
                    made.append(choice(**settings))
                except ValidationError as error:
                    first = error.errors()[0]
                    fields = ", ".join(getattr(choice, "model_fields", {})) or "none"
                    raise RecipeError(
                        f"{where}: {name}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}; its settings: {fields}"
                    ) from None
        return made

    def names(self) -> list[str]:
        """Return the names of our choices and those of installed packages, sorted. Imports all of ours."""
        ours = [name for name in self._modules if self._in_module(name) is not None]
        return sorted({*ours, *self._offered})

    def all(self) -> dict[str, type[T]]:
        """Return every choice by name."""
        return {name: self.find(name) for name in self.names()}

    @cached_property
    def _modules(self) -> set[str]:
        package = importlib.import_module(self._package)
        return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._package)}

    def _in_module(self, name: str) -> type[T] | None:
        """Return the class of a module that bears the module's name as its own, if there is one."""
        module = importlib.import_module(f"{self._package}.{name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, self._base) and value.__dict__.get("name") == name:
                return value
        return None

    def _from_file(self, path: Path, attribute: str) -> type[T]:
        if not _LOADS_FILES.get():
            raise RecipeError(f"{path}:{attribute}: is not run, for the user has not named it")
        module = _load(path)
        if not hasattr(module, attribute):
            raise RecipeError(f"{path}: defines no {attribute}; write {path.name}:Name with a name that it defines")
        return self._checked(getattr(module, attribute), f"{path}:{attribute}")

    def _checked(self, value: Any, where: str) -> type[T]:
        if isinstance(value, type) and issubclass(value, self._base):
            return value
        if self._adapt is not None and callable(value) and not isinstance(value, type):
            return self._adapt(value)
        also = ", or a function" if self._adapt is not None else ""
        base = f"{self._base.__module__}.{self._base.__qualname__}"
        raise RecipeError(f"{where}: is no {self.kind}; it must be a subclass of {base}{also}")


@contextmanager
def without_user_files() -> Generator[None]:
    """Run no file that is named within the block: a recipe that lies in a run directory may be a stranger's.

    `find` raises `RecipeError` for such a name.
    """
    before = _LOADS_FILES.set(False)
    try:
        yield
    finally:
        _LOADS_FILES.reset(before)


def user_file(name: str) -> tuple[Path, str] | None:
    """Return path and attribute of `my_file.py:Name`, or None where a name is not of that form."""
    path, colon, attribute = name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") and attribute.isidentifier() else None


def _load(path: Path) -> ModuleType:
    """Import a user's file, once for each content.

    Raises:
        RecipeError: It is not there, or raises while it is imported.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; a path is looked for from the current directory ({Path.cwd()})")
    name = f"cwdpo_user_{path.stem}_{file_digest(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(f"{path}: cannot be imported: {type(error).__name__}: {one_line(error, 200)}") from error
    return module
