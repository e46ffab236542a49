"""The table of methods."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.recipe import METHODS, Method, Stage1Section, Stage2Section

__all__ = ["method_rows", "methods_table"]


def method_rows() -> list[dict[str, str]]:
    """Return every method as what the table shows of it."""
    return [
        {
            "key": m.key,
            "name": m.name,
            "title": m.title,
            "formula": m.formula,
            "paper": m.paper + (f", arXiv:{m.arxiv}" if m.arxiv else ""),
            "settings": ", ".join(f"{name}={_default(m, name)}" for name in m.settings),
            "note": m.note,
        }
        for m in METHODS
    ]


def _default(method: Method, name: str) -> str:
    section = Stage1Section if method.key.startswith("stage1.") else Stage2Section
    value = method.defaults.get(name, section.model_fields[name].default)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def methods_table() -> None:
    """Print the methods, by the field of the recipe that asks for them."""
    console = Console(highlight=False)
    rows = method_rows()
    for key in dict.fromkeys(row["key"] for row in rows):
        table = Table(title=key, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in ("", "loss per response or pair, and where it is from", "settings with their defaults"):
            table.add_column(column, no_wrap=not column)
        for row in rows:
            if row["key"] == key:
                lines = [row["formula"], f"{row['title']}: {row['paper']}", *filter(None, [row["note"]])]
                table.add_row(Text(row["name"], style="bold"), "\n".join(lines), row["settings"])
        console.print(table)
    console.print("Δ = log π_θ − log π_ref summed over the response, m = β(Δ_w − Δ_l), ℓ̄ a mean per token, ")
    console.print("~ under the altered image, p = σ(m). Ask for one with --set stage2.objective=ipo.")
