"""Responses rewritten for probes: exact on scenes, by the lexicon elsewhere."""

from __future__ import annotations

import random

import pytest

from cwdpo.data import DataSource, load_groups
from cwdpo.data.schema import PromptGroup, Response
from cwdpo.negatives.rule_rewrites import REWRITES, reworded, rewritten_by_rules
from cwdpo.negatives.sources.perturb import caption_of
from cwdpo.scenes.grammar import is_correct, parse
from cwdpo.scenes.scene_rows import write_rows
from cwdpo.scenes.world import Scene


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[PromptGroup]:
    folder = tmp_path_factory.mktemp("scenes")
    write_rows(folder, 40, 0, "test")
    return list(load_groups(DataSource(path=folder / "test.jsonl", require="pair")).groups)


def test_scenes_are_exact(scenes: list[PromptGroup]) -> None:
    """A paraphrase has the same meaning; what is said in the same form is wrong, every attribute of it another one."""
    for kind, (of, how) in REWRITES.items():
        found = rewritten_by_rules(scenes, kind, seed=0)
        assert len(found) == len(scenes)
        for group in scenes:
            text = group.chosen.text if of == "chosen" else group.responses[1].text  # the hard one comes first
            new, old = parse(found[group.id]), parse(text)
            assert new is not None and old is not None and found[group.id] != text
            if how == "paraphrase":
                assert new == old
                continue
            assert not is_correct(found[group.id], Scene.from_json(group.facts["scene"]))
            assert [m.size is None for m in new.mentions] == [m.size is None for m in old.mentions]
            pairs = list(zip(new.mentions, old.mentions, strict=True))
            assert all(a.colour != b.colour and a.kind != b.kind for a, b in pairs)
            assert all(a != b for a, b in zip(new.relations, old.relations, strict=True))


def test_every_choice_of_words_is_as_likely() -> None:
    """Two nouns and a phrase: seven other choices of words, each about 1000 of 7000 (standard deviation 29)."""
    caption = caption_of("a red circle above a blue box")
    assert caption is not None
    rng = random.Random(0)
    counts: dict[str, int] = {}
    for _ in range(7000):
        text = reworded(caption, rng).text
        counts[text] = counts.get(text, 0) + 1
    assert len(counts) == 7 and caption.text not in counts
    assert all(abs(n - 1000) < 150 for n in counts.values())


def row(text: str, *rejected: str) -> PromptGroup:
    return PromptGroup("r", (), (), (Response(text), *(Response(t, "rejected") for t in rejected)))


def test_the_lexicon_elsewhere() -> None:
    group = row("A violet couch beside a gray dog.", "A dog on the left.")
    assert rewritten_by_rules([group], "chosen_paraphrase", 0)["r"] in {
        f"A purple sofa {near} a grey dog." for near in ("next to", "near", "close to")
    }
    assert rewritten_by_rules([group], "rejected_paraphrase", 0) == {}  # no other words for it are known
    form = rewritten_by_rules([group], "chosen_form", 0)["r"]
    assert form.startswith("A ") and form.endswith(".") and not {"violet", "couch", "gray", "dog."} & set(form.split())
    assert rewritten_by_rules([row("A violet couch.")], "rejected_form", 0) == {}  # there is no rejected response


def test_draws_are_their_own(scenes: list[PromptGroup]) -> None:
    first = rewritten_by_rules(scenes, "chosen_form", seed=0)
    assert rewritten_by_rules(scenes[::-1][:5], "chosen_form", seed=0).items() <= first.items()
    assert rewritten_by_rules(scenes, "chosen_form", seed=1) != first
