"""The code that the page on contributing shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import new_loss
import new_metric
import new_source
import pytest
import torch

from cwdpo.data.schema import PromptGroup, Response
from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.collator import PromptEncoder
from pair_examples import assert_coefficients_measured, close, example_pairs
from tiny_models import tiny_model, tiny_processor
from tiny_training import QUIET, rows, train_dpo, weights


def test_the_loss_by_hand():
    """Margins β(Δ_w − Δ_l): .1·(1 + .5) = .15; .1·(1 + 3) = .4; .1·(−5 + 60) = 5.5. Room 1: .85, .6 and nothing."""
    pairs = example_pairs()
    found = new_loss.hinge(pairs)
    close(found.margin, 0.15, 0.4, 5.5)
    close(found.loss, 0.85, 0.6, 0.0)
    close(found.winner_coefficient, 0.1, 0.1, 0.0)
    assert_coefficients_measured(pairs, found)


def test_the_loss_trains(tmp_path: Path):
    """At the start the margin is 0 and the loss its room, 1; then it falls."""
    data = rows(6, tmp_path, images=1)
    arguments = {**QUIET, "max_steps": 3, "per_device_train_batch_size": 6}
    trainer = new_loss.train(tiny_model("llava"), tiny_processor("llava"), data, str(tmp_path / "run"), **arguments)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert losses[-1] < losses[0]


def groups(*texts: str) -> list[PromptGroup]:
    return [PromptGroup(f"r{i}", (), (), (Response(text),)) for i, text in enumerate(texts)]


def test_the_source_takes_the_nearest():
    """Of "a red dog" "a red cat" shares two of four words, "two men" none; a gold text in capitals is none."""
    data = groups("a red dog", "two men", "a red cat", "A red dog!")
    found = new_source.NeighbourSource(data).propose(data[:1], {"r0": 2})["r0"]
    assert [candidate.text for candidate in found] == ["a red cat", "two men"]
    assert new_source.NeighbourSource(data[::-1]).propose(data[:1], {"r0": 2})["r0"] == found
    made = new_source.with_neighbours(data)
    assert [r.text for r in made[0].by_role("rejected")] == ["a red cat"]
    assert made[0].by_role("rejected")[0].source == "neighbour"


def test_the_metric_by_hand():
    """The references have five different words, the caption two of them; the other caption has all: (40 + 100)/2."""
    score = new_metric.recall(["a red cat", "two men"], [["a red dog", "big dog runs"], ["men two"]])["recall"]
    assert score.each == (pytest.approx(40.0), 100.0)
    assert score.value == pytest.approx(70.0)


def test_the_figure_of_the_model(tmp_path: Path):
    """It is in every row, 0 at the start, what the weights say at the end; and the run is bitwise what it was."""
    data = rows(4, tmp_path, images=1)
    processor = tiny_processor("llava")
    plain = train_dpo(tiny_model("llava"), processor, data, tmp_path / "plain", max_steps=2)
    watched = watched_by(processor, data, tmp_path)
    trainer = train_dpo(tiny_model("llava"), processor, data, tmp_path / "run", max_steps=2, callbacks=[watched])
    assert all(
        torch.equal(a, b) for a, b in zip(weights(plain.model).values(), weights(trainer.model).values(), strict=True)
    )
    assert [row["step"] for row in watched.rows] == [0, 1, 2]
    assert watched.rows[0]["distance"] == 0.0
    start = weights(tiny_model("llava"))
    now = dict(trainer.model.named_parameters())
    moved = math.sqrt(sum(float((now[n].detach().double() - start[n].double()).square().sum()) for n in now))
    assert watched.rows[-1]["distance"] == pytest.approx(moved, rel=1e-3)


def watched_by(processor: Any, data: list[Any], folder: Path) -> Any:
    """The callback that `new_metric.watch` adds, as one that a trainer is made with."""

    class Taken:
        model = tiny_model("llava")
        scorer: Any = None

        def add_callback(self, callback: Any) -> None:
            self.callback = callback

    from cwdpo.scoring.scorer import AutoScorer

    taken = Taken()
    taken.scorer = AutoScorer()
    probe_set = ProbeSet(data[:2], PromptEncoder(processor), batch_size=2, floor=-3.0, tau=1.0)
    new_metric.watch(taken, probe_set, folder / "probes", every=1)
    return taken.callback
