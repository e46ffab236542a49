"""`cwdpo data`: the formats and public data sets that are read as they are."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cwdpo.data import Format

__all__ = ["data", "words"]


def data(
    name: Annotated[str | None, typer.Argument(help="One of them, by its name or its id on the hub.")] = None,
) -> None:
    """List the formats and public data sets that are read as they are; of one, what becomes of its columns."""
    from cwdpo.cli.terminal.console import results, styled, table_of
    from cwdpo.data import FORMATS

    console = results()
    if name is None:
        table = table_of("", "name", "what it is", "id on the hub", ">rows", "licence", "columns")
        for key, kind in FORMATS.all().items():
            facts = ("\n".join(kind.hub), kind.rows, kind.licence, ", ".join(kind.columns))
            table.add_row(styled((key, "bold")), words(kind), *facts)
        console.print(table)
        console.print("One of them: cwdpo data NAME. Other columns: data.columns, or a reader of your own.")
        return
    kind = next((kind for kind in FORMATS.all().values() if name in kind.hub), None) or FORMATS.find(name)
    facts = [*kind.hub, f"{kind.rows} rows" if kind.rows else "", f"licence {kind.licence}" if kind.licence else ""]
    console.print(styled((getattr(kind, "name", name), "bold"), f": {words(kind)}"))
    console.print(", ".join(filter(None, facts)))
    table = table_of("", "column", "what becomes of it")
    for column, becomes in kind.columns.items():
        table.add_row(styled((column, "bold")), becomes)
    console.print(table)


def words(kind: type[Format]) -> str:
    """Return what a format is, in one line."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]
