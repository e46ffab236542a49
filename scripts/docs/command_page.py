"""Every command with its arguments and options, read from the functions that typer makes commands of."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union

import typer
from cells import row
from typer.models import ArgumentInfo

from cwdpo.cli.app import app


def command_page() -> str:
    """Return the page: a heading a command."""
    lines = ["# Command line", "", "What `cwdpo COMMAND --help` says, of every command, made from the same source.", ""]
    for name, function in commands().items():
        lines += [f"## {name}", "", *_help(inspect.getdoc(function) or ""), ""]
        if rows := list(_rows(function)):
            lines += ["| option | default | what it is |", "|---|---|---|"]
            lines += map(row, rows)
            lines.append("")
    return "\n".join(lines)


def commands() -> dict[str, Callable[..., Any]]:
    """Return the functions behind the commands, by the commands' names; names of one function stand together."""
    names: dict[Callable[..., Any], list[str]] = {}
    for prefix, typed in [("", app), *((f"{g.name} ", g.typer_instance) for g in app.registered_groups)]:
        for info in typed.registered_commands if typed is not None else ():
            if info.callback is not None and not info.hidden:
                name = info.name or info.callback.__name__.replace("_", "-")
                shared = names.setdefault(info.callback, [])
                shared.append(name if shared else prefix + name)
    return {" · ".join(several): function for function, several in names.items()}


def _help(text: str) -> list[str]:
    """Return a help text as Markdown: what is bold in it and stands on a line of its own is a command."""
    text = re.sub(r"^\[bold\](.*)\[/\]$", r"```bash\n\1\n```", text, flags=re.MULTILINE)
    return re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", text).splitlines()


def _rows(function: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and description of what a command takes."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is typer.Context:
            continue
        kind, info = typing.get_args(hints[name])
        if isinstance(info, ArgumentInfo):
            shown = f"`{name.upper()}`" + (" …" if typing.get_origin(kind) is list else "")
        else:
            first = (info.default,) if isinstance(info.default, str) else ()  # under Annotated, typer's first name
            names = (*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",)
            shown = " ".join(f"`{option}`" for option in names)
        default, said = parameter.default, " ".join((info.help or "").split())
        if values := _choices(kind):
            said += " One of " + ", ".join(f"`{value}`" for value in values) + "."
        value = getattr(default, "value", default)
        given = "" if default is None or default is False else f"`{value}`"
        yield shown, "required" if default is inspect.Parameter.empty else given, said


def _choices(kind: Any) -> list[str]:
    """Return the values that a type allows, where they are a few names."""
    if typing.get_origin(kind) is Literal:
        return [str(value) for value in typing.get_args(kind)]
    if typing.get_origin(kind) in (Union, types.UnionType, list):
        return [value for option in typing.get_args(kind) for value in _choices(option)]
    return [str(item.value) for item in kind] if isinstance(kind, type) and issubclass(kind, enum.Enum) else []
