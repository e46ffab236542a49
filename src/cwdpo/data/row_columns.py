"""Columns that are called otherwise than in our own format: `data.columns`, and what it might be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cwdpo.data.row_values import RowError

__all__ = ["proposal", "renamed"]

_OFTEN: Mapping[str, Sequence[str]] = {
    name: often.split()
    for name, often in {
        "prompt": "prompt question query instruction input problem text messages",
        "images": "images image img picture pictures photo image_path img_path image_file pic",
        "chosen": "chosen better preferred good winner win y_w y_win positive pos correct best preferred_response "
        "answer response output completion",
        "rejected": "rejected worse dispreferred bad loser lose y_l y_lose negative neg wrong worst reject incorrect "
        "rejected_response",
    }.items()
}
"""What people call our columns, the likeliest first."""


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a row with columns called as readers expect.

    Args:
        row: As the file has it.
        columns: What each is called in the file.

    Raises:
        RowError: The row has no such column.
    """
    if not columns:
        return row
    for name, column in columns.items():
        if column not in row:
            raise RowError("missing column", f"'{column}' (data.columns.{name}) is not in the row")
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {name: row[column] for name, column in columns.items()}


def proposal(columns: Iterable[str]) -> str:
    """Return what `data.columns` might be for rows with these columns, as an error proposes it."""
    known = {column.lower(): column for column in columns}
    if {"completion", "label"} <= known.keys():
        return "set data.pair_unpaired: true, which makes pairs of answers marked good or bad"
    found = {name: next((known[c] for c in often if c in known), "…") for name, often in _OFTEN.items()}
    listed = ", ".join(f"{name}: {column}" for name, column in found.items() if column != name)
    return f"set data.columns: {{{listed}}}"
