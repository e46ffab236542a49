"""Sums of methods: `objective: [{dpo: {beta: 0.1}, weight: 0.8}, {bco: {}, weight: 0.2}, {nll: {}, weight: 1}]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, field_serializer, field_validator

from cwdpo.methods.base import Method, Needs
from cwdpo.section import Section, first_mistake

if TYPE_CHECKING:
    from torch import Tensor

    from cwdpo.methods.pair_logps import PairLogps

__all__ = ["Sum", "Term", "sum_of"]


class Term(Section):
    """A method and its weight in a sum."""

    method: Method
    """The method with its settings."""
    weight: float = Field(default=1.0, gt=0)
    """What its loss is multiplied with."""
    objective: str = ""
    """How a recipe names it (`my_losses.py:MyLoss`); the method's name if left out."""

    @property
    def label(self) -> str:
        """What the recipe, a tracker and a report call it."""
        return self.objective or self.method.label


class Sum(Method):
    """The weighted sum of several losses on the same pairs: `Sum(terms=[Term(method=DPO(), weight=0.8), …])`.

    Every term is given what it would be given alone.
    """

    name: ClassVar[str] = "sum of methods"
    formula: ClassVar[str] = "Σ weight · loss"

    terms: tuple[Term, ...] = Field(min_length=1)
    """Methods of Stage 2 on pairs, with their weights."""

    @field_validator("terms")
    @classmethod
    def _on_pairs(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        for term in terms:
            if term.method.stage != "stage2" or term.method.on_policy or isinstance(term.method, Sum):
                raise ValueError(f"{term.method.name}: is no term of a sum, which is made of methods on pairs")
        if len({term.method.needs.every_chosen for term in terms}) > 1:
            raise ValueError("all terms of a sum pair every chosen response with the rejected ones, or none does")
        if len(images := {term.method.needs.image for term in terms} - {""}) > 1:
            raise ValueError(f"{' and '.join(sorted(images))}: the terms of a sum alter images in the same way or not")
        return terms

    @field_serializer("terms")
    def _as_written(self, terms: tuple[Term, ...]) -> list[dict[str, Any]]:
        return [{t.label: t.method.model_dump(mode="json"), "weight": t.weight} for t in terms]

    @property
    def label(self) -> str:
        """The names of its terms: `dpo+bco+nll`."""
        return "+".join(term.label for term in self.terms)

    @property
    def needs(self) -> Needs:
        """What any of the terms needs."""
        return reduce(_both, (term.method.needs for term in self.terms))

    @property
    def reward_scale(self) -> float:
        """β of the first term that has one."""
        return next((t.method.reward_scale for t in self.terms if hasattr(t.method, "beta")), 1.0)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the weighted sum for each pair."""
        return sum((t.weight * t.method.loss(_only(pairs, t.method.needs)) for t in self.terms), pairs.chosen * 0)


def sum_of(terms: Sequence[Any], make: Callable[[str, Mapping[str, Any]], Method], key: str) -> Sum:
    """Return a sum as a recipe writes it.

    Args:
        terms: `{name: {setting: value}, weight: value}` each, or a name.
        make: Name and settings to a method.
        key: Key of the recipe, for errors.

    Raises:
        ValueError: A term is written otherwise.
    """
    made: list[Term] = []
    for number, written in enumerate(terms):
        given: Any = {written: {}} if isinstance(written, str) else written
        named = [name for name in given if name != "weight"] if isinstance(given, Mapping) else []
        settings = given[named[0]] if len(named) == 1 else None
        if not isinstance(settings, Mapping | None) or len(named) != 1:
            raise ValueError(
                f"{key}.{number} = {written!r}: must be one method, as in {{dpo: {{beta: 0.1}}, weight: 1}}"
            )
        weight = {"weight": given["weight"]} if "weight" in given else {}
        method = make(named[0], settings or {})
        try:
            made.append(Term(method=method, objective=named[0], **weight))
        except ValidationError as error:
            raise ValueError(first_mistake(error, f"{key}.{number}.")) from None
    try:
        return Sum(terms=tuple(made))
    except ValidationError as error:
        raise ValueError(f"{key}: {first_mistake(error)}") from None


def _both(one: Needs, other: Needs) -> Needs:
    asked = [needs for needs in (one, other) if needs.image]
    return Needs(
        reference=one.reference or other.reference,
        image=one.image or other.image,
        altered=tuple(dict.fromkeys(role for needs in asked for role in needs.altered)) or one.altered,
        altered_reference=any(needs.altered_reference for needs in asked or (one,)),
        every_chosen=one.every_chosen,
        span=one.span or other.span,
        cut=one.cut or other.cut,
        scores=one.scores or other.scores,
        whole_batch=one.whole_batch or other.whole_batch,
    )


def _only(pairs: PairLogps, needs: Needs) -> PairLogps:
    """Return pairs without what a method has not asked for and others have."""
    return replace(
        pairs,
        score_gap=pairs.score_gap if needs.scores else None,
        span=pairs.span if needs.span else None,
        cut=pairs.cut if needs.cut else None,
        altered=pairs.altered if needs.image else None,
    )
