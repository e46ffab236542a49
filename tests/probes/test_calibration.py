"""The calibration error against hand numbers, those of torchmetrics 1.9.0, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cwdpo.probes.calibration import Calibration

torch.set_num_threads(1)
unhurried = settings(deadline=None, max_examples=50)  # a busy machine is no failure

predictions = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=30)


def measured(confidence: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    calibration = Calibration(bins)
    calibration.update(confidence, correct)
    return calibration


def split(rows: list[tuple[float, bool]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([row[0] for row in rows], dtype=torch.float64), torch.tensor([row[1] for row in rows])


def test_by_hand():
    # Two bins. Low: .1 wrong, .3 right: confidence .2, accuracy .5. High: .6 right, .9 wrong, .9 right: confidence .8,
    # accuracy 2/3. ECE = 2/5·.3 + 3/5·.1333… = .12 + .08 = .2.
    calibration = measured(
        torch.tensor([0.1, 0.3, 0.6, 0.9, 0.9], dtype=torch.float64),
        torch.tensor([False, True, True, False, True]),
        bins=2,
    )
    assert calibration.ece() == pytest.approx(0.2)
    low, high = calibration.reliability()
    assert low == pytest.approx({"lower": 0.0, "upper": 0.5, "count": 2, "confidence": 0.2, "accuracy": 0.5})
    assert high == pytest.approx({"lower": 0.5, "upper": 1.0, "count": 3, "confidence": 0.8, "accuracy": 2 / 3})


def test_bins_are_closed_on_the_left_and_one_is_in_the_last():
    # Four bins: 0 in the first, .25 in the second, .5 in the third, .75 and 1 in the last.
    calibration = measured(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), torch.ones(5, dtype=torch.bool), bins=4)
    assert [row["count"] for row in calibration.reliability()] == [1, 1, 1, 2]


def test_empty_bins_have_no_mean_and_no_predictions_have_no_error():
    calibration = Calibration()
    assert math.isnan(calibration.ece()) and calibration.count == 0
    rows = calibration.reliability()
    assert len(rows) == 15
    assert all(row["count"] == 0 and row["confidence"] is None and row["accuracy"] is None for row in rows)
    assert rows[0]["lower"] == 0.0 and rows[-1]["upper"] == 1.0


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_of_classes_as_torchmetrics_says(bins: int):
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(500, 20, generator=generator)).softmax(-1)
    gold = torch.randint(0, 20, (500,), generator=generator)
    top = probabilities.max(-1)
    assert measured(top.values, top.indices == gold, bins).ece() == pytest.approx(0.4070187, abs=1e-6)


@pytest.mark.parametrize(("bins", "ece"), [(4, 0.25), (8, 0.25), (16, 0.5)])
def test_on_the_edges_as_torchmetrics_says(bins: int, ece: float):
    """Multiples of 1/16 are exact in binary and, for these bins, lie on the edges."""
    confidence, correct = torch.arange(16) / 16, torch.tensor([True, False, False, True] * 4)
    assert measured(confidence, correct, bins).ece() == pytest.approx(ece, abs=1e-6)


@unhurried
@given(predictions, st.integers(0, 30))
def test_the_cut_into_batches_does_not_matter(rows: list[tuple[float, bool]], cut: int):
    whole = measured(*split(rows))
    parts = Calibration()
    for part in (rows[:cut], rows[cut:]):
        if part:
            parts.update(*split(part))
    assert parts.count == whole.count == len(rows)
    assert parts.ece() == pytest.approx(whole.ece(), abs=1e-12)
    assert [row["count"] for row in parts.reliability()] == [row["count"] for row in whole.reliability()]


def test_many_small_batches_keep_their_precision():
    # 3,000 times a float32 .9: the mean stays that number, .8999999762, to float64 rounding.
    calibration = Calibration()
    for _ in range(3000):
        calibration.update(torch.tensor([0.9]), torch.tensor([True]))
    assert calibration.ece() == pytest.approx(1 - 0.8999999761581421, abs=1e-12)


def test_refusals():
    calibration = Calibration()
    yes = torch.tensor([True])
    for confidence, shown in ((-0.1, "-0.1"), (1.1, "1.1"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"confidence = {shown}.*: must be between 0 and 1"):
            calibration.update(torch.tensor([confidence]), yes)
    with pytest.raises(ValueError, match=r"correct: shape \(1,\), must be that of confidence, \(2,\)"):
        calibration.update(torch.tensor([0.1, 0.2]), yes)
    with pytest.raises(ValueError, match=r"correct: dtype torch.int64, must be torch.bool"):
        calibration.update(torch.tensor([0.1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="bins = 0: must be at least 1"):
        Calibration(0)
    # A refused batch leaves nothing behind.
    assert calibration.count == 0
