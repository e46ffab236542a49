"""Recipes that nobody would write: the recipe, or one line that says what is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import MANY, VALUES, cases, damaged, mutated
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.errors import RecipeError
from cwdpo.recipe.load_recipe import load_recipe

FULL: dict[str, Any] = load_recipe().model_dump(mode="json")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def settled(path: Path, *overrides: str) -> None:
    """A recipe is read and comes back the same from what it writes, or is refused in one line."""
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 1500
        return
    again = path.with_name("again.yaml")
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(again) == recipe
    recipe.warnings()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


@given(value=mutated(FULL))
@cases(15)
def test_a_recipe_with_changed_values(file: Path, value: Any) -> None:
    file.write_text(yaml.dump(value), encoding="utf-8")
    settled(file)


@given(value=VALUES)
@cases(60)
def test_a_document_of_any_kind(file: Path, value: Any) -> None:
    file.write_text(yaml.dump(value), encoding="utf-8")
    settled(file)


@given(data=st.data())
@cases(40)
def test_a_damaged_file(file: Path, data: st.DataObject) -> None:
    file.write_bytes(data.draw(damaged(data.draw(st.sampled_from(RECIPES)).read_bytes())))
    settled(file)


KEYS = [f"{section}.{key}" for section, v in FULL.items() if isinstance(v, dict) for key in v]


@given(key=st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), value=st.one_of(VALUES.map(str), st.text()))
@cases(80)
def test_an_override(file: Path, key: str, value: str) -> None:
    file.write_text("name: x\n", encoding="utf-8")
    settled(file, f"{key}={value}")


def _bomb(line: str) -> str:
    return "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} " + line.format(",".join([f"*a{i - 1}"] * 9)) + "\n" for i in range(1, 12)
    )


DOCUMENTS = {
    "a billion aliases": _bomb("[{}]").replace("a11:", "name:"),
    "a billion merges": _bomb("{{<<: [{}]}}").replace("a11:", "stage2:"),
    "an alias of itself": "stage2: &a\n  beta: *a\n",
    "nested lists": "model: " + "[" * 20_000 + "]" * 20_000,
    "nested objects": "model: " + "{a: " * 5_000 + "1" + "}" * 5_000,
    "nested blocks": "\n".join(" " * i + "a:" for i in range(2_000)),
    "a long number": "seed: " + "9" * 100_000,
    "a long hexadecimal": "seed: 0x" + "f" * 100_000,
    "a number of 65 bits": "seed: 36893488147419103232",
    "a call": "name: !!python/object/apply:os.system [touch x]",
    "a module": "name: !!python/name:os.system",
    "no date": "name: 2026-13-45",
    "no number": "seed: !!int abc",
    "a NUL": 'model: {path: "a\\0b"}',
    "half a surrogate": 'name: "\\ud800"',
    "two documents": "name: a\n---\nname: b\n",
    "UTF-16": "name: a\n".encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_is_refused_in_a_moment(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(DOCUMENTS[name], encoding="utf-8")
    begin = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert time.monotonic() - begin < 5 and "\n" not in str(caught.value)


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage1: &s {batch_size: 8}\nstage2: *s\n", encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.stage1.batch_size == recipe.stage2.batch_size == 8


if MANY:
    # Every shipped recipe is a start, too.
    @pytest.mark.parametrize("shipped", RECIPES, ids=lambda p: p.stem)
    def test_a_shipped_recipe_changed(file: Path, shipped: Path) -> None:
        @given(value=mutated(yaml.safe_load(shipped.read_text(encoding="utf-8"))))
        @cases(60)
        def run(value: Any) -> None:
            file.write_text(yaml.dump(value), encoding="utf-8")
            settled(file)

        run()
