"""How a run is shown in the terminal: steps, notes, progress bars, and a live panel of the probes while training."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from cwdpo.training.callbacks import ProbeCallback
from cwdpo.training.throughput import shown

__all__ = ["RichReporter", "TrainingPanel", "quiet_libraries"]


def quiet_libraries() -> None:
    """Silence the progress bars and notices of the libraries underneath; errors still show."""
    import warnings

    import datasets
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


class RichReporter:
    """Writes to stderr, so that stdout holds results only."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._progress: Progress | None = None
        self._task: Any = None
        self._text = ""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        self.console.print(f"[bold cyan]▸[/] [bold]{text}[/]")

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        self.console.print(f"  [dim]{text}[/]")

    def progress(self, text: str, done: int, total: int) -> None:
        """Move a bar; on a terminal that cannot draw, say it at the end."""
        if not self.console.is_terminal:
            if done >= total:
                self.note(f"{text}: {total}")
            return
        if self._progress is None or text != self._text:
            self._end_progress()
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task, self._text = self._progress.add_task(text, total=total), text
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._end_progress()

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(self, *_: object) -> None:
        """Take down what is drawn, so that an error's line stands alone."""
        self._end_progress()

    def training(self, title: str, probes: ProbeCallback | None) -> list[TrainerCallback]:
        """Return the panel of a stage."""
        return [TrainingPanel(self.console, title, probes)]


class TrainingPanel(TrainerCallback):
    """A live panel: how far, how fast, the loss, and what the probes say. Plain lines where nothing can be drawn."""

    def __init__(self, console: Console, title: str, probes: ProbeCallback | None) -> None:
        self.console, self.title, self.probes = console, title, probes
        self._live: Live | None = None
        self._logs: dict[str, float] = {}
        self._began = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the panel."""
        self._began, self._first = time.monotonic(), state.global_step
        if self.console.is_terminal:
            self._live = Live(self._draw(state), console=self.console, refresh_per_second=4)
            self._live.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take up new figures."""
        logs = logs or {}
        self._logs.update({k: v for k, v in logs.items() if isinstance(v, int | float)})
        if self._live is not None:
            self._live.update(self._draw(state))
        elif "loss" in logs:
            self.console.print(f"  update {state.global_step}/{state.max_steps}  {self._figures()}  {self._rate()}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last picture standing."""
        self.close(state)

    def close(self, state: Any = None) -> None:
        """Close the panel."""
        if self._live is not None:
            if state is not None:
                self._live.update(self._draw(state))
            self._live.stop()
            self._live = None

    def _figures(self) -> str:
        names = {
            "loss": "loss",
            "grad_norm": "grad",
            "rewards/margins": "margin",
            "rewards/accuracies": "acc",
            "cooling/weight": "w_c",
            "nll/chosen": "nll+",
            "nll/rejected": "nll-",
        }
        return "  ".join(f"{short} {self._logs[name]:.3f}" for name, short in names.items() if name in self._logs)

    def _rate(self) -> str:
        """Return how fast training is, for a plain line."""
        rates = {f"speed/{unit}_per_second": unit for unit in ("pairs", "prompts")}
        return "".join(f"{self._logs[name]:.3g} {unit}/s" for name, unit in rates.items() if name in self._logs)

    def _draw(self, state: Any) -> RenderableType:
        done, total = state.global_step, max(state.max_steps, 1)
        seconds = time.monotonic() - self._began
        speed = (done - self._first) / seconds if seconds > 0 and done > self._first else 0.0
        left = f"{(total - done) / speed:.0f} s left" if speed else ""
        filled = int(30 * done / total)
        pace = shown(self._logs)
        head = f"[cyan]{'━' * filled}[/][dim]{'━' * (30 - filled)}[/] {done}/{total}  {speed:.2f} updates/s  {left}"
        parts: list[RenderableType] = [head, self._figures(), *([f"[dim]{pace}[/]"] if pace else [])]
        if self.probes is not None and self.probes.rows:
            parts.append(_probe_table(self.probes.rows[-1]))
        return Panel(Group(*parts), title=self.title, title_align="left", border_style="dim")


def _probe_table(row: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("held-out, per token", "log p", "Δ start", "Δ last", "entropy", "top-1", "w_c"):
        table.add_column(name, justify="left" if name.startswith("held") else "right")
    for kind, v in row["kinds"].items():
        delta = v["delta_start"]
        colour = "red" if kind == "chosen" and delta < -0.05 else "green" if kind == "chosen" and delta > 0.05 else ""
        shown = f"[{colour}]{delta:+.3f}[/]" if colour else f"{delta:+.3f}"
        numbers = (f"{v['delta_last']:+.3f}", f"{v['entropy']:.3f}", f"{v['top1']:.3f}", f"{v['cooling_weight']:.2f}")
        table.add_row(kind, f"{v['logp_mean']:.3f}", shown, *numbers)
    drift = f"TV {row['tv']:.3f}   JS {row['js']:.3f}   " if "tv" in row else ""
    table.caption = f"{drift}ECE {row['ece']:.3f}   (update {row['step']})"
    table.caption_justify = "left"
    return table
