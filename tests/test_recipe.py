"""Recipes: what is refused and how, overrides, files that load back equal, no field that nothing reads."""

from __future__ import annotations

import ast
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import cwdpo
from cwdpo.errors import RecipeError
from cwdpo.methods import CWDPO, DPO, METHODS, RPO, Method
from cwdpo.recipe import (
    EarlyStopSection,
    InfluenceSection,
    LoraSection,
    ModelSection,
    ProbeSection,
    Recipe,
    Stage1Section,
    Stage2Section,
)
from cwdpo.recipe.commented_recipe import commented_yaml
from cwdpo.recipe.load_recipe import load_recipe, recipe_differences
from cwdpo.section import Section

SOURCE = Path(str(cwdpo.__file__)).parent


def sections() -> list[type[BaseModel]]:
    """Every section of a recipe, the recipe itself first."""
    found: list[type[BaseModel]] = [Recipe]
    for model in found:
        for field in model.model_fields.values():
            options = [field.annotation, *typing.get_args(field.annotation)]
            found += [o for o in options if isinstance(o, type) and issubclass(o, BaseModel) and o not in found]
    return found


FIELDS = {(model, name) for model in sections() for name in model.model_fields}
FIELDS |= {(method, name) for method in METHODS.all().values() for name in method.model_fields}


def names_in(node: ast.AST) -> set[str]:
    """Attributes that are read, names, and strings (`getattr` takes them)."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            found.add(part.attr)
        elif isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


@pytest.fixture(scope="module")
def names_read() -> set[str]:
    """Attributes that code outside of `recipe/` reads, and what functions and constants of `recipe/` read for it."""
    read: set[str] = set()
    within: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.parent.name != "recipe":
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                within.setdefault(node.name, set()).update(names_in(node))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                within.setdefault(node.targets[0].id, set()).update(names_in(node.value))
    new = read
    while new := {name for reached in new & within.keys() for name in within[reached]} - read:
        read = read | new
    return read


def dead(fields: set[tuple[type[BaseModel], str]], names_read: set[str]) -> list[str]:
    return sorted(f"{model.__name__}.{name}" for model, name in fields if name not in names_read)


def test_no_dead_options(names_read: set[str]) -> None:
    assert dead(FIELDS, names_read) == []


def test_the_guard_against_dead_options_works(names_read: set[str]) -> None:
    """What nothing reads is found, also what a section's own validator or description names."""

    class Made(Section):
        learning_rate: float = 0
        not_read_by_anybody: float = 0

    class Loss(Method):
        nor_is_this_one: float = 0

    made = {(Made, "learning_rate"), (Made, "not_read_by_anybody"), (Loss, "nor_is_this_one")}
    assert dead(made, names_read) == ["Loss.nor_is_this_one", "Made.not_read_by_anybody"]


@pytest.mark.parametrize("model", sections())
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_defaults() -> None:
    """A section that is given in part has the same defaults as one that is left out."""
    assert load_recipe(base={"stage2": {"beta": 0.1}}) == Recipe()
    assert load_recipe(overrides=["stage2.beta=0.1", "stage1.weight=0.1"]) == Recipe()
    assert (Recipe().stage1.learning_rate, Recipe().stage2.learning_rate) == (1e-5, 1e-6)
    assert load_recipe(base=Recipe().model_dump()) == Recipe()


def test_warning_of_the_paper_s_own_values() -> None:
    # nll_floor 4 keeps negatives at ℓ̄ = −4, where σ((−4 + 3) / 1) = 0.27 < ½
    assert len(Recipe().warnings()) == 1 and "stage1.nll_floor = 4 is above -stage2.floor = 3" in Recipe().warnings()[0]
    assert load_recipe(overrides=["stage1.nll_floor=3"]).warnings() == []
    assert load_recipe(overrides=["stage1.objective=sft"]).warnings() == []


RECIPES = st.builds(
    Recipe,
    name=st.text(max_size=20).filter(lambda t: t.isprintable()),
    seed=st.integers(0, 2**32 - 1),
    probes=st.builds(
        ProbeSection,
        influence=st.none() | st.just(InfluenceSection()),
        early_stop=st.none() | st.builds(EarlyStopSection, patience=st.integers(1, 9)),
    ),
    model=st.builds(
        ModelSection,
        path=st.sampled_from(["scenes", "owner/name", "/a b/c:d", "no", "1e5", "~", "#x", "'q\""]),
        freeze=st.lists(st.sampled_from(["vision", "projector"]), unique=True),
        lora=st.none() | st.builds(LoraSection, r=st.integers(1, 64), dropout=st.floats(0, 0.99)),
        min_pixels=st.none() | st.integers(1, 10**9),
    ),
    stage1=st.builds(Stage1Section, learning_rate=st.floats(1e-12, 1), warmup_ratio=st.floats(0, 0.99)),
    stage2=st.builds(Stage2Section, floor=st.floats(-1e6, 1e6), objective=st.sampled_from(["cw_dpo", "simpo", "dpop"])),
    report_to=st.lists(st.sampled_from(["wandb", "tensorboard", "null", "yes"])),
)


@settings(deadline=None, max_examples=40)
@given(RECIPES)
def test_written_recipes_load_back_equal(recipe: Recipe) -> None:
    for every_field in (True, False):
        assert Recipe.model_validate(yaml.safe_load(commented_yaml(recipe, every_field=every_field))) == recipe
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe_differences(recipe.model_dump(mode="json"), yaml.safe_load(recipe.to_yaml())) == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("stage2.beta=0.2", ("stage2", "method", "beta"), 0.2),
        ("stage2.learning_rate=1e-5", ("stage2", "learning_rate"), 1e-5),  # a string to YAML
        ("model.freeze=[vision, projector]", ("model", "freeze"), ["vision", "projector"]),
        ("model.lora.r=8", ("model", "lora", "r"), 8),
        ("model.lora={}", ("model", "lora", "r"), 16),
        ("model.lora=null", ("model", "lora"), None),
        ("name=a=b", ("name",), "a=b"),
        (" seed = 7", ("seed",), 7),
        ("negatives.stage1.beam=1", ("negatives", "stage1", "beam"), 1.0),
    ],
)
def test_override(override: str, key: tuple[str, ...], value: Any) -> None:
    found: Any = load_recipe(overrides=[override])
    for name in key:
        found = getattr(found, name)
    assert found == value


def test_override_of_an_aliased_section(tmp_path: Path) -> None:
    """YAML's `*x` gives two sections one object; an override changes the one that it names."""
    path = tmp_path / "r.yaml"
    path.write_text("negatives: {stage1: &x {beam: 1}, stage2: *x}\n", encoding="utf-8")
    recipe = load_recipe(path, ["negatives.stage2.beam=0"])
    assert (recipe.negatives.stage1.beam, recipe.negatives.stage2.beam) == (1, 0)


def test_later_overrides_win_and_the_file_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stage2: {beta: 0.3}\n", encoding="utf-8")
    assert load_recipe(path, ["stage2.beta=0.4", "stage2.beta=0.5"]).stage2.method == CWDPO(beta=0.5)
    assert load_recipe(path).stage2.method == CWDPO(beta=0.3)
    base = {"stage2": {"beta": 0.3}}
    load_recipe(base=base, overrides=["stage2.beta=0.4"])
    assert base == {"stage2": {"beta": 0.3}}


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"r\.yaml: is empty"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("{}\n", encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml") == Recipe()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stage2.learning_rate=yes", "stage2.learning_rate"),
        ("stage2.beta=on", "stage2.beta"),
        ("seed=true", "seed"),
        ("seed=-1", "seed"),
        ("name=no", "`name` = False"),
        ("data.path=2024-01-01", "data.path"),
        ("model.path=7", "`model.path` = 7"),
        ("seed=4294967296", "seed"),
        ("stage1.weight=.nan", "stage1.weight"),
        ("negatives.stage2.other=.inf", "negatives.stage2.other"),
        ("seed=017", "017"),
        ("stage2.learning_rate=1:30", "1:30"),
        ("stage2.max_steps=0", "stage2.max_steps = 0"),
        ("stage2.focus=1", "focal_dpo, focalpo"),
        ("stage1.floor=1", "stage1.floor"),
        ("stage2.bta=1", "beta"),
        ("stage2.objective=dpp", "dpop"),
        ("stage2.objective=sft", "stage1"),
        ("stage1.objective=dpo", "stage2"),
        ("stage2.objective={dpo: {}}", "stage2.objective"),
        ("stage2.method=dpo", "objective"),
    ],
)
def test_refusals(override: str, named: str) -> None:
    """What YAML 1.1 takes for a number, an update that is none, keys and methods that belong elsewhere."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(overrides=[override])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_method_s_keys_stand_flat() -> None:
    """`--set stage2.beta` sets the method; ℓ_floor and τ are the stage's, which other methods' probes read too."""
    recipe = load_recipe(overrides=["stage2.objective=rpo", "stage2.beta=0.3", "stage2.floor=-4"])
    assert recipe.stage2.method == RPO(beta=0.3) and recipe.stage2.floor == -4
    assert {"objective", "beta", "sft_weight", "floor"} <= recipe.model_dump()["stage2"].keys()
    assert load_recipe(overrides=["stage2.floor=-4"]).stage2.method == CWDPO(floor=-4)
    assert load_recipe(overrides=["stage2.objective=ppo"]).stage2.reference == "live"


def test_recipes_of_earlier_versions() -> None:
    """They list every method's keys: dropped where they say nothing, refused where they say something."""
    every = {n: f.default for m in METHODS.all().values() if m.stage == "stage2" for n, f in m.model_fields.items()}
    assert len(every) > 25
    before = load_recipe(base={"stage2": {**every, "objective": "dpo", "beta": 0.2}})
    assert before.stage2.method == DPO(beta=0.2)
    with pytest.raises(RecipeError, match=r"stage2\.focus belongs to focal_dpo, focalpo"):
        load_recipe(base={"stage2": {**every, "objective": "dpo", "focus": 3.0}})


def test_updates_and_batches_by_hand() -> None:
    """100 rows in batches of 32 are 4 updates, 1.5 passes 6; 32 prompts on 3 processes make no whole micro-batches."""
    section = load_recipe(overrides=["stage2.epochs=1.5", "stage2.batch_size=32"]).stage2
    assert section.updates(100) == 6 and section.model_copy(update={"max_steps": 5}).updates(100) == 5
    assert section.prompts_at_once() == 8 and section.prompts_at_once(8) == 4
    with pytest.raises(RecipeError, match=r"stage2\.batch_size = 32 .* 3 processes"):
        section.prompts_at_once(3)


def test_differences() -> None:
    one = Recipe().model_dump(mode="json")
    other = load_recipe(overrides=["stage2.beta=0.2", "model.lora.r=4"]).model_dump(mode="json")
    found = recipe_differences(one, other)
    assert found[1] == "stage2.beta (was 0.1, now 0.2)"
    assert found[0].startswith("model.lora (was None, now {'r': 4")
    assert recipe_differences(one, {**one, "new": 1}) == ["new (was None, now 1)"]
