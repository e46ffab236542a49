"""Several runs at once, in processes of their own, told of by one reporter."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import torch

from cwdpo.errors import RunError, UserError
from cwdpo.recipe import Recipe
from cwdpo.run.algorithm1 import Run
from cwdpo.run.progress import Reporter

__all__ = ["run_side_by_side", "usable_cpus"]

_ENDED = "ended"


def usable_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_side_by_side(
    runs: Mapping[str, tuple[Path, Recipe]],
    *,
    processes: int,
    reporter: Reporter,
    prepare: Callable[[], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Execute runs that do not need each other, at most `processes` at a time, on one thread each.

    With one process they run here, one after the other. A signal, or the first failure, stops all of them: each saves a
    checkpoint, and the same call resumes from there.

    Args:
        runs: Directory and recipe by name, in the order in which they are started.
        processes: Most runs at once.
        reporter: Who is told; of runs in other processes through `Reporter.beside`.
        prepare: Called first in every process (for instance to silence libraries).

    Returns:
        The evaluation's summary of each run.

    Raises:
        UserError: A run asks for something to be fixed, or its process was killed.
    """
    if min(processes, len(runs)) < 2:
        return {name: _execute_here(folder, recipe, reporter, named=True) for name, (folder, recipe) in runs.items()}
    context = multiprocessing.get_context("spawn")
    events, waiting = context.Queue(), list(runs)
    workers = [_Worker(context, events, prepare) for _ in range(min(processes, len(runs)))]
    summaries: dict[str, dict[str, Any]] = {}
    try:
        while len(summaries) < len(runs):
            for worker in workers:
                if worker.run is None and waiting:
                    worker.begin(waiting.pop(0), runs)
            try:
                name, kind, *facts = events.get(timeout=1)
            except queue.Empty:
                _notice_the_dead(workers, runs)
                continue
            if kind == _ENDED:
                summaries[name] = _unpack(*facts)
                next(worker for worker in workers if worker.run == name).run = None
            else:
                reporter.beside(runs[name][1].name, kind, *facts)
    except BaseException:
        _stop(workers, events)
        raise
    for worker in workers:
        worker.dismiss()
        worker.process.join()
    return {name: summaries[name] for name in runs}


class _Worker:
    """A process that executes one run after another."""

    def __init__(self, context: SpawnContext, events: Any, prepare: Callable[[], None] | None) -> None:
        self.run: str | None = None
        self._tasks = context.SimpleQueue()
        self.process = context.Process(target=_work, args=(self._tasks, events, os.getpid(), prepare))
        self.process.start()

    def begin(self, name: str, runs: Mapping[str, tuple[Path, Recipe]]) -> None:
        self.run = name
        self._tasks.put((name, *runs[name]))

    def dismiss(self) -> None:
        """Let the process end when its run has."""
        self._tasks.put(None)


def _execute_here(folder: Path, recipe: Recipe, reporter: Reporter, *, named: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if named:  # beside others, every line begins with the name
            reporter.step(folder.name, recipe.name)
        return Run(folder, recipe, reporter).execute()
    finally:
        torch.set_num_threads(threads)


def _work(tasks: Any, events: Any, parent: int, prepare: Callable[[], None] | None) -> None:
    """Execute the runs that come, and send what they say, and their ends, to the one that asked."""
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    for name, folder, recipe in iter(tasks.get, None):
        try:
            if prepare is not None:
                prepare()
            summary = _execute_here(folder, recipe, _Relay(name, events))
        except (UserError, OSError, KeyboardInterrupt) as error:
            events.put((name, _ENDED, None, error, ""))
        except Exception as error:
            events.put((name, _ENDED, None, error, traceback.format_exc()))
        else:
            events.put((name, _ENDED, summary, None, ""))
        if os.getppid() != parent:
            events.cancel_join_thread()  # nobody takes what was said, or gives another task
            return


def _unpack(summary: dict[str, Any] | None, error: BaseException | None, where: str) -> dict[str, Any]:
    if error is None:
        assert summary is not None
        return summary
    if where:
        raise RuntimeError(f"in another process:\n{where}") from error
    raise error


def _end_with_parent(parent: int) -> None:
    """Stop as on a signal when the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _notice_the_dead(workers: Sequence[_Worker], runs: Mapping[str, tuple[Path, Recipe]]) -> None:
    for worker in workers:
        if worker.process.exitcode and worker.run is not None:
            raise RunError(
                f"{runs[worker.run][0]}: the process of this run ended with code {worker.process.exitcode} (out of "
                "memory, or killed?); run the same command again to resume"
            )


def _stop(workers: Sequence[_Worker], events: Any) -> None:
    """Ask every run to save and stop, and wait until they have."""
    for worker in workers:
        worker.process.terminate()
        worker.dismiss()
    while any(worker.process.is_alive() for worker in workers):
        try:
            events.get(timeout=0.2)  # a process ends only when what it said has been taken
        except queue.Empty:
            continue


class _Relay(Reporter):
    """The reporter of a run in another process."""

    def __init__(self, name: str, events: Any) -> None:
        self._name, self._events = name, events

    def beside(self, run: str, kind: str, *facts: Any) -> None:
        self._events.put((self._name, kind, *facts))
