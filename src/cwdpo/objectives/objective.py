"""What the trainer asks of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cwdpo.data.schema import PromptGroup
from cwdpo.devices import to_float64
from cwdpo.errors import DataError
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["Objective", "ObjectiveOutput", "Tally", "no_such_rows"]


class Tally:
    """Sums and counts of named quantities, added up over micro-batches and divided once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Add every value of a tensor; an empty tensor adds nothing."""
        if values.numel():
            total = to_float64(values.detach()).sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0.0) + values.numel()

    def merge(self, other: Tally) -> None:
        """Add another tally."""
        for name, total in other.sums.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0.0) + other.counts[name]

    def means(self) -> dict[str, float]:
        """Return the mean of every quantity."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one micro-batch gives.

    Attributes:
        loss: Its share of the loss of the global batch; the shares of all micro-batches (and ranks) add up to it.
        tally: Metrics of the micro-batch.
        sums: What `gate` and `learn` want added up over the global batch.
    """

    loss: Tensor
    tally: Tally
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def no_such_rows(batch: Batch, wanted: str) -> DataError:
    """Return the error that says that rows lack the responses an objective needs."""
    names = sorted({g.origin for g in batch.groups})
    return DataError(f"{', '.join(names)}: no row has a {wanted}; add them, or leave these rows out")


class Objective(ABC):
    """Batch, policy scores and reference to a loss.

    Attributes:
        requires: What its rows must have: `chosen`, `pair` or `response`, as in `DataSource`.
        needs_reference: It compares with reference log-probabilities.
        tokenwise_reference: It wants them token by token, `Float[responses, tokens]`.
        twin_reference: It wants them for twins too; where not, they are not computed, and NaN stands there.
        twin: Gives every prompt a twin with altered images; None without twins.
        gated: A term is on or off for the whole global batch, as `gate` decides.
    """

    requires: str = "pair"
    needs_reference: bool = False
    tokenwise_reference: bool = False
    twin_reference: bool = True
    twin: Callable[[PromptGroup], PromptGroup] | None = None
    gated: bool = False

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """Return what the batch adds to the denominators of the global batch. Known before any forward pass."""

    def gate(self, sums: Mapping[str, float], totals: Mapping[str, float]) -> bool:
        """Decide from the sums over the global batch whether the gated term is on; asked only if `gated`."""
        raise NotImplementedError

    @abstractmethod
    def __call__(
        self, batch: Batch, scores: Scores, reference: Tensor | None, totals: Mapping[str, float], gate: bool | None
    ) -> ObjectiveOutput:
        """Compute the micro-batch's share of the loss.

        Args:
            batch: The micro-batch.
            scores: The policy's scores of its responses.
            reference: `Float[responses]`, summed reference log-probabilities in nats (`[responses, tokens]` with
                `tokenwise_reference`); None if not needed.
            totals: Denominators of the global batch: the sums of `counts`.
            gate: Whether the gated term is on; None in evaluation, where `value` decides from the means.

        Raises:
            DataError: The global batch has nothing that the loss can be computed from.
        """

    @abstractmethod
    def value(self, means: Mapping[str, float]) -> float:
        """Return the loss over a whole data set from the means of its metrics."""
