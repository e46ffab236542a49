"""Cooling weights (Eq. 6) of single prompts over a stage, read from what its probes kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cwdpo.report.values import as_list, as_map, number

__all__ = ["DIFFICULTIES", "ordered_prompts", "prompt_weights"]

DIFFICULTIES = ("easy", "medium", "hard")

_Rows = Sequence[Mapping[str, Any]]


def prompt_weights(rows: _Rows, kind: str) -> np.ndarray:
    """Return w_c of a kind of negative as `[readings, prompts]`.

    Args:
        rows: Readings of `probe_prompts.jsonl`; the first keeps the floor and τ.
        kind: Kind of response.

    Returns:
        NaN where a prompt has no such negative; no readings where the file lacks what is needed.
    """
    first = as_map(rows[0]) if rows else {}
    floor, tau = number(first, "floor"), number(first, "tau")
    if floor is None or tau is None or tau <= 0:
        return np.empty((0, 0))
    read = [[number(v) for v in as_list(row, "logp_mean", kind)] for row in rows]
    prompts = min(map(len, read))
    means = np.array([[np.nan if v is None else v for v in line[:prompts]] for line in read], dtype=float)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp((floor - means) / tau))


def ordered_prompts(rows: _Rows) -> tuple[int, int, int]:
    """Count the prompts whose weights stand as easy < medium < hard (the paper's Figure 6).

    Returns:
        At every reading after the start; at the last one; and how many prompts have all three kinds at every reading.
    """
    easy, medium, hard = (prompt_weights(rows, kind) for kind in DIFFICULTIES)
    prompts = min(table.shape[1] for table in (easy, medium, hard))
    easy, medium, hard = (table[:, :prompts] for table in (easy, medium, hard))
    if not prompts or len(easy) < 2:
        return 0, 0, 0
    known = np.isfinite(easy + medium + hard).all(0)
    ordered = ((easy < medium) & (medium < hard))[:, known]
    return int(ordered[1:].all(0).sum()), int(ordered[-1].sum()), int(known.sum())
