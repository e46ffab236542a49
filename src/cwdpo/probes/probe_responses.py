"""Further kinds of response for a probe set: what a model should find likely, unlikely, or not care about.

After Ren & Sutherland (2025). Answers of other prompts, sentences of equal length and shuffled words are made here; the
model's own sample and rewritten responses are written elsewhere and given. Every draw depends on the seed and the
prompt's id alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from cwdpo.data.schema import CHOSEN, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.recipe.measure_sections import ResponseKind

__all__ = ["KINDS", "WRITTEN", "with_kinds"]

WRITTEN = ("own", "chosen_paraphrase", "chosen_form", "rejected_paraphrase", "rejected_form")
"""Kinds whose texts are given."""

KINDS: tuple[str, ...] = get_args(ResponseKind)
"""Every kind that can be asked for."""


def with_kinds(
    groups: Sequence[PromptGroup],
    kinds: Sequence[str],
    *,
    train: Iterable[PromptGroup] = (),
    written: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[PromptGroup]:
    """Add kinds of response to held-out prompts.

    Args:
        groups: Held-out prompts with a chosen response.
        kinds: Some of `KINDS`; kinds that a prompt has already are left as they are.
        train: Training prompts, for `other_train` and the random kinds; read once, and only for these.
        written: For the kinds of `WRITTEN`, the texts by prompt id; a prompt without one gets no such response.
        seed: Of all draws.

    Returns:
        The prompts, each with one response of each kind after its own responses.

    Raises:
        DataError: A kind is unknown, or there is no other prompt to take it from.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise DataError(f"probe kind {unknown[0]!r} is unknown; take some of {', '.join(KINDS)}")
    golds = _golds(train) if set(kinds) & {"other_train", "random", "random_shuffled"} else []
    return [_extended(group, _golds(groups), golds, kinds, written or {}, seed) for group in groups]


def _extended(
    group: PromptGroup,
    test: Sequence[tuple[str, str]],
    train: Sequence[tuple[str, str]],
    kinds: Sequence[str],
    written: Mapping[str, Mapping[str, str]],
    seed: int,
) -> PromptGroup:
    gold = group.chosen.text
    # One RNG a kind: leaving a kind out does not change the others.
    chance = {kind: random.Random(f"probe/{seed}/{group.id}/{kind}") for kind in KINDS}
    added: list[Response] = []
    for kind in kinds:
        if group.by_role(kind):
            continue
        if kind in WRITTEN:
            text = written.get(kind, {}).get(group.id, "")
        elif kind == "other_train":
            text = chance[kind].choice(_others(train, group, kind))
        elif kind == "other_test":
            text = chance[kind].choice(_others(test, group, kind))
        elif kind == "shuffled":
            text = _shuffled(gold, chance[kind])
        else:
            text = _of_length(_others(train, group, kind), len(gold.split()), chance["random"])
            text = _shuffled(text, chance[kind]) if kind == "random_shuffled" else text
        if text:
            added.append(Response(text, kind, "probe"))
    return group.with_responses([*group.responses, *added])


def _golds(groups: Iterable[PromptGroup]) -> list[tuple[str, str]]:
    """Return ids and chosen responses."""
    return [(g.id, g.chosen.text) for g in groups if g.by_role(CHOSEN)]


def _others(golds: Sequence[tuple[str, str]], but: PromptGroup, kind: str) -> list[str]:
    """Return the chosen responses of other prompts that are no right answer to this one."""
    right = {*but.references, *(r.text for r in but.by_role(CHOSEN))}
    found = [text for name, text in golds if name != but.id and text not in right]
    if not found:
        raise DataError(f"{but.origin or but.id}: there is no other prompt to take the probe kind {kind!r} from")
    return found


def _of_length(texts: Sequence[str], words: int, chance: random.Random) -> str:
    nearest = min(abs(len(t.split()) - words) for t in texts)
    return chance.choice([t for t in texts if abs(len(t.split()) - words) == nearest])


def _shuffled(text: str, chance: random.Random) -> str:
    """Return the words in another order, as far as there is one."""
    words = text.split()
    for _ in range(20):
        mixed = chance.sample(words, len(words))
        if mixed != words:
            return " ".join(mixed)
    return text
