"""Rules that settings of a loss must keep."""

from __future__ import annotations

import math

__all__ = ["check", "check_at_least_0", "check_positive", "check_share"]


def check(holds: bool, key: str, value: float, rule: str) -> None:
    """Refuse a value that breaks its rule.

    Raises:
        ValueError: It does: key, value and rule.
    """
    if not holds:
        raise ValueError(f"{key} = {value!r}: must be {rule}")


def check_positive(key: str, value: float) -> None:
    """Refuse what is not finite and above 0."""
    check(value > 0 and math.isfinite(value), key, value, "finite and above 0")


def check_at_least_0(key: str, value: float) -> None:
    """Refuse what is not finite and at least 0."""
    check(value >= 0 and math.isfinite(value), key, value, "finite and at least 0")


def check_share(key: str, value: float) -> None:
    """Refuse what is outside [0, 1]."""
    check(0 <= value <= 1, key, value, "between 0 and 1")
