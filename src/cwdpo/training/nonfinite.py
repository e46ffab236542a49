"""What is done with updates whose loss or gradient is not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from cwdpo.errors import NonFiniteError
from cwdpo.scoring.batch import Batch, Scores

__all__ = ["NonFiniteGuard", "blamed_rows", "not_finite"]

_MOST = 5
"""So many updates in a row are skipped; one more stops the run."""


class NonFiniteGuard:
    """Stops at an update that is not finite, or lets it be skipped, with the rows named.

    Args:
        skip: Whether such updates are skipped.

    Attributes:
        told: Called with the update, from 1, and what is said of it when it is skipped; by default it is logged.
    """

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self.told: Callable[[int, str], None] = lambda update, text: logging.getLogger("cwdpo").warning(text)
        self._in_a_row = self._made = self._skipped = self._without_loss = 0

    def meet(self, update: int, error: NonFiniteError, *, has_loss: bool) -> None:
        """Decide on an update that is not finite; the caller leaves it out where this returns.

        Args:
            update: Its number, from 1.
            error: What is to be said.
            has_loss: Whether its loss is finite, and its gradient alone is not.

        Raises:
            NonFiniteError: Such updates stop training, or too many came in a row.
        """
        if not self.skip:
            raise error
        if self._in_a_row == _MOST:
            raise NonFiniteError(f"{error}; {_MOST} updates before it were skipped, one after another")
        self._in_a_row += 1
        self._skipped += 1
        self._without_loss += not has_loss
        self.told(update, f"skipped: {error}")

    def passed(self) -> None:
        """Count an update that is made."""
        self._in_a_row = 0
        self._made += 1

    def corrected(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return a row of means over updates as means over those that have a loss, with the number of skipped ones.

        Args:
            logs: Its `loss` has updates without one in it as zeros.
        """
        skipped, every, without = self._skipped, self._made + self._skipped, self._without_loss
        self._made = self._skipped = self._without_loss = 0
        if not skipped:
            return dict(logs)
        return {**logs, "loss": logs["loss"] * every / max(1, every - without), "skipped_updates": float(skipped)}


def not_finite(update: int, what: str, rows: Iterable[str], remedy: str) -> NonFiniteError:
    """Return the error for a loss or a gradient that is not finite.

    Args:
        update: Its number, from 1.
        what: What came out.
        rows: Where its prompts are from.
        remedy: What to do.
    """
    names = ", ".join(sorted(set(rows)))
    return NonFiniteError(f"update {update}: {what}; nothing was updated. Rows: {names}; {remedy}")


def blamed_rows(batch: Batch, scores: Scores) -> Sequence[str]:
    """Return where the prompts are from whose responses have no finite log-probability; all of them if none has."""
    bad = [i for i, ok in enumerate(torch.isfinite(scores.logp_sum).tolist()) if not ok]
    return [batch.groups[batch.owner[i]].origin for i in bad] or [g.origin for g in batch.groups]
