"""Negatives drawn from several sources: shares, fallbacks, filters, what is dropped, what is kept on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from built_negatives import build
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.negatives.filters import IDENTICAL, CandidateFilter
from cwdpo.negatives.generating_model import NegativePolicy, ResponseScorer
from cwdpo.negatives.source import Candidate
from cwdpo.negatives.text import normalise
from cwdpo.recipe import FilterSection, SourceMix
from cwdpo.scoring.collator import PromptEncoder
from tiny_models import sample_groups
from tiny_runs import rows_of


class Counted:
    """A policy that counts how often its model is loaded."""

    def __init__(self, pair: tuple[Any, Any]) -> None:
        self.model, processor = pair
        self.loads = 0
        self.policy = self.fresh(PromptEncoder(processor))

    def fresh(self, encoder: PromptEncoder, digest: str = "tiny") -> NegativePolicy:
        def load() -> Any:
            self.loads += 1
            return self.model

        self.encoder = encoder
        return NegativePolicy(load, encoder, digest)

    def again(self, digest: str = "tiny") -> NegativePolicy:
        return self.fresh(self.encoder, digest)


@pytest.fixture
def tiny(tiny_pair: Callable[[str], tuple[Any, Any]]) -> Counted:
    return Counted(tiny_pair("qwen2_5_vl"))


def rows(count: int, **changes: Any) -> list[PromptGroup]:
    """Text-only rows with a caption that every cheap source can do something with."""
    colours = ("red", "green", "blue", "yellow")
    return [
        PromptGroup(
            f"row-{i}",
            (),
            ({"role": "user", "content": [{"type": "text", "text": "describe"}]},),
            (
                Response(f"A {colours[i % 4]} car number {i} near a dog"),
                Response(f"nothing {i}", REJECTED, "dataset", "easy"),
            ),
            **changes,
        )
        for i in range(count)
    ]


def mix(**shares: Any) -> SourceMix:
    return SourceMix(**{"dataset": 0, "max_new_tokens": 4, "batch_size": 2, "beam_width": 2} | shares)


def test_shares_are_kept(tmp_path: Path):
    found = build(rows(400), mix(dataset=1, other=1, perturb=2), tmp_path)
    assert sum(found.counts.values()) == 400 and set(found.counts) == {"dataset", "other", "perturb"}
    # binomial(400, 1/2): standard deviation 10
    assert 160 < found.counts["perturb"] < 240
    for group in found.groups:
        assert len(group.by_role(CHOSEN)) == len(group.by_role(REJECTED)) == 1
    sources = Counter(r.source for g in found.groups for r in g.by_role(REJECTED))
    assert sources == Counter(found.counts)
    assert {name: t.used for name, t in found.sources.items()} == found.counts


def test_the_draw_depends_on_the_row_alone(tmp_path: Path):
    groups, chosen = rows(30), mix(dataset=1, perturb=1, shuffle=1, per_prompt=2)
    whole = build(groups, chosen, tmp_path / "a").texts()
    assert build(groups[::-1], chosen, tmp_path / "b").texts() == whole
    assert build(groups[7:9], chosen, tmp_path / "c").texts() == {k: whole[k] for k in ("row-7", "row-8")}
    assert build(groups, chosen, tmp_path / "d", seed=1).texts() != whole


def test_a_source_without_anything_gives_way(tmp_path: Path):
    groups = [replace(g, responses=(Response("hm hm"), *g.responses[1:])) for g in rows(5)]
    assert build(groups, mix(dataset=1e-9, perturb=1), tmp_path).counts == {"dataset": 5}
    lone = [g.with_responses([Response("hm hm")]) for g in rows(5)]
    with pytest.raises(DataError, match="none of 5 prompts got a negative from dataset, perturb"):
        build(lone, mix(dataset=1, perturb=1), tmp_path)
    some = build([*lone[:2], *rows(5)[2:]], mix(perturb=1), tmp_path)
    assert some.counts == {"perturb": 3, "none": 2} and [g.id for g in some.groups] == ["row-2", "row-3", "row-4"]


def finding(rules: FilterSection, text: str, source: str = "beam", *, gold: str = "a red car near a dog") -> Any:
    group = PromptGroup("row", (), (), (Response(gold),), ("a dog beside a vehicle",))
    return CandidateFilter(rules)(group, Candidate(text, source=source))


def test_filters_by_hand():
    plain = FilterSection()
    same = finding(plain, "A red car, near a dog!")
    assert same.identical and same.suspect and same.reason == IDENTICAL and same.length_ratio == 1
    assert finding(plain, "a red car near a dog", "dataset").reason is None  # taken as it is
    assert finding(plain, "!?").reason == "no words"
    # speaks of car, near, dog: all are spoken of; the colour is left out
    sure = finding(plain, "a car near a dog")
    assert sure.suspect and sure.similarity == 1 and sure.reason is None
    # blue, blue car, car, near, dog: three of five
    doubtful = finding(FilterSection(similarity=0.6), "a blue car near a dog")
    assert doubtful.similarity == pytest.approx(0.6) and "similarity to gold 0.60" in doubtful.reason
    assert finding(FilterSection(similarity=0.61), "a blue car near a dog").reason is None
    # five of the six words in order: ROUGE-L = 2 * 5 / (6 + 6)
    rouge = finding(FilterSection(similarity=0.8, measure="rouge_l"), "a blue car near a dog")
    assert rouge.similarity == pytest.approx(10 / 12) and rouge.reason is not None
    short = FilterSection(shortest=0.5, longest=1.5)
    assert finding(short, "a dog").reason == "length ratio 0.33 (negatives filter: shortest 0.5)"
    assert finding(short, "a cat " * 5).reason == "length ratio 1.67 (negatives filter: longest 1.5)"
    assert finding(short, "a cat and a cow").reason is None
    assert finding(plain, "dog a near car red a", "shuffle").similarity is None
    strict = CandidateFilter(FilterSection(logp=-5))
    assert strict.too_easy(-5.01) is not None and strict.too_easy(-5.0) is None
    assert CandidateFilter(plain).too_easy(-99) is None


def test_every_drop_is_listed(tmp_path: Path):
    groups = [replace(g, references=(f"nothing {i}",)) for i, g in enumerate(rows(6))]
    chosen = mix(dataset=1, other=1, filter=FilterSection(similarity=1.0))
    found = build(groups, chosen, tmp_path)
    listed = rows_of(tmp_path / "dropped.jsonl")
    assert listed == found.dropped and len(listed) == 6
    assert {row["id"] for row in listed} == {g.id for g in groups} and {row["source"] for row in listed} == {"dataset"}
    assert listed[0]["reason"].startswith("similarity to gold 1.00") and listed[0]["difficulty"] == "easy"
    assert found.counts == {"other": 6} and found.sources["dataset"].identical == found.sources["dataset"].dropped == 6


def test_a_negative_that_is_too_easy_is_drawn_again(tmp_path: Path, tiny: Counted):
    groups = rows(6)
    chosen = mix(dataset=1, perturb=1, shuffle=1, per_prompt=2)
    before = build(groups, chosen, tmp_path / "before", tiny.policy)
    assert tiny.loads == 0  # nothing was generated or scored
    scorer = ResponseScorer(tiny.policy, tmp_path, 4)
    values = sorted(v for row in scorer.logp_means(before.groups) for v in row[1:])
    threshold = values[len(values) // 2]
    strict = chosen.model_copy(update={"filter": FilterSection(logp=threshold)})
    after = build(groups, strict, tmp_path / "after", tiny.again())
    kept = [v for row in ResponseScorer(tiny.again(), tmp_path, 4).logp_means(after.groups) for v in row[1:]]
    assert kept and min(kept) >= threshold - 1e-5
    assert (
        all("mean log-probability" in row["reason"] for row in after.dropped) and len(after.dropped) >= len(values) // 2
    )
    assert sum(t.dropped for t in after.sources.values()) == len(after.dropped)
    used = {(g.id, normalise(r.text)) for g in after.groups for r in g.by_role(REJECTED)}
    assert not used & {(row["id"], normalise(row["text"])) for row in after.dropped}
    loads = tiny.loads
    again = build(groups, strict, tmp_path / "after", tiny.again())
    assert again.texts() == after.texts() and tiny.loads == loads  # scores are kept


def test_on_policy_texts_are_kept_by_prompt_policy_and_settings(tmp_path: Path, tiny: Counted):
    groups = [g for g in sample_groups(7, tmp_path / "images", responses=2) if g.images]
    chosen = mix(beam=1, sample=1, per_prompt=2)
    first = build(groups, chosen, tmp_path / "n", tiny.policy)
    assert tiny.loads == 1 and set(first.counts) <= {"beam", "sample", "none"}
    size = {name: (tmp_path / "n" / f"{name}.jsonl").stat().st_size for name in ("beam", "sample")}
    assert build(groups, chosen, tmp_path / "n", tiny.again()).texts() == first.texts() and tiny.loads == 1
    # fewer rows, in another order, under other ids: what is kept is found by content
    renamed = [replace(g, id=f"other-{g.id}") for g in groups[::-1][:3]]
    build(renamed, mix(beam=1), tmp_path / "n", tiny.again())
    assert tiny.loads == 1
    build(groups[:1], mix(beam=1), tmp_path / "n", tiny.again("another model"))
    build(groups[:1], mix(sample=1, temperature=0.5), tmp_path / "n", tiny.again())
    assert tiny.loads == 3
    assert all((tmp_path / "n" / f"{name}.jsonl").stat().st_size > size[name] for name in size)


def test_what_cannot_be_trained_on_is_dropped_with_its_reason(tmp_path: Path) -> None:
    """Whoever proposed it; another source stands in."""
    mix = SourceMix.model_validate({"dataset": 1, "other": 1})

    def unfit(group: PromptGroup, text: str) -> str | None:
        assert group.by_role(CHOSEN)
        return "needs 90 tokens, the limit is 80" if "number 3" in text else None

    built = build(rows(8), mix, tmp_path, unfit=unfit)
    dropped = [row for row in built.dropped if row["reason"].startswith("needs 90 tokens")]
    assert dropped and all("number 3" in row["text"] for row in dropped)
    assert not [text for texts in built.texts().values() for text in texts if "number 3" in text]
    assert len(built.groups) == 8 and sum(counts.dropped for counts in built.sources.values()) == len(built.dropped)
