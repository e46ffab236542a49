"""Rejected responses for a stage: drawn from several sources by share, on-policy ones generated and kept on disk."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.files import append_jsonl, read_jsonl, text_digest, write_jsonl
from cwdpo.models.generation import generate
from cwdpo.recipe import SourceMix
from cwdpo.scoring.encode import PromptEncoder

__all__ = ["NegativePolicy", "build_negatives", "normalise"]

_SOURCES = ("dataset", "other", "beam", "sample")
_ON_POLICY = ("beam", "sample")


def normalise(text: str) -> str:
    """Return a text as negatives are compared with gold responses: lower case, words only."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


@dataclass(frozen=True)
class NegativePolicy:
    """The model that writes on-policy negatives.

    Attributes:
        load: Loads the model; called only if something has to be generated.
        encoder: Its prompt encoder.
        digest: Content of the model, so that what another policy wrote is not taken for its own.
    """

    load: Callable[[], Any]
    encoder: PromptEncoder
    digest: str


def build_negatives(
    groups: Sequence[PromptGroup],
    mix: SourceMix,
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PromptGroup], dict[str, int]]:
    """Give every prompt its chosen response and `mix.per_prompt` rejected ones.

    The draw among sources depends on the seed and the row's id alone. A prompt that a source has nothing for (no
    rejected response in the data, every hypothesis a gold one) draws from the others.

    Args:
        groups: Prompts with chosen (and, for `dataset`, rejected) responses.
        mix: Shares and settings.
        seed: Fixes the draw.
        folder: Where generated texts are kept; a killed run goes on from there.
        policy: Who writes on-policy negatives.
        progress: Called with prompts generated so far and their number.

    Returns:
        The prompts with their negatives, and how many negatives came from each source; prompts that no source had
        anything for are left out and counted under `none`.

    Raises:
        DataError: No prompt got a negative.
    """
    shares = {name: share for name in _SOURCES if (share := getattr(mix, name)) > 0}
    written = _write_on_policy(groups, mix, shares, seed=seed, folder=folder, policy=policy, progress=progress)
    found: list[PromptGroup] = []
    counts: Counter[str] = Counter()
    answers = _answers(groups)
    for group in groups:
        pools = {name: _pool(name, group, answers, mix.per_prompt, seed, written) for name in shares}
        drawn = _draw(pools, _wishes(shares, mix.per_prompt, seed, group), _rng(seed, group.id, "order"))
        if not drawn:
            counts["none"] += 1
            continue
        counts.update(source for source, _ in drawn)
        found.append(group.with_responses((*group.by_role(CHOSEN)[:1], *(response for _, response in drawn))))
    if not found:
        raise DataError(
            f"none of {len(groups)} prompts got a negative from {', '.join(shares)}; give the data rejected responses, "
            "or set another source in negatives.stage1 and negatives.stage2, for instance beam: 1 or other: 1"
        )
    return found, dict(counts)


def _rng(seed: int, identity: str, purpose: str) -> random.Random:
    return random.Random(text_digest(str(seed), identity, purpose))


def _wishes(shares: dict[str, float], count: int, seed: int, group: PromptGroup) -> list[str]:
    """Return the source that each negative of a prompt is to come from."""
    return _rng(seed, group.id, "source").choices(list(shares), weights=list(shares.values()), k=count)


def _draw(pools: dict[str, list[Response]], wishes: list[str], rng: random.Random) -> list[tuple[str, Response]]:
    """Take one response per wish, from the wished source while it lasts, else from any other; no text twice."""
    left = {name: rng.sample(pool, len(pool)) for name, pool in pools.items()}
    taken: dict[str, tuple[str, Response]] = {}
    for wish in wishes:
        candidates = ((name, r) for name in (wish, *(n for n in left if n != wish)) for r in _emptied(left[name]))
        for name, response in candidates:
            key = normalise(response.text) or response.text
            if key not in taken:
                taken[key] = (name, response)
                break
    return list(taken.values())


def _emptied(pool: list[Response]) -> Iterator[Response]:
    while pool:
        yield pool.pop()


def _gold(group: PromptGroup) -> set[str]:
    return {normalise(t) for t in (*group.references, *(r.text for r in group.by_role(CHOSEN)))}


def _answers(groups: Sequence[PromptGroup]) -> list[str]:
    """Return the chosen responses of all prompts, each once, in an order that does not depend on that of the rows."""
    return sorted({group.chosen.text for group in groups})


def _pool(
    name: str,
    group: PromptGroup,
    answers: Sequence[str],
    count: int,
    seed: int,
    written: dict[str, dict[str, list[str]]],
) -> list[Response]:
    """Return the candidates of one source for one prompt. What comes with the data is taken as it is."""
    if name == "dataset":
        return list(group.by_role(REJECTED))
    gold = {*_gold(group), ""}
    if name == "other":
        rng = _rng(seed, group.id, "other")
        drawn = (answers[rng.randrange(len(answers))] for _ in range(20 * count))
        fit = dict.fromkeys(text for text in drawn if normalise(text) not in gold)
        return [Response(text, REJECTED, "other") for text in list(fit)[:count]]
    texts = dict.fromkeys(written.get(name, {}).get(group.id, []))
    return [Response(text, REJECTED, name) for text in texts if normalise(text) not in gold]


def _write_on_policy(
    groups: Sequence[PromptGroup],
    mix: SourceMix,
    shares: dict[str, float],
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, list[str]]]:
    """Generate what the on-policy sources are asked for, in fixed chunks, each kept as soon as it is there."""
    written: dict[str, dict[str, list[str]]] = {}
    answers = _answers(groups)
    model: Any = None
    for name in (n for n in shares if n in _ON_POLICY):
        asked = [
            group
            for group in groups
            if name in _wishes(shares, mix.per_prompt, seed, group)
            or not any(_pool(n, group, answers, mix.per_prompt, seed, {}) for n in shares if n not in _ON_POLICY)
        ]
        settings = mix.model_dump(include={"beam_width", "temperature", "max_new_tokens", "batch_size", "per_prompt"})
        key = text_digest(policy.digest, name, str(seed), str(settings), *(g.id for g in asked))
        path = folder / f"{name}.jsonl"
        kept = [row for row in read_jsonl(path) if row["key"] == key] if path.is_file() else []
        write_jsonl(path, kept)
        for start in range(len(kept) * mix.batch_size, len(asked), mix.batch_size):
            model = model if model is not None else policy.load()
            part = asked[start : start + mix.batch_size]
            texts = _generate(model, policy.encoder, part, name, mix, seed + start)
            row = {"key": key, "texts": {g.id: t for g, t in zip(part, texts, strict=True)}}
            append_jsonl(path, row)
            kept.append(row)
            if progress is not None:
                progress(min(start + mix.batch_size, len(asked)), len(asked))
        written[name] = {identity: texts for row in kept for identity, texts in row["texts"].items()}
    return written


def _generate(
    model: Any, encoder: PromptEncoder, part: Sequence[PromptGroup], name: str, mix: SourceMix, seed: int
) -> list[list[str]]:
    count = max(mix.beam_width, mix.per_prompt)
    ways = {
        "beam": {"num_beams": count, "num_return_sequences": count},
        "sample": {"temperature": mix.temperature, "num_return_sequences": 2 * mix.per_prompt + 2, "seed": seed},
    }
    return generate(
        model,
        encoder.tokenizer,
        lambda prompts: encoder.prompt_inputs(prompts, padding=True),
        part,
        max_new_tokens=mix.max_new_tokens,
        **ways[name],  # type: ignore[arg-type]
    )
