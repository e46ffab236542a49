"""What commands show in the terminal. Text is shown as it is, whatever markup or control characters are in it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cwdpo.errors import printable
from cwdpo.probes.figures import BY_KIND, LOGGED, OVERALL, Figure
from cwdpo.run.progress import Reporter, TrainingFigures
from cwdpo.training.callbacks.throughput import shown

__all__ = ["RichReporter", "quiet_libraries", "results", "styled", "table_of"]


class _PlainConsole(Console):
    """A console that takes no markup and shows no control characters; styles come with `styled`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text without style."""
        plain: dict[str, Any] = {**options, "markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable(text), **plain)


def results() -> Console:
    """Return the console of stdout; where that is no terminal, it is wide."""
    console = _PlainConsole()
    return console if console.is_terminal else _PlainConsole(width=160)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return text of parts, plain ones and pairs of text and style."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((printable(text), style) for text, style in pairs))


def table_of(title: str, *columns: str, style: str = "bold") -> Table:
    """Return a table without lines; columns whose heading begins with `>` are aligned to the right."""
    table = Table(title=title or None, title_justify="left", header_style=style, box=None, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right)
    return table


def quiet_libraries() -> None:
    """Silence the progress bars and notices of the libraries underneath; errors still show."""
    import warnings

    import datasets
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


class RichReporter(Reporter):
    """Writes to stderr, so that stdout holds results only.

    On a terminal, progress is drawn below the lines that stay: a bar, or a panel of the stage that trains, for each
    run at work. Elsewhere there are plain lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _PlainConsole(stderr=True, soft_wrap=not sys.stderr.isatty())
        self._live: Live | None = None
        self._drawn: dict[str, RenderableType] = {}

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Show what one of several runs says."""
        show = {"step": self._step, "note": self._note, "progress": self._progress, "training": self._training}
        show[kind](run, *facts)

    def _step(self, run: str, name: str, text: str) -> None:
        self.console.print(styled(("▸ ", "bold cyan"), _of(run), (text, "bold")))

    def _note(self, run: str, text: str) -> None:
        self.console.print(styled("  ", _of(run), (text, "dim")))

    def _progress(self, run: str, text: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            if done >= total:
                self._note(run, f"{text}: {total}")
            return
        bar = ProgressBar(total=max(total, 1), completed=done, width=30)
        self._draw(run, Columns([styled("  ", _of(run), text), bar, f"{done}/{total}"]) if done < total else None)

    def _training(self, run: str, figures: TrainingFigures | None) -> None:
        if not self.console.is_terminal:
            if figures is not None and figures.logged:
                now = f"update {figures.step}/{figures.total}  {_losses(figures)}  {_rate(figures)}"
                self.console.print(styled("  ", _of(run), now))
            return
        if figures is None and run in self._drawn:
            self.console.print(self._drawn[run])
        self._draw(run, None if figures is None else _panel(run, figures))

    def _draw(self, run: str, picture: RenderableType | None) -> None:
        if picture is None:
            self._drawn.pop(run, None)
        else:
            self._drawn[run] = picture
        if not self._drawn:
            self._end()
            return
        if self._live is None:
            self._live = Live(console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
        self._live.update(Group(*self._drawn.values()))

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(self, *_: object) -> None:
        """Take down what is drawn, so that an error's line stands alone."""
        self._drawn.clear()
        self._end()


def _of(run: str) -> tuple[str, str]:
    return f"{run}: " if run else "", "cyan"


def _losses(figures: TrainingFigures) -> str:
    return "  ".join(f"{f.short} {f.text(figures.logs[name])}" for name, f in LOGGED.items() if name in figures.logs)


def _rate(figures: TrainingFigures) -> str:
    """Return how fast training is, for a plain line."""
    rates = {f"speed/{unit}_per_second": unit for unit in ("pairs", "prompts")}
    return "".join(f"{figures.logs[name]:.3g} {unit}/s" for name, unit in rates.items() if name in figures.logs)


def _panel(run: str, figures: TrainingFigures) -> Panel:
    """Return how far, how fast, the loss, and what the probes say."""
    done, total, speed = figures.step, figures.total, figures.speed
    filled = int(30 * done / total)
    left = f"{(total - done) / speed:.0f} s left" if speed else ""
    pace, now = shown(figures.logs), f" {done}/{total}  {speed:.2f} updates/s  {left}"
    head = styled(("━" * filled, "cyan"), ("━" * (30 - filled), "dim"), now)
    parts: list[RenderableType] = [head, styled(_losses(figures)), *([styled((pace, "dim"))] if pace else [])]
    if figures.probe is not None:
        parts.append(_probe_table(figures.probe, figures.own))
    title = styled(f"{run} · {figures.title}" if run else figures.title)
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def _probe_table(row: Mapping[str, Any], own: Sequence[Figure]) -> Table:
    first = list(row["kinds"].values())
    names = ("logp_mean", "delta_start", "delta_last", "entropy", "top1", "cooling_weight")
    columns = [*(BY_KIND[name] for name in names), *(f for f in own if any(f.name in values for values in first))]
    table = table_of("", "held-out, per token", *(f">{figure.short}" for figure in columns), style="dim")
    for kind, values in row["kinds"].items():
        cells = [f.text(values[f.name], signed="delta" in f.name) if f.name in values else "–" for f in columns]
        delta, shown_cells = values["delta_start"], [styled(cell) for cell in cells]
        if kind == "chosen" and abs(delta) > 0.05:
            shown_cells[1].stylize(Style(color="red" if delta < 0 else "green"))
        table.add_row(styled(kind), *shown_cells)
    figures = [OVERALL[name] for name in ("tv", "js", "ece")] + list(own)
    said = "   ".join(f"{f.short} {f.text(row[f.name])}" for f in figures if f.name in row)
    table.caption, table.caption_justify = styled(f"{said}   (update {row['step']})"), "left"
    return table
