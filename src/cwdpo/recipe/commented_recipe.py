"""A recipe as YAML with comments: what is usually set, or every field."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import yaml

from cwdpo.recipe.recipe import Recipe
from cwdpo.recipe.stage_sections import StageSection
from cwdpo.section import Described, Section

__all__ = ["commented_yaml"]

_WIDTH = 110

_STAGE = ("objective", "learning_rate", "epochs", "batch_size", "micro_batch_size")
_USUAL = {
    *("name", "seed", "model.path", "model.dtype", "model.freeze", "model.lora", "model.lora.r", "model.lora.alpha"),
    *("data.path", "data.held_out", "data.on_bad_row", "negatives.stage1.dataset", "negatives.stage2.dataset"),
    *(f"{stage}.{key}" for stage in ("stage1", "stage2") for key in _STAGE),
    *("stage2.floor", "stage2.tau"),
}
"""Keys that the short form shows, besides the methods' own and those that are not at their default."""


def commented_yaml(recipe: Recipe, *, every_field: bool = False) -> str:
    """Return a recipe as YAML with comments.

    Args:
        recipe: The recipe.
        every_field: Show every field with its whole description; else what is usually set, and what is not at its
            default, each with one sentence.
    """
    if every_field:
        head = [f"# {Recipe.__doc__}", "# Every key can also be set on the command line: --set stage2.beta=0.2"]
    else:
        head = [
            "# What is usually set; all other fields are at their defaults. `cwdpo init --all` writes every field.",
            "# On the command line --set sets any of them, also one that is not here: --set stage2.max_steps=100",
        ]
    lines = [*head, ""]
    default = Recipe()
    for key in recipe.described():
        if every_field:
            lines += _described(recipe, key, 0)
        else:
            lines += _brief(key, getattr(default, key.name), _plain(recipe, key), key.name)
        if isinstance(key.value, Section) and lines[-1]:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _plain(section: Section, key: Described) -> Any:
    return section.model_dump(mode="json")[key.name]


def _flow(value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000, sort_keys=False)
    return dumped.removesuffix("...\n").strip()


def _described(section: Section, key: Described, depth: int) -> list[str]:
    """Return a key with its whole description above it, and all that is below it."""
    pad = "  " * depth
    lines = [f"{pad}# {line}" for line in textwrap.wrap(key.description, _WIDTH - len(pad))]
    if isinstance(key.value, Section):
        lines.append(f"{pad}{key.name}:")
        return lines + [line for below in key.value.described() for line in _described(key.value, below, depth + 1)]
    return [*lines, f"{pad}{key.name}: {_flow(_plain(section, key))}"]


def _shown(section: Section, default: Any, place: str) -> dict[str, Any]:
    """Return what the short form shows of a section, as plain values."""
    shown: dict[str, Any] = {}
    of_method = type(section.method).model_fields if isinstance(section, StageSection) else {}
    for key in section.described():
        own = getattr(default, key.name, None)
        if isinstance(key.value, Section):
            below = _shown(key.value, own or type(key.value).model_construct(), f"{place}.{key.name}")
            if below or own is None:
                shown[key.name] = below
        elif f"{place}.{key.name}" in _USUAL or key.name in of_method or key.value != own:
            shown[key.name] = _plain(section, key)
    return shown


def _brief(key: Described, default: Any, plain: Any, place: str) -> list[str]:
    """Return a key of the recipe in the short form: a line for each key below it, with one sentence."""
    if not isinstance(key.value, Section):
        return _one_sentence("", key, plain) if place in _USUAL or key.value != default else []
    shown = _shown(key.value, default, place)
    lines = [
        line
        for below in key.value.described()
        if below.name in shown
        for line in _one_sentence("  ", below, shown[below.name])
    ]
    return [f"{key.name}:", *lines] if lines else []


def _one_sentence(pad: str, key: Described, value: Any) -> list[str]:
    """Return a key with what fits of its description beside it: all, one sentence, or one sentence above it."""
    line = f"{pad}{key.name}: {_flow(value)}"
    sentence = re.split(r"(?<=[.;])(?<!Eq\.)\s", key.description)[0]
    for words in (key.description, sentence):
        if len(beside := f"{line}  # {words.rstrip('.;')}") <= _WIDTH:
            return [beside]
    return [*(f"{pad}# {words}" for words in textwrap.wrap(sentence.rstrip(".;"), _WIDTH)), line]
