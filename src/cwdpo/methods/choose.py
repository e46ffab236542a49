"""From what a recipe says to a method: `objective`, and the keys that stand beside it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from cwdpo.errors import RecipeError
from cwdpo.methods.base import METHODS, Method
from cwdpo.section import first_mistake

__all__ = ["choose_method", "kind_of"]

Stage = Literal["stage1", "stage2"]

_EVERY_METHOD: Mapping[Stage, set[str]] = {
    "stage1": {"regularizer", "weight", "nll_floor", "hinge_scope", "epsilon"},
    "stage2": {"shift_weight", "focus", "winner_penalty", "guidance", "image_weight", "gae_lambda"},
}
"""Earlier versions wrote the keys of every method into recipes (`cwdpo init`, run directories): where a section has all
of these, other methods' keys are dropped if they are at their defaults."""


def kind_of(objective: Any, key: str) -> type[Method]:
    """Return the class that an objective names.

    Args:
        objective: Value of the recipe's key.
        key: That key, for errors.

    Raises:
        RecipeError: There is none.
    """
    if not isinstance(objective, str):
        raise RecipeError(f"{key} = {objective!r}: must be the name of a method (`cwdpo methods`)")
    try:
        return METHODS.find(objective)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from None


def choose_method(objective: Any, settings: Mapping[str, Any], *, place: Stage, others: Sequence[str]) -> Method:
    """Return the method that a stage of a recipe asks for.

    Args:
        objective: Value of `objective`.
        settings: Keys of the stage that are the method's, or nobody's.
        place: The stage.
        others: Keys of every stage, for hints.

    Raises:
        RecipeError: There is no such method for that stage, or a key is not its own or breaks its rule.
    """
    kind = kind_of(objective, f"{place}.objective")
    if kind.stage != place:
        raise RecipeError(f"{place}.objective = {objective!r}: is a method of {kind.stage}; see `cwdpo methods`")
    if foreign := _foreign(kind, settings, place):
        raise RecipeError(_whose(foreign, kind, place, others))
    try:
        return kind.model_validate({name: value for name, value in settings.items() if name in kind.model_fields})
    except ValidationError as error:
        raise RecipeError(first_mistake(error, f"{place}.")) from None


def _foreign(kind: type[Method], settings: Mapping[str, Any], place: Stage) -> list[str]:
    """Return the keys that are not the method's."""
    foreign = [name for name in settings if name not in kind.model_fields]
    if foreign and settings.keys() >= _EVERY_METHOD[place]:
        owners = _owners(place)
        defaults = {name: [owner.model_fields[name].default for owner in owners.get(name, [])] for name in foreign}
        return [name for name in foreign if settings[name] not in defaults[name]]
    return foreign


def _whose(foreign: Sequence[str], kind: type[Method], place: Stage, others: Sequence[str]) -> str:
    """Say whose the first of some keys is, or what it may be meant to be."""
    name, more = foreign[0], ", ".join(foreign[1:])
    if owners := _owners(place).get(name):
        also = f" (the same with {more})" if more else ""
        return f"{place}.{name} belongs to {', '.join(o.name for o in owners)}; the objective is {kind.name}{also}"
    known = [*kind.model_fields, *others]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(dict.fromkeys(known))}"
    return f"unknown key `{place}.{name}`; {hint}" + (f" (and {len(foreign) - 1} more)" if more else "")


def _owners(place: Stage) -> dict[str, list[type[Method]]]:
    """Return the methods of a stage that have each setting."""
    owners: dict[str, list[type[Method]]] = {}
    for method in METHODS.all().values():
        for name in method.model_fields if method.stage == place else ():
            owners.setdefault(name, []).append(method)
    return owners
