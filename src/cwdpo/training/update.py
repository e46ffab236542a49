"""One update under way: its micro-batches, and what is added up over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cwdpo.devices import RandomState
from cwdpo.errors import NonFiniteError
from cwdpo.objectives.objective import ObjectiveOutput, Tally
from cwdpo.scoring.batch import Batch

__all__ = ["PROMPTS", "TOKENS", "Update", "add_up", "sequence_tokens"]

TOKENS = "num_tokens"
"""Key of an update's tokens among its totals."""

PROMPTS = "num_prompts"
"""Key of its prompts."""


@dataclass
class Update:
    """One update under way.

    Attributes:
        inputs: This process's micro-batches.
        totals: Denominators over the global batch.
        gate: What the gate of the objective's gated term is taken to be.
        random_state: From which the micro-batches are run, and run again.
        done: Micro-batches that have been run.
        sums: What the objective wants added up over the global batch.
        tally: What is logged.
        losses: Of the micro-batches.
        broken: Why the update must not be made, where this process has found a reason.
    """

    inputs: list[dict[str, Batch]]
    totals: dict[str, float]
    gate: bool
    random_state: RandomState
    done: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tally: Tally = field(default_factory=Tally)
    losses: list[Tensor] = field(default_factory=list[Tensor])
    broken: NonFiniteError | None = None

    @property
    def batches(self) -> list[Batch]:
        """The micro-batches themselves."""
        return [inputs["batch"] for inputs in self.inputs]

    @property
    def rows(self) -> list[str]:
        """Where this process's prompts are from."""
        return [group.origin for batch in self.batches for group in batch.groups]

    def restart(self, gate: bool) -> None:
        """Forget what was added up, to run the micro-batches again."""
        self.gate, self.done, self.broken = gate, 0, None
        self.sums, self.tally, self.losses = {}, Tally(), []

    def add_sums(self, output: ObjectiveOutput) -> None:
        """Add what the objective wants of a micro-batch."""
        for name, value in output.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def own_sums(self) -> dict[str, float]:
        """Return these sums over this process's rows."""
        return {name: float(value) for name, value in self.sums.items()}


def sequence_tokens(batch: Batch) -> int:
    """Count tokens as TRL does: every response with its prompt before it."""
    return sum(len(g.prefix_ids) + len(r.ids) for g in batch.groups for r in g.responses)


def add_up(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of several mappings, name by name."""
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
