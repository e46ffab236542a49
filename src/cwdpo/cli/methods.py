"""`cwdpo methods`: the losses of both stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from cwdpo.methods.base import Method

__all__ = ["method_rows", "methods"]


def methods(
    own: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE:CLASS]...", help="Methods of your own: my_losses.py:MyLoss.")
    ] = None,
) -> None:
    """List the losses of both stages, by what they read: formula, paper, settings with their defaults."""
    from cwdpo.cli.terminal.console import results, styled, table_of

    console, rows = results(), method_rows(own or ())
    for key in dict.fromkeys(row["key"] for row in rows):
        table = table_of(key, "", "loss per response or pair, and where it is from", "settings with their defaults")
        for row in rows:
            if row["key"] == key:
                source = ": ".join(filter(None, [row["title"], row["paper"]]))
                lines = [row["formula"], source, *filter(None, [row["note"]])]
                table.add_row(styled((row["name"], "bold")), "\n".join(lines), row["settings"])
        console.print(table)
    console.print("Δ = log π_θ − log π_ref summed over the response, r = βΔ, m = r_w − r_l, ℓ̄ a mean per token, ")
    console.print("~ under the altered image, p = σ(m). Choose one with --set stage2.objective=ipo.")


def method_rows(own: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return every method as what the table shows of it, and every regularizer of SFT-C.

    Args:
        own: Methods of the user's files, shown behind ours.

    Raises:
        RecipeError: There is no such file or class.
    """
    from cwdpo.methods.base import METHODS

    rows: list[dict[str, str]] = []
    known = sorted(METHODS.all().values(), key=lambda m: (m.stage, m.on_policy, _reads(m)))
    for method in sorted([*known, *map(METHODS.find, own)], key=lambda m: m.stage):
        rows.append(_row(f"{method.stage}.objective{_reads(method)}", method))
        if method.name == "sft_c":
            rows += _regularizers(method)
    return rows


def _reads(method: type[Method]) -> str:
    """Return what a method of Stage 2 reads beside its responses."""
    if method.stage == "stage1":
        return ""
    if method.on_policy:
        return ", on responses that the policy samples"
    needs = method().needs
    if needs.image:
        return ", with a second image"
    return "" if needs.reference else ", without a reference"


def _row(key: str, method: type[Method]) -> dict[str, str]:
    return {
        "key": key,
        "name": method.name,
        "title": method.title,
        "formula": method.formula,
        "paper": _paper(method.paper, method.arxiv),
        "settings": ", ".join(f"{name}={_default(field)}" for name, field in method.model_fields.items()),
        "note": method.note,
    }


def _regularizers(method: type[Method]) -> list[dict[str, str]]:
    from cwdpo.methods.sft_c import REGULARIZERS

    return [
        {
            "key": "stage1.regularizer",
            "name": name,
            "title": f"SFT-C with {name.replace('_', ' ')}",
            "formula": r.formula,
            "paper": _paper(r.paper, r.arxiv),
            "settings": ", ".join(f"{field}={_default(method.model_fields[field])}" for field in r.settings),
            "note": "",
        }
        for name, r in REGULARIZERS.items()
    ]


def _paper(paper: str, arxiv: str) -> str:
    return paper + (f", arXiv:{arxiv}" if arxiv else "")


def _default(field: FieldInfo) -> str:
    value = field.default
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
