"""What answers cost, and when to stop."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from cwdpo.chat.client import Reply, ServiceError
from cwdpo.recipe import WriterSection

__all__ = ["Budget"]


class Budget:
    """Adds up what is spent and what is under way, against a cap. Safe to use from several threads.

    Args:
        settings: Prices and cap.
    """

    def __init__(self, settings: WriterSection) -> None:
        self._settings, self._lock = settings, threading.Condition()
        self.spent = 0.0
        self._reserved = self._dearest = 0.0

    def cost(self, sent: float, received: float) -> float:
        """Return the price of so many tokens."""
        return (sent * self._settings.price_input + received * self._settings.price_output) / 1e6

    def count(self, reply: Reply) -> None:
        """Add an answer to what is spent."""
        cost = self.cost(reply.sent, reply.received)
        with self._lock:
            self.spent += cost
            self._dearest = max(self._dearest, cost)

    def require(self, estimate: float, requests: int) -> None:
        """Find out before anything is asked whether the cap will do.

        Raises:
            ServiceError: It will not.
        """
        cap = self._settings.max_cost
        if cap is not None and self.spent + estimate > cap:
            raise ServiceError(
                f"{requests} requests cost about {estimate:.4g} ({self.spent:.4g} is spent), more than "
                f"{self._settings.place}.max_cost = {cap:g}; raise it or ask for less"
            )

    @contextmanager
    def reserved(self, amount: float) -> Generator[None]:
        """Set an amount aside while the block runs, the most its request can cost; wait where others have set it aside.

        The dearest request so far is set aside where it cost more: a server may count more tokens than were guessed.

        Raises:
            ServiceError: The cap is reached.
        """
        cap = self._settings.max_cost
        with self._lock:
            amount = max(amount, self._dearest)
            while cap is not None and self.spent + self._reserved + amount > cap:
                if not self._reserved:
                    raise ServiceError(
                        f"{self._settings.place}.max_cost = {cap:g} is reached ({self.spent:.4g} spent); what was "
                        "answered is kept: raise it and run the command again to go on"
                    )
                self._lock.wait()
            self._reserved += amount
        try:
            yield
        finally:
            with self._lock:
                self._reserved = max(0.0, self._reserved - amount)
                if self._reserved < 1e-12:
                    self._reserved = 0.0  # nothing is under way, whatever rounding left
                self._lock.notify_all()
