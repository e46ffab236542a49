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
from cwdpo.recipe import (
    LoraSection,
    ModelSection,
    Recipe,
    Stage1Section,
    Stage2Section,
)
from cwdpo.recipe.load_recipe import commented_yaml, load_recipe, recipe_differences

SOURCE = Path(str(cwdpo.__file__)).parent


def sections() -> list[type[BaseModel]]:
    """Every section of a recipe, the recipe itself first."""
    found: list[type[BaseModel]] = [Recipe]
    for model in found:
        for field in model.model_fields.values():
            options = [field.annotation, *typing.get_args(field.annotation)]
            found += [o for o in options if isinstance(o, type) and issubclass(o, BaseModel) and o not in found]
    return found


FIELDS = sorted({(model.__name__, name) for model in sections() for name in model.model_fields})


@pytest.fixture(scope="module")
def names_used() -> set[str]:
    """Names that the package reads as attributes or names in a string, outside of the recipe itself."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.name in ("recipe.py", "recipe/files.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_no_dead_options(section: str, name: str, names_used: set[str]) -> None:
    assert name in names_used, f"nothing reads {section}.{name}"


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
    seed=st.integers(-(2**40), 2**40),
    model=st.builds(
        ModelSection,
        path=st.sampled_from(["scenes", "owner/name", "/a b/c:d", "no", "1e5", "~", "#x", "'q\""]),
        freeze=st.lists(st.sampled_from(["vision", "projector"]), unique=True),
        lora=st.none() | st.builds(LoraSection, r=st.integers(1, 64), dropout=st.floats(0, 0.99)),
        min_pixels=st.none() | st.integers(1, 10**9),
    ),
    stage1=st.builds(Stage1Section, learning_rate=st.floats(1e-12, 1), warmup_ratio=st.floats(0, 0.99)),
    stage2=st.builds(Stage2Section, floor=st.floats(-1e6, 1e6), detach=st.booleans()),
    report_to=st.lists(st.sampled_from(["wandb", "tensorboard", "null", "yes"])),
)


@settings(deadline=None, max_examples=40)
@given(RECIPES)
def test_written_recipes_load_back_equal(recipe: Recipe) -> None:
    assert Recipe.model_validate(yaml.safe_load(commented_yaml(recipe))) == recipe
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe_differences(recipe.model_dump(mode="json"), yaml.safe_load(recipe.to_yaml())) == []


def keys_of(values: dict[str, Any]) -> list[str]:
    return [k for key, value in values.items() for k in (key, *(keys_of(value) if isinstance(value, dict) else ()))]


def test_commented_yaml_explains_every_field() -> None:
    text = commented_yaml(Recipe())
    fields = keys_of(Recipe().model_dump())
    assert [name for name in fields if f"{name}: " not in text and f"{name}:\n" not in text] == []
    assert text.count("# ") > len(fields)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("stage2.beta=0.2", ("stage2", "beta"), 0.2),
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
    assert load_recipe(path, ["stage2.beta=0.4", "stage2.beta=0.5"]).stage2.beta == 0.5
    assert load_recipe(path).stage2.beta == 0.3
    base = {"stage2": {"beta": 0.3}}
    load_recipe(base=base, overrides=["stage2.beta=0.4"])
    assert base == {"stage2": {"beta": 0.3}}


def test_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml") == Recipe()


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(base={"stage2": {"beta": -1, "tau": 0}, "seed": "x"})
    assert str(caught.value).endswith("(and 2 more)") and "\n" not in str(caught.value)


def test_differences() -> None:
    one = Recipe().model_dump(mode="json")
    other = load_recipe(overrides=["stage2.beta=0.2", "model.lora.r=4"]).model_dump(mode="json")
    found = recipe_differences(one, other)
    assert found[1] == "stage2.beta (was 0.1, now 0.2)"
    assert found[0].startswith("model.lora (was None, now {'r': 4")
    assert recipe_differences(one, {**one, "new": 1}) == ["new (was None, now 1)"]
