"""The processes of one run: what all of them do together, what the first does alone, and how the others help it.

`torchrun` and `accelerate launch` start one process a device. Training is shared by all. Everything else (data,
negatives, captions, files) is led by the first one, rank 0; the others wait for it, as long as it takes, and compute
what it hands out. A mistake of the user's that any of them finds ends all of them with the same line.

Where the processes share the weights of a model that is too large for one of them, all of them run it in step or none
does: then every job that is handed out is done while the others do one like it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from cwdpo.devices import has_accelerator
from cwdpo.errors import PeerError, RunError, UserError, one_line
from cwdpo.launcher import is_set, refuse_deepspeed

__all__ = ["Processes", "is_lost_peer", "join_processes", "lost_peer", "naming_lost_workers", "processes"]

T = TypeVar("T")
J = TypeVar("J")

_PATIENCE = timedelta(days=14)
"""How long a process waits for another: negatives of a large data set may take days. One that died is noticed at once,
because its connections close."""


@dataclass(frozen=True)
class _Failure:
    """A process's error, on its way to the others."""

    error: UserError
    rank: int


class Processes:
    """The processes of this run, seen from one of them.

    Args:
        rank: Which one this is.
        size: How many there are.
        group: Their process group for objects and waiting; None with one process.
        in_step: Whether `map` keeps them in step, for models whose weights they share.
        reads_once: Whether rank 0 alone reads the weights of such models.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: Any = None, *, in_step: bool = False, reads_once: bool = False
    ) -> None:
        self.rank, self._size, self._group, self.in_step, self.reads_once = rank, size, group, in_step, reads_once
        self._alone = False
        self._help: Mapping[str, Callable[[Any], Any]] = {}

    @property
    def size(self) -> int:
        """How many work side by side now: 1 while rank 0 leads."""
        return 1 if self._alone else self._size

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    # -- side by side --------------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank, on all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self._size
        self._speak(lambda: distributed.all_gather_object(found, value, group=self._group))
        return found

    def share(self, work: Callable[[], T]) -> list[T]:
        """Do `work` in every process and return all results, by rank, on all of them.

        Raises:
            UserError: One of them raised it; it is raised in all.
        """
        if self.size == 1:
            return [work()]
        return [self._unpacked(found) for found in self.gather(self._packed(work))]

    def each(self, work: Callable[[], T]) -> T:
        """Do `work` in every process; return this one's result.

        Raises:
            UserError: As `share`.
        """
        if self.size == 1:
            return work()
        mine = self._packed(work)
        for found in self.gather(mine if isinstance(mine, _Failure) else None):
            self._unpacked(found)
        return self._unpacked(mine)

    def exchange(self, parcels: Sequence[T]) -> list[T]:
        """Send every process a value of its own; return what each has sent to this one, by rank.

        Args:
            parcels: A value for each process, by rank.
        """
        if self.size == 1:
            return list(parcels)
        came: list[Any] = [None] * self._size
        for rank, parcel in enumerate(parcels):
            into = came if rank == self.rank else None
            self._speak(
                lambda rank=rank, parcel=parcel, into=into: distributed.gather_object(
                    parcel, into, dst=rank, group=self._group
                )
            )
        return came

    def largest(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        return max(self.gather(value))

    # -- rank 0 and its helpers ----------------------------------------------------------------------------------------

    def lead(self, work: Callable[[], T], **help: Callable[[Any], Any]) -> T:
        """Do `work` in rank 0 alone, while the others wait and help; return its result in all of them.

        Args:
            work: What rank 0 does. Inside, `map` hands jobs out, and everything else is as with one process.
            **help: By name, what `map` may ask of every process.

        Raises:
            UserError: `work` raised it; it is raised in all processes.
        """
        if self.size == 1:
            return work()
        self._alone, self._help = True, help
        try:
            return self._command(work) if self.main else self._serve()
        finally:
            self._alone, self._help = False, {}

    def map(
        self, name: str, jobs: Sequence[J], do: Callable[[J], T], alike: Callable[[J], Any] = lambda job: None
    ) -> Iterator[T]:
        """Yield the results of `do` on every job, in order; in `lead`, all processes that help by this name share them.

        What is computed of a job depends on the job alone, so the number of processes never shows in the results.

        In step, all processes work side by side in every round: each has a job, one for which none is left does the
        round's first one once more, and `gather`, `share` and `each` go among all of them.

        Args:
            name: What the others call `do`, see `lead`.
            jobs: What is to be done.
            do: Does it.
            alike: In step, a round's jobs have the same value of this: whether there are pictures, for instance, for
                a picture encoder is run by all or by none.
        """
        if name not in self._help:
            yield from map(do, jobs)
            return
        for part in self._rounds(jobs, alike):
            spare = self._size - len(part) if self.in_step else 0
            self._tell((name, [*part, *part[:1] * spare]))
            for found in self._collect(self._packed(lambda part=part: self._done(do, part[0])))[: len(part)]:
                yield self._unpacked(found)

    def _rounds(self, jobs: Sequence[J], alike: Callable[[J], Any]) -> Iterator[list[J]]:
        """Cut jobs into rounds of one for each process at most, in their order."""
        part: list[J] = []
        for job in jobs:
            if len(part) == self._size or (part and self.in_step and alike(job) != alike(part[0])):
                yield part
                part = []
            part.append(job)
        if part:
            yield part

    def _done(self, do: Callable[[J], T], job: J) -> T:
        """Do a job; in step, side by side with the others."""
        self._alone = not self.in_step
        try:
            return do(job)
        finally:
            self._alone = True

    def _command(self, work: Callable[[], T]) -> T:
        found = self._packed(work)
        self._tell(("", found))
        return self._unpacked(found)

    def _serve(self) -> Any:
        while True:
            heard: list[Any] = [None]
            self._speak(lambda heard=heard: distributed.broadcast_object_list(heard, src=0, group=self._group))
            name, content = heard[0]
            if not name:
                return self._unpacked(content)
            mine = content[self.rank] if self.rank < len(content) else None
            self._collect(
                self._packed(lambda name=name, mine=mine: self._done(self._help[name], mine))
                if mine is not None
                else None
            )

    def _tell(self, message: tuple[str, Any]) -> None:
        self._speak(lambda: distributed.broadcast_object_list([message], src=0, group=self._group))

    def _collect(self, value: Any) -> list[Any]:
        """Send a value to rank 0, which gets them all."""
        found: list[Any] | None = [None] * self._size if self.main else None
        self._speak(lambda: distributed.gather_object(value, found, dst=0, group=self._group))
        return found or []

    def _speak(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise lost_peer(error, self.rank) from error

    def part(self) -> None:
        """Wait until all have come here: a launcher ends the others as soon as one process has failed."""
        with suppress(PeerError):
            self.gather(None)

    def _packed(self, work: Callable[[], T]) -> T | _Failure:
        try:
            return work()
        except UserError as error:
            return _Failure(error, self.rank)

    def _unpacked(self, found: T | _Failure) -> T:
        if isinstance(found, _Failure):
            found.error.told = not self.main
            raise found.error
        return found


_alone = Processes()
_joined: Processes | None = None


def processes() -> Processes:
    """Return the processes of this run: one, unless torch's process group has been set up.

    The first call after that must be made in all of them at the same point.
    """
    global _joined
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return _alone
    if _joined is None:
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        rank, size = distributed.get_rank(), distributed.get_world_size()
        _joined = Processes(rank, size, group, reads_once=_reads_once)
        _joined.in_step = _joined.each(_shares_weights)
    return _joined


_reads_once = False


def _take_over_reading() -> None:
    """Take `fsdp_cpu_ram_efficient_loading` out of accelerate's settings, and follow it where weights are shared.

    transformers would follow it whenever a model is loaded, also one that every process is to hold whole.
    """
    global _reads_once
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    if is_set("ACCELERATE_USE_FSDP") and is_set(name):
        _reads_once, os.environ[name] = True, "false"


def _shares_weights() -> bool:
    """Whether the launcher's settings shard weights over the processes."""
    return is_set("ACCELERATE_USE_FSDP")


def join_processes() -> Processes:
    """Set up torch's process group where a launcher has started several processes, and return them.

    Raises:
        RecipeError: The launcher was told to use DeepSpeed.
    """
    refuse_deepspeed()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not has_accelerator())
    _take_over_reading()
    return processes()


_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket|timed out waiting", re.I)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of torch says that another process does not answer any more."""
    return _joined is not None and (isinstance(error, distributed.DistError) or bool(_LOST.search(str(error))))


@contextmanager
def naming_lost_workers() -> Generator[None]:
    """Say in one line that a data loader's worker has ended, which torch tells wherever it is just then.

    Raises:
        RunError: One has.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a worker that reads the data has ended ({one_line(error, 100)}), as where memory runs out. What was "
            "finished is kept; run the same command again, with fewer data.workers (dataloader_num_workers) if need be"
        ) from error


def lost_peer(error: RuntimeError, rank: int) -> PeerError:
    """Return the line for such an error. Rank 0 says it, and rank 1 in case that rank 0 is the one that is gone."""
    lost = PeerError(
        f"process {rank}: another process of this run has ended, and says why itself ({one_line(error, 80)}). What was "
        "finished is kept; run the same command again to resume"
    )
    lost.told = True if rank > 1 else None
    return lost
