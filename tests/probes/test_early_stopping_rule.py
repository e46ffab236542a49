"""When a signal stops a run: by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cwdpo.probes.figures import signals
from cwdpo.training.callbacks.early_stopping import Verdict, follow, signal_value, watch


def test_watch_by_hand() -> None:
    """Best at index 2; two readings without a better one run out of patience at index 4."""
    assert watch([0, 1, 3, 2, 2, 9], higher=True, patience=2) == Verdict(2, 4)
    assert watch([0, 1, 3, 2], higher=True, patience=2) == Verdict(2, None)
    assert watch([0, -1, -3, -2, -2], higher=False, patience=2) == Verdict(2, 4)
    # A gain of 0.4 is no improvement where 0.5 is asked for; 0.6 above the best one is.
    assert watch([0, 1, 1.4, 1.6], higher=True, patience=2, min_delta=0.5) == Verdict(3, None)
    assert watch([0, 1, 1.4, 1.5], higher=True, patience=2, min_delta=0.5) == Verdict(1, 3)


def test_the_start_is_never_the_best() -> None:
    """No weights of the start are kept: the first reading after it is the first candidate, however bad."""
    assert watch([5], higher=True, patience=1) == Verdict(0, None)
    assert watch([5, 1], higher=True, patience=1) == Verdict(1, None)
    assert watch([5, 1, 0], higher=True, patience=1) == Verdict(1, 2)


def test_weights_that_have_not_moved_are_the_starts() -> None:
    """A first update at rate 0 leaves every log-probability as it was: its reading is the start's, the next is not."""

    def row(accuracy: float, moved: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "kinds": {"chosen": {"delta_start": moved}, "hard": {"delta_start": 0.0}}}

    rows = [row(0.9, 0), row(0.9, 0), row(0.5, 1e-9), row(0.4, 0.1), row(0.3, 0)]
    how: dict[str, Any] = {"higher": True, "patience": 2, "min_delta": 0.0}
    assert [follow(rows[:n], "accuracy", **how) for n in (2, 3, 5)] == [
        *(Verdict(0, None), Verdict(2, None), Verdict(2, 4)),
    ]


def test_a_missing_value_is_never_better() -> None:
    assert watch([0, 1, math.nan, math.nan], higher=True, patience=2) == Verdict(1, 3)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"patience": 1, "min_delta": -1.0}])
def test_mistakes(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        watch([0, 1], higher=True, **wrong)


def test_values() -> None:
    row = {"kinds": {"chosen": {"logp_mean": -0.5}}, "ece": 0.1, "accuracy": 0.7}
    assert {name: signal_value(row, name) for name in ("chosen", "ece", "accuracy")} == {
        "chosen": -0.5,
        "ece": 0.1,
        "accuracy": 0.7,
    }
    assert math.isnan(signal_value(row, "tv"))
    assert {name: figure.better for name, figure in signals().items()} == {
        **dict.fromkeys(("chosen", "accuracy", "ranking", "gap", "correct_top5", "cider_top5"), "higher"),
        **dict.fromkeys(("tv", "js", "ece"), "lower"),
    }
