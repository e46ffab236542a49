"""The code that the page on contributing shows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import new_figure
import new_loss
import new_metric
import new_source
import pytest
import torch
import yaml

from built_negatives import build, propose
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.errors import RecipeError
from cwdpo.evaluation.metrics import METRICS, Captioned
from cwdpo.probes.diagnosis.stage_history import StageFacts, Stream
from cwdpo.probes.reading import ProbeSet
from cwdpo.recipe import Recipe
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from pair_examples import close, example_pairs, winner
from tiny_models import tiny_model, tiny_processor
from tiny_training import QUIET, differing, rows, scores_of, train_dpo, weights


def test_the_loss_by_hand():
    """Margins β(Δ_w − Δ_l): .1·(1 + .5) = .15; .1·(1 + 3) = .4; .1·(−5 + 60) = 5.5. Room 1: .85, .6 and nothing."""
    pairs = example_pairs()
    close(new_loss.Hinge().loss(pairs), 0.85, 0.6, 0.0)
    close(winner(new_loss.Hinge(), pairs), 0.1, 0.1, 0.0)


def test_the_loss_trains(tmp_path: Path):
    """At the start the margin is 0 and the loss its room, 1; then it falls."""
    data = rows(6, tmp_path, images=1)
    arguments = {**QUIET, "max_steps": 3, "per_device_train_batch_size": 6}
    trainer = new_loss.train(tiny_model("llava"), tiny_processor("llava"), data, str(tmp_path / "run"), **arguments)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert losses[-1] < losses[0]


def test_the_loss_in_a_recipe(monkeypatch: pytest.MonkeyPatch):
    """By its file, alone and as a term of a sum; a key that it has not is refused."""
    monkeypatch.chdir(Path(new_loss.__file__).parent)
    alone = load_recipe(overrides=["stage2.objective=new_loss.py:Hinge", "stage2.room=0.5"]).stage2
    close(alone.method.loss(example_pairs()), 0.35, 0.1, 0.0)
    term = load_recipe(overrides=["stage2.objective=[{'new_loss.py:Hinge': {room: 0.5}, weight: 2}, nll]"]).stage2
    close(term.method.loss(example_pairs()), 0.7 + 2, 0.2 + 2, 3.0)
    with pytest.raises(RecipeError, match="focus"):
        load_recipe(overrides=["stage2.objective=new_loss.py:Hinge", "stage2.focus=1"])


def groups(*texts: str) -> list[PromptGroup]:
    return [PromptGroup(f"r{i}", (), (), (Response(text),)) for i, text in enumerate(texts)]


def test_the_source_takes_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of "a red dog" "a red cat" shares two of four words, "two men" none; a gold text in capitals is none."""
    monkeypatch.chdir(Path(new_source.__file__).parent)
    key = "new_source.py:NeighbourSource"
    data = groups("a red dog", "two men", "a red cat", "A red dog!")
    found = propose(key, data, 2, tmp_path, {})["r0"]
    assert [candidate.text for candidate in found] == ["a red cat", "two men"]
    assert propose(key, data[::-1], 2, tmp_path, {})["r0"] == found
    assert [c.text for c in propose(key, data, 2, tmp_path, {"overlap": 0.4})["r0"]] == ["two men"]
    recipe = load_recipe(None, [f"negatives.stage2.{key}=3", "negatives.stage2.overlap=0.4"])
    assert recipe.negatives.stage2.shares() == {"dataset": 1, "neighbour": 3}
    made = build(data, recipe.negatives.stage2, tmp_path)
    assert made.counts["neighbour"] == 4 and made.groups[0].by_role("rejected")[0].source == "neighbour"
    again = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))  # a run keeps it so
    assert again == recipe and again.negatives.stage2.sources["neighbour"].overlap == 0.4
    with pytest.raises(RecipeError, match=r"negatives\.stage2\.overlap` = 7"):
        load_recipe(None, [f"negatives.stage2.{key}=3", "negatives.stage2.overlap=7"])


def test_the_metric_by_hand():
    """The references have five different words, the caption two of them; the other caption has all: (40 + 100)/2."""
    captions, references = ["a red cat", "two men"], [["a red dog", "big dog runs"], ["men two"]]
    assert new_metric.recall(captions, references) == [pytest.approx(40.0), 100.0]
    sample = Captioned([], captions, captions, references)
    assert new_metric.LongWords(least=4).measure(sample) == [0.0, 0.0]
    recall, long = METRICS.make(
        [f"{new_metric.__file__}:recall", {f"{new_metric.__file__}:LongWords": {"least": 3}}], ""
    )
    assert recall.scores(sample)["recall"].value == pytest.approx(70.0)
    assert long.scores(sample)["long_words"].each == (100.0, 100.0)


def test_the_figures_of_the_model(tmp_path: Path):
    """In a trainer, and the run is bitwise what it was. By hand: the share of tokens below e⁻⁶, and their median."""
    data = rows(4, tmp_path, images=1)
    processor = tiny_processor("llava")
    plain = train_dpo(tiny_model("llava"), processor, data, tmp_path / "plain", max_steps=2)
    probe_set = ProbeSet(data[:2], PromptEncoder(processor), batch_size=2, floor=-3.0, tau=1.0)
    figures = [new_figure.Unsure(below=math.exp(-6)), new_figure.median]
    probes = ProbeCallback(probe_set, AutoScorer(), tmp_path / "probes", every=1, figures=figures)
    trainer = train_dpo(tiny_model("llava"), processor, data, tmp_path / "run", max_steps=2, callbacks=[probes])
    assert not differing(weights(plain.model), weights(trainer.model))
    with torch.no_grad():
        _, scores = scores_of(trainer.model, processor, [g.with_responses([g.chosen]) for g in data[:2]])
    logps = [row[mask] for row, mask in zip(scores.logps, scores.mask, strict=True)]
    last = probes.rows[-1]
    assert last["kinds"]["chosen"]["unsure"] == pytest.approx(
        float(torch.stack([(r < -6).float().mean() for r in logps]).mean())
    )
    assert last["median"] == pytest.approx(float(torch.cat(logps).median()), rel=1e-4)
    assert "unsure" not in last and all("unsure" in values for values in last["kinds"].values())


def test_the_rule_by_hand():
    """+6 % and +8 % in the last two readings: since update 20; +4 %: nothing."""
    figure = new_figure.Unsure()

    def history(*values: float) -> Stream:
        return Stream([{"step": 10 * i, "kinds": {"chosen": {"unsure": v}}} for i, v in enumerate(values)], [])

    found = figure.rule(history(0.1, 0.11, 0.16, 0.18), StageFacts())
    assert found is not None and (found.step, found.figures["change"]) == (20, pytest.approx(0.08))
    assert figure.rule(history(0.1, 0.11, 0.16, 0.14), StageFacts()) is None


def test_a_file_is_found_by_its_name() -> None:
    """No two modules of the package have one name."""
    named = Counter(path.stem for path in (Path(__file__).parents[2] / "src").rglob("*.py") if path.stem != "__init__")
    assert {name for name, count in named.items() if count > 1} <= {"__main__"}
