"""Captions are kept as they come; a killed call goes on; what depends on another model is not taken over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.schema import PromptGroup
from cwdpo.evaluation.captioning import caption_groups
from cwdpo.scoring.collator import PromptEncoder
from tiny_models import sample_groups, tiny_image
from tiny_runs import rows_of


class Counting:
    """Loads the model and counts how often, and which prompts it was asked."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from cwdpo.evaluation import captioning

        self.loads, self.asked = 0, list[str]()
        self._model, original = model, captioning.generate

        def generate(model: Any, tokenizer: Any, encode: Any, prompts: Any, **settings: Any) -> Any:
            self.asked += [group.id for group in prompts]
            return original(model, tokenizer, encode, prompts, **settings)

        monkeypatch.setattr(captioning, "generate", generate)

    def __call__(self) -> Any:
        self.loads += 1
        return self._model


@pytest.fixture
def counting(tiny_pair: Callable[[str], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(tiny_pair("qwen2_5_vl")[0], monkeypatch)


@pytest.fixture
def encoder(tiny_pair: Callable[[str], tuple[Any, Any]]) -> PromptEncoder:
    return PromptEncoder(tiny_pair("qwen2_5_vl")[1])


@pytest.fixture
def groups(tmp_path: Path) -> list[PromptGroup]:
    return sample_groups(5, tmp_path / "images", images=1)


SETTINGS: dict[str, Any] = {"key": "model", "batch_size": 2, "max_new_tokens": 4}


def test_every_prompt_once(
    counting: Counting, encoder: PromptEncoder, groups: list[PromptGroup], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    path = tmp_path / "c.jsonl"
    found = caption_groups(counting, encoder, groups, path, **SETTINGS, progress=lambda n, of: told.append((n, of)))
    assert len(found) == 5 and told == [(2, 5), (4, 5), (5, 5)]
    assert counting.loads == 1 and counting.asked == [g.id for g in groups]
    rows = rows_of(path)
    assert [(row["id"], row["caption"]) for row in rows] == list(zip([g.id for g in groups], found, strict=True))
    assert caption_groups(counting, encoder, groups, path, **SETTINGS) == found
    assert counting.loads == 1 and len(counting.asked) == 5  # the model was not even loaded


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_goes_on_at_the_last_whole_batch(
    kept: int, counting: Counting, encoder: PromptEncoder, groups: list[PromptGroup], tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    whole = caption_groups(counting, encoder, groups, path, **SETTINGS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]) + lines[kept][:7])
    counting.asked.clear()
    assert caption_groups(counting, encoder, groups, path, **SETTINGS) == whole
    assert counting.asked == [g.id for g in groups[kept // 2 * 2 :]]
    assert path.read_text() == "".join(lines)


def test_a_changed_picture_is_captioned_again_with_its_batch(
    counting: Counting, encoder: PromptEncoder, groups: list[PromptGroup], tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    caption_groups(counting, encoder, groups, path, **SETTINGS)
    counting.asked.clear()
    tiny_image(Path(str(groups[0].images[0].path)), 28, 56)
    found = caption_groups(counting, encoder, groups, path, **SETTINGS)
    assert counting.asked == [g.id for g in groups[:2]]
    rows = rows_of(path)
    assert [(row["id"], row["caption"]) for row in rows] == list(zip([g.id for g in groups], found, strict=True))
    assert found == caption_groups(counting, encoder, groups, tmp_path / "fresh.jsonl", **SETTINGS)


@pytest.mark.parametrize("change", [{"key": "other model"}, {"max_new_tokens": 3}, {"batch_size": 3}])
def test_other_settings_begin_anew(
    change: dict[str, Any], counting: Counting, encoder: PromptEncoder, groups: list[PromptGroup], tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    caption_groups(counting, encoder, groups, path, **SETTINGS)
    counting.asked.clear()
    caption_groups(counting, encoder, groups, path, **SETTINGS | change)
    assert counting.asked == [g.id for g in groups]
    assert len(path.read_text().splitlines()) == 5
