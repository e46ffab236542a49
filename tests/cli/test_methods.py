"""The registry of methods, what each reads, and how `cwdpo methods` shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.cli.methods import method_rows
from cwdpo.errors import RecipeError
from cwdpo.methods import METHODS
from cwdpo.methods.base import coefficients
from cwdpo.methods.pair_logps import CutLogps
from cwdpo.objectives import objective_of
from cwdpo.recipe import Recipe, Stage2Section
from pair_examples import doubles, example_pairs, under_an_altered_image

PAIRS = {name: m for name, m in METHODS.all().items() if m.stage == "stage2" and not m.on_policy}


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_says_what_it_is(name: str) -> None:
    method = METHODS.find(name)
    assert method.name == name and method.title and method.formula and method.paper
    assert all(field.description for field in method.model_fields.values())
    objective = objective_of(method(), seed=3)
    assert objective.needs_reference == (method().needs.reference and not method.on_policy)
    assert getattr(objective.twin, "kind", "") == method().needs.image


@pytest.mark.parametrize("name", PAIRS)
def test_a_method_reads_its_settings(name: str) -> None:
    """Change each number: the loss changes, or its gradient alone."""
    pairs = under_an_altered_image(example_pairs(), doubles(-9, -9, -40), doubles(-14, -21, -70), doubles(-9, -9, -25))
    pairs = replace(
        pairs,
        score_gap=doubles(0.5, -2, 0.1),
        cut=CutLogps(
            chosen=pairs.chosen / 2,
            rejected=pairs.rejected / 2,
            reference_chosen=pairs.reference_chosen / 2,
            reference_rejected=pairs.reference_rejected / 2,
        ),
    )
    start = PAIRS[name]()
    for key, value in start.model_dump().items():
        if isinstance(value, float):
            changed = start.model_copy(update={key: value * 0.8 if value else 0.3})
            one, other = (torch.stack([m.loss(pairs), *coefficients(m, pairs)]) for m in (changed, start))
            assert not torch.equal(one, other), key


def test_own_defaults() -> None:
    """SimPO's β is 2, DPOP's .3, FocalPO's γ .05: where the recipe leaves them out, and only there."""
    for name, key, value in (("simpo", "beta", 2.0), ("dpop", "beta", 0.3), ("focalpo", "focus", 0.05)):
        for given, want in (({}, value), ({key: 0.7}, 0.7)):
            section = Stage2Section.model_validate({"objective": name, **given})
            assert getattr(section.method, key) == want


@pytest.mark.parametrize("stage2", [{"objective": "mdpo"}, {"cooling_span": "differing"}, {"objective": "ld_dpo"}])
def test_influence_is_refused_before_training(stage2: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"probes\.influence"):
        Recipe.model_validate({"stage2": stage2, "probes": {"influence": {}}})
    Recipe.model_validate({"stage2": {**stage2, "enabled": False}, "probes": {"influence": {}}})


def test_the_command_shows_every_method() -> None:
    done = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for row in method_rows():
        assert row["name"] in done.output and row["title"] in done.output and row["formula"] in done.output
        assert row["paper"] in done.output and row["settings"].split(", ")[0] in done.output
    assert "arXiv:2405.14734" in done.output and "beta=2, target_margin=1" in done.output


def test_the_command_shows_a_method_of_ones_own() -> None:
    file = Path(__file__).parents[2] / "examples" / "extend" / "new_loss.py"
    done = CliRunner().invoke(app, ["methods", f"{file}:Hinge"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "max(0, room − m)" in done.output and "beta=0.1, room=1" in done.output
    wrong = CliRunner().invoke(app, ["methods", f"{file}:Hing"])
    assert isinstance(wrong.exception, RecipeError) and "Hing" in str(wrong.exception)
