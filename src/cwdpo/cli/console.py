"""How a run is shown in the terminal: steps, notes, progress bars, and a live panel of the probes while training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from cwdpo.probes.figures import BY_KIND, LOGGED, OVERALL, Figure
from cwdpo.run.progress import Reporter, TrainingFigures
from cwdpo.training.callbacks.throughput import shown

__all__ = ["RichReporter", "quiet_libraries"]


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

    On a terminal, what goes on is drawn below the lines that stay: a bar, or a panel of the stage that trains, for each
    run at work. Elsewhere there are plain lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._live: Live | None = None
        self._drawn: dict[str, RenderableType] = {}

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        """Show what one of several runs says."""
        show = {"step": self._step, "note": self._note, "progress": self._progress, "training": self._training}
        show[kind](run, *facts)

    def _step(self, run: str, name: str, text: str) -> None:
        self.console.print(f"[bold cyan]▸[/] {_of(run)}[bold]{escape(text)}[/]")

    def _note(self, run: str, text: str) -> None:
        self.console.print(f"  {_of(run)}[dim]{escape(text)}[/]")

    def _progress(self, run: str, text: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            if done >= total:
                self._note(run, f"{text}: {total}")
            return
        bar = ProgressBar(total=max(total, 1), completed=done, width=30)
        self._draw(run, Columns([f"  {_of(run)}{escape(text)}", bar, f"{done}/{total}"]) if done < total else None)

    def _training(self, run: str, figures: TrainingFigures | None) -> None:
        if not self.console.is_terminal:
            if figures is not None and figures.logged:
                self.console.print(
                    f"  {_of(run)}update {figures.step}/{figures.total}  {_losses(figures)}  {_rate(figures)}"
                )
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


def _of(run: str) -> str:
    return f"[cyan]{escape(run)}:[/] " if run else ""


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
    pace = shown(figures.logs)
    head = f"[cyan]{'━' * filled}[/][dim]{'━' * (30 - filled)}[/] {done}/{total}  {speed:.2f} updates/s  {left}"
    parts: list[RenderableType] = [head, _losses(figures), *([f"[dim]{pace}[/]"] if pace else [])]
    if figures.probe is not None:
        parts.append(_probe_table(figures.probe, figures.own))
    title = escape(f"{run} · {figures.title}" if run else figures.title)
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def _probe_table(row: Mapping[str, Any], own: Sequence[Figure]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    first = list(row["kinds"].values())
    names = ("logp_mean", "delta_start", "delta_last", "entropy", "top1", "cooling_weight")
    columns = [*(BY_KIND[name] for name in names), *(f for f in own if any(f.name in values for values in first))]
    table.add_column("held-out, per token")
    for figure in columns:
        table.add_column(escape(figure.short), justify="right")
    for kind, values in row["kinds"].items():
        cells = [f.text(values[f.name], signed="delta" in f.name) if f.name in values else "–" for f in columns]
        delta = values["delta_start"]
        if kind == "chosen" and abs(delta) > 0.05:
            cells[1] = f"[{'red' if delta < 0 else 'green'}]{cells[1]}[/]"
        table.add_row(escape(kind), *cells)
    shown = [OVERALL[name] for name in ("tv", "js", "ece")] + list(own)
    said = "   ".join(f"{f.short} {f.text(row[f.name])}" for f in shown if f.name in row)
    table.caption = escape(f"{said}   (update {row['step']})")
    table.caption_justify = "left"
    return table
