"""Reads the probes at the start, every so many updates and at the end, and keeps what it reads in a stage's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback

from cwdpo.errors import NonFiniteError, RunError
from cwdpo.files import append_jsonl, file_digest, read_json, write_bytes, write_json, write_text
from cwdpo.probes.figures import BY_KIND, FIGURES, OVERALL, Figure, ProbeFigure, as_figure
from cwdpo.probes.reading import ProbeSet
from cwdpo.processes import processes
from cwdpo.scoring.scorer import Scorer
from cwdpo.training.callbacks.loop_callbacks import trim_rows
from cwdpo.training.callbacks.throughput import Stopwatch

__all__ = ["ProbeCallback", "probe_scalars"]


class ProbeCallback(TrainerCallback):
    """Reads a probe set at the start, every `every` updates and at the end, into `probes.jsonl`.

    Beside it: `probe_prompts.jsonl` (ℓ̄ of each kind for each prompt), `probe_tokens.json` (the likeliest tokens of a
    few gold responses at the start and now), `probe_start.json` (what the readings are of, and the user's figures) and
    `probe_start.safetensors` (the start's logits).

    Args:
        probes: The probe set.
        scorer: How responses are scored.
        folder: Where the files go.
        every: Updates between readings.
        distributions: Keep the start's logits, for TV and JS.
        tokens: Of so many prompts, keep the likeliest tokens at every place of the gold response.
        figures: Figures of your own: `ProbeFigure`s, or functions of `Probed`.
    """

    def __init__(
        self,
        probes: ProbeSet,
        scorer: Scorer,
        folder: Path,
        *,
        every: int,
        distributions: bool = True,
        tokens: int = 4,
        figures: Sequence[ProbeFigure | Callable[..., Any]] = (),
    ) -> None:
        self.probes, self.scorer, self.folder = probes, scorer, folder
        self.every, self.distributions, self.tokens = every, distributions, tokens
        self.own = [f if isinstance(f, ProbeFigure) else as_figure(f)() for f in figures]
        self.rows: list[dict[str, Any]] = []
        self.watch = Stopwatch()
        self._start: Tensor | None = None
        self._start_prompts: dict[str, list[float | None]] = {}
        self._start_tokens: list[dict[str, Any]] | None = None
        self._trainer: Any = None

    @property
    def path(self) -> Path:
        """The readings."""
        return self.folder / "probes.jsonl"

    @property
    def figures(self) -> list[Figure]:
        """The user's figures."""
        return [f for f in chain.from_iterable(figure.figures() for figure in self.own) if f.name not in FIGURES]

    def attach(self, trainer: Any) -> None:
        """Report scalars through this trainer's `log` (and so to its `report_to` back ends)."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read the start of the stage, or resume its readings."""
        facts, logits = self.folder / "probe_start.json", self.folder / "probe_start.safetensors"
        prompts, tokens = self.folder / "probe_prompts.jsonl", self.folder / "probe_tokens.json"
        resumed = state.global_step > 0 and facts.is_file() and self.path.is_file()
        if resumed and (start := read_json(facts, digest=str))["digest"] == self.probes.digest:
            self.rows, rows = processes().lead(lambda: [trim_rows(p, state.global_step) for p in (self.path, prompts)])
            self._start_prompts = rows[0]["logp_mean"] if rows else {}
            self._start_tokens = read_json(tokens, start=list)["start"] if tokens.is_file() else None
            self._start = _load_start(logits, start.get("logits")) if self.distributions and logits.is_file() else None
            return
        write = bool(state.is_world_process_zero)
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.path, prompts, tokens):
                path.unlink(missing_ok=True)
        self.rows, self._start_prompts, self._start_tokens, self._start = [], {}, None, None
        reading, self._start = self._read(model, state, keep=self.distributions)
        if write:
            if self._start is not None:
                write_bytes(logits, save({"logits": self._start.contiguous()}))
            content = {"digest": self.probes.digest, "figures": [asdict(figure) for figure in self.figures]}
            write_json(facts, content | ({"logits": file_digest(logits)} if self._start is not None else {}))
        self._keep(state, reading)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read when it is time."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._keep(state, self._read(model, state)[0])

    def _read(self, model: Any, state: Any, *, keep: bool = False) -> tuple[dict[str, Any], Tensor | None]:
        how: dict[str, Any] = {"per_prompt": True, "tokens": self.tokens, "figures": self.own}

        def read() -> tuple[dict[str, Any], Tensor | None]:
            try:
                return self.probes.read(model, self.scorer, start=self._start, keep=keep, **how)
            except NonFiniteError as error:
                raise NonFiniteError(f"after update {state.global_step}: {error}") from None

        with self.watch:
            return processes().each(read)

    def _keep(self, state: Any, reading: dict[str, Any]) -> None:
        write, step = bool(state.is_world_process_zero), state.global_step
        reading = processes().lead(lambda: reading)  # what is decided on them is decided alike everywhere
        tokens, prompts = reading.pop("top_tokens", None), reading.pop("prompts")
        self._start_tokens = tokens if self._start_tokens is None else self._start_tokens
        columns = _columns(prompts)
        named = {} if self._start_prompts else {"ids": [row["id"] for row in prompts]}
        named |= {} if self._start_prompts else {"floor": self.probes.floor, "tau": self.probes.tau}
        self._start_prompts = self._start_prompts or columns
        first, last = (self.rows[0], self.rows[-1]) if self.rows else (reading, reading)
        for kind, values in reading["kinds"].items():
            for name, other in (("delta_start", first), ("delta_last", last)):
                values[name] = values["logp_mean"] - other["kinds"][kind]["logp_mean"]
            error = _standard_error(self._start_prompts.get(kind, []), columns.get(kind, []))
            values |= {} if math.isnan(error) else {"delta_start_se": error}
        row = {"step": step, **reading}
        self.rows.append(row)
        if write:
            append_jsonl(self.folder / "probe_prompts.jsonl", {"step": step, **named, "logp_mean": columns})
            append_jsonl(self.path, row)
        if write and tokens is not None:
            content = {"step": step, "start": self._start_tokens, "last": tokens}
            write_text(self.folder / "probe_tokens.json", json.dumps(content, ensure_ascii=False) + "\n")
        if self._trainer is not None:
            due = self._trainer.control.should_log  # `log` takes the row of this update as written
            self._trainer.log(probe_scalars(row, self.figures))
            self._trainer.control.should_log = due


def probe_scalars(row: Mapping[str, Any], figures: Sequence[Figure] = ()) -> dict[str, float]:
    """Return the scalars of a reading under the names that trackers show; `figures` are the user's."""
    names = [figure.name for figure in figures]
    kinds = [(kind, name) for kind in row["kinds"] for name in (*BY_KIND, *names) if name in row["kinds"][kind]]
    flat = {f"probe/{name}/{kind}": row["kinds"][kind][name] for kind, name in kinds}
    return flat | {f"probe/{name}": row[name] for name in (*OVERALL, *names) if name in row}


def _load_start(path: Path, digest: str | None) -> Tensor:
    """Return the start's logits.

    Raises:
        RunError: The file is not the one that was written.
    """
    if digest is not None and file_digest(path) != digest:
        raise RunError(f"{path}: its content has changed since it was written; put it back, or choose another --out")
    (logits,) = load_file(path).values()
    return logits


def _columns(prompts: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return ℓ̄ of each kind, a value a prompt."""
    kinds = dict.fromkeys(kind for row in prompts for kind in row if kind != "id")
    return {k: [None if row.get(k) is None else round(float(row[k]), 5) for row in prompts] for k in kinds}


def _standard_error(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """Return the standard error, over prompts, of the mean change since the start; NaN of one prompt."""
    changes = [b - a for a, b in zip(before, after, strict=False) if a is not None and b is not None]
    if len(changes) < 2:
        return math.nan
    return float(torch.tensor(changes, dtype=torch.float64).std()) / math.sqrt(len(changes))
