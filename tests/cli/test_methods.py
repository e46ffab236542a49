"""One list of methods: recipe, losses, objectives and the command agree with it, and none of its settings is dead."""

from __future__ import annotations

import typing

import pytest
import torch
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.cli.methods import method_rows
from cwdpo.losses import PAIR_LOSSES, pair_loss
from cwdpo.objectives.methods import IMAGE_OBJECTIVES, stage2_objective
from cwdpo.recipe import METHODS, STAGE2_METHODS, Recipe, Stage1Section, Stage2Section, settings_of
from pair_examples import example_pairs

FIELDS = {
    "stage1.objective": (Stage1Section, "objective"),
    "stage1.regularizer": (Stage1Section, "regularizer"),
    "stage2.objective": (Stage2Section, "objective"),
}


@pytest.mark.parametrize("key", FIELDS)
def test_the_recipe_takes_exactly_these(key: str) -> None:
    section, name = FIELDS[key]
    allowed = typing.get_args(section.model_fields[name].annotation)
    assert sorted(allowed) == sorted(m.name for m in METHODS if m.key == key)


def test_every_method_of_stage_2_has_its_loss() -> None:
    assert not PAIR_LOSSES.keys() & IMAGE_OBJECTIVES.keys()
    on_policy = {name for name, method in STAGE2_METHODS.items() if method.on_policy}
    assert PAIR_LOSSES.keys() | IMAGE_OBJECTIVES.keys() | on_policy == STAGE2_METHODS.keys()
    assert not on_policy & (PAIR_LOSSES.keys() | IMAGE_OBJECTIVES.keys())
    for name, method in STAGE2_METHODS.items():
        made = stage2_objective(Stage2Section.model_validate({"objective": name}), seed=3)
        assert made.needs_reference == (method.reference and not method.on_policy)  # theirs come with the samples
        assert getattr(made.twin, "kind", "") == method.image


def test_every_setting_of_an_objective_belongs_to_a_method() -> None:
    for section, stage, general in (
        (Stage1Section, "stage1", {"objective"}),
        (Stage2Section, "stage2", {"objective", "reference"}),
    ):
        named = {name for m in METHODS if m.key.startswith(stage) for name in m.settings}
        assert named == set(settings_of(section)) - general


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_method_reads_the_settings_it_names_and_no_other(name: str) -> None:
    """Change each number: the loss changes exactly where the list says that it is read."""
    start = Stage2Section.model_validate({"objective": name})
    before = pair_loss(example_pairs(), start)
    for key in settings_of(Stage2Section):
        value = getattr(start, key)
        if not isinstance(value, float) or isinstance(value, bool):
            continue
        changed = start.model_copy(update={key: value * 0.8 if value else 0.3})
        moved = not torch.equal(pair_loss(example_pairs(), changed).loss, before.loss)
        assert moved == (key in STAGE2_METHODS[name].settings), key


def test_own_defaults() -> None:
    """SimPO's β is 2, DPOP's .3, FocalPO's γ .05: where the recipe leaves them out, and only there."""
    for name, key, value in (("simpo", "beta", 2.0), ("dpop", "beta", 0.3), ("focalpo", "focus", 0.05)):
        assert getattr(Stage2Section.model_validate({"objective": name}), key) == value
        assert getattr(Stage2Section.model_validate({"objective": name, key: 0.7}), key) == 0.7
    assert Stage2Section(objective="dpo").beta == 0.1
    assert Stage2Section(objective="focal_dpo").focus == 2.0


def test_a_default_of_others_is_pointed_out() -> None:
    """A recipe that `cwdpo init` wrote names β = .1; SimPO in it would hardly learn."""
    found = Recipe(stage2=Stage2Section(objective="simpo", beta=0.1)).warnings()
    assert any(w.startswith("stage2.beta = 0.1 is what other objectives take; SimPO has 2") for w in found)
    for stage2 in ({"objective": "simpo"}, {"objective": "simpo", "beta": 2.5}, {"objective": "dpo", "beta": 0.1}):
        assert not any("stage2.beta" in w for w in Recipe.model_validate({"stage2": stage2}).warnings())


@pytest.mark.parametrize("stage2", [{"objective": "mdpo"}, {"cooling_span": "differing"}])
def test_influence_is_refused_before_training(stage2: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"probes\.influence is not known for objectives with a second image"):
        Recipe.model_validate({"stage2": stage2, "probes": {"influence": {}}})
    Recipe.model_validate({"stage2": {**stage2, "enabled": False}, "probes": {"influence": {}}})


def test_the_command_shows_every_method() -> None:
    done = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for row in method_rows():
        assert row["name"] in done.output and row["title"] in done.output and row["formula"] in done.output
        assert row["paper"] in done.output and row["settings"].split(", ")[0] in done.output
    assert "arXiv:2405.14734" in done.output and "beta=2, target_margin=1" in done.output
