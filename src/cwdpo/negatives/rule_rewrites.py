"""Responses rewritten for probes: the same said in other words, or something else said in the same form.

After Ren & Sutherland (2025): a model that learns a response should find its paraphrase likelier too, and should not
take anything of the same form for it. On `scenes` both are exact by the grammar, elsewhere words go by the lexicon.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cwdpo.data.schema import CHOSEN, DIFFICULTIES, REJECTED, PromptGroup
from cwdpo.negatives.lexicon import Lexicon, default_lexicon
from cwdpo.negatives.source import gold_texts, seeded
from cwdpo.negatives.sources.perturb import Slot, caption_of, change, slots
from cwdpo.scenes.grammar import Caption, Meaning, Mention
from cwdpo.scenes.world import COLOURS, KINDS, RELATIONS, SIZES, Scene

__all__ = ["REWRITES", "RewriteKind", "rewritten_by_rules", "source_text"]

RewriteKind = tuple[str, str]
"""Which response is rewritten (`chosen` or `rejected`), and how (`paraphrase` or `form`)."""

REWRITES: Mapping[str, RewriteKind] = {
    f"{of}_{how}": (of, how) for of in (CHOSEN, REJECTED) for how in ("paraphrase", "form")
}
"""Kinds of response by name."""


def source_text(group: PromptGroup, kind: str) -> str | None:
    """Return the response that a kind rewrites: the chosen one, or the hardest rejected one; None if there is none."""
    if REWRITES[kind][0] == CHOSEN:
        return group.chosen.text
    rejected = group.by_role(REJECTED)
    rank = {name: i for i, name in enumerate(DIFFICULTIES)}
    return min(rejected, key=lambda r: rank.get(r.difficulty or "", len(rank))).text if rejected else None


def rewritten_by_rules(groups: Sequence[PromptGroup], kind: str, seed: int) -> dict[str, str]:
    """Return rewritten responses by prompt id; a prompt whose words the rules do not know has none.

    Args:
        groups: Prompts with their responses.
        kind: A key of `REWRITES`.
        seed: Of the draws; each prompt and kind has its own.
    """
    words, how = default_lexicon(), REWRITES[kind][1]
    found: dict[str, str] = {}
    for group in groups:
        text, chance = source_text(group, kind), seeded(seed, group.id, f"probe/{kind}")
        caption = caption_of(text) if text is not None and "scene" in group.facts else None
        if caption is not None:
            make = reworded if how == "paraphrase" else _other_scene(group)
            found[group.id] = make(caption, chance).text
        elif text is not None and (new := _by_lexicon(text, group, how, chance, words)) is not None:
            found[group.id] = new
    return found


# -- scenes ------------------------------------------------------------------------------------------------------------


def reworded(caption: Caption, rng: random.Random) -> Caption:
    """Return a caption with the same meaning and at least one other word, every such choice of words as likely."""
    places = len(caption.nouns) + len(caption.phrases)
    flips = rng.randrange(1, 2**places)
    words = [word ^ (flips >> i & 1) for i, word in enumerate((*caption.nouns, *caption.phrases))]
    return replace(caption, nouns=tuple(words[: len(caption.nouns)]), phrases=tuple(words[len(caption.nouns) :]))


def _other_scene(group: PromptGroup) -> Callable[[Caption, random.Random], Caption]:
    scene = Scene.from_json(group.facts["scene"])

    def make(caption: Caption, rng: random.Random) -> Caption:
        return refilled(caption, scene, rng)

    return make


def refilled(caption: Caption, scene: Scene, rng: random.Random) -> Caption:
    """Return a caption of the same form: every attribute is another one, and no colour or kind is the scene's."""
    seen = {(s.colour, s.kind) for s in scene.shapes}
    colours = [c for c in COLOURS if all(c != colour for colour, _ in seen)]
    kinds = [k for k in KINDS if all(k != kind for _, kind in seen)]

    def other(values: Sequence[str], old: str | None) -> str:
        return rng.choice([v for v in values if v != old])

    mentions = tuple(
        Mention(other(colours, m.colour), other(kinds, m.kind), None if m.size is None else other(SIZES, m.size))
        for m in caption.meaning.mentions
    )
    relations = tuple(other(RELATIONS, r) for r in caption.meaning.relations)
    return replace(caption, meaning=Meaning(mentions, relations))


# -- other texts -------------------------------------------------------------------------------------------------------


def _by_lexicon(text: str, group: PromptGroup, how: str, rng: random.Random, lexicon: Lexicon) -> str | None:
    places = slots(text, [text, *gold_texts(group)], lexicon) if how == "form" else _synonym_slots(text, lexicon)
    return change(text, places, rng) if places else None


def _synonym_slots(text: str, lexicon: Lexicon) -> list[Slot]:
    """Return the places of a text where other words say the same."""
    hits = [(hit, lexicon.synonyms(hit.entry, text[hit.start : hit.end])) for hit in lexicon.find(text, strict=True)]
    return [Slot(hit.entry.kind, hit.start, hit.end, tuple(options)) for hit, options in hits if options]
