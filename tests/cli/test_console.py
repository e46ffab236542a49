"""What a run looks like: plain lines where output is kept, a panel on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cwdpo.cli.terminal.console import RichReporter
from cwdpo.run.progress import TrainingFigures

SPEED = {"speed/pairs_per_second": 12.0, "speed/tokens_per_second": 4000.0}


def figures(step: int, **changes: Any) -> TrainingFigures:
    logs = {"loss": 0.6931, **SPEED} if step % 10 == 0 else {}
    return TrainingFigures("stage2 · cw_dpo", step, 20, 2.0, logs, logged=bool(logs), **changes)


def reporter(terminal: bool) -> tuple[RichReporter, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=110, color_system=None, highlight=False)
    return RichReporter(console), out


def test_plain_lines_hold_one_line_a_logged_update() -> None:
    shown, out = reporter(terminal=False)
    with shown:
        shown.step("stage2", "Stage 2: cw_dpo on 8 prompts")
        shown.progress("captions", 3, 8)
        shown.progress("captions", 8, 8)
        for step in (9, 10):
            shown.training(figures(step, probe=None))
        shown.training(None)
        shown.beside("b[0]", "note", "saved")
    assert out.getvalue().splitlines() == [
        "▸ Stage 2: cw_dpo on 8 prompts",
        "  captions: 8",
        "  update 10/20  loss 0.693  12 pairs/s",
        "  b[0]: saved",
    ]


def test_an_error_takes_down_what_was_drawn() -> None:
    shown, out = reporter(terminal=True)
    with pytest.raises(ValueError, match="stop"), shown:
        shown.progress("captions", 1, 8)
        raise ValueError("stop")
    before = out.getvalue()
    shown.note("after")
    assert out.getvalue()[len(before) :].strip() == "after"
