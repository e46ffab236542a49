"""One row without padding for all groups of a batch: the scores and gradients of separate sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, adapted, assert_same, attend, collate, gradients, score
from oracle import image_counts

from cwdpo.models.attention import SHARED_PREFIX
from cwdpo.models.parts import freeze_parts
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import sample_groups, tiny_model, tiny_processor
from tiny_training import clone, fresh, largest_difference, rows, train_dpo, train_sft, weights

Pair = Callable[[str], tuple[Any, Any]]
SEPARATE, PADDED, PACKED = SeparateScorer(), SharedPrefixScorer(), SharedPrefixScorer(packed=True)


WAYS = [
    ("qwen2_5_vl", "eager"),
    ("gemma3", "eager"),
    *((family, way) for family in ALL for way in ("sdpa", SHARED_PREFIX)),
]


@pytest.mark.parametrize(("family", "attention"), WAYS)
def test_equals_separate(family: str, attention: str, tmp_path: Path) -> None:
    """K = 1, 2, 3 and 12 in one row; no, one and several images of unequal sizes; unequal lengths."""
    processor = tiny_processor(family)
    model = tiny_model(family, processor)
    attend(model, attention)
    groups = sample_groups(4, tmp_path, responses=(1, 2, 3, 12), images=image_counts(family, 1, 2, 0, 3))
    batch = collate(processor, groups)
    assert len({len(g.prefix_ids) for g in batch.groups}) > 2
    separate = gradients(SEPARATE, model, batch)
    assert_same(separate, gradients(PACKED, model, batch))
    assert_same(separate, gradients(PADDED, model, batch))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_no_padding(family: str, tmp_path: Path) -> None:
    """The language model is given one row of as many tokens as there are; the head what predicts a token."""
    processor = tiny_processor(family)
    model = tiny_model(family, processor)
    batch = collate(processor, sample_groups(4, tmp_path, responses=(1, 3), images=image_counts(family, 1, 2, 0, 3)))
    text, head = list[tuple[int, ...]](), list[int]()
    model.model.language_model.layers[0].register_forward_hook(lambda _, args, out: text.append(tuple(out.shape[:2])))
    model.lm_head.register_forward_hook(lambda _, args, out: head.append(out.shape[:-1].numel()))
    with torch.no_grad():
        PACKED(model, batch)
    own = [sum(len(r.ids) - 1 for r in g.responses) for g in batch.groups]
    total = sum(len(g.prefix_ids) for g in batch.groups) + sum(own)
    widest = max(len(g.prefix_ids) for g in batch.groups) + max(own)
    assert text == [(1, total)] and head == [4 + sum(own)]
    assert total < 4 * widest


@pytest.mark.parametrize(("family", "checkpointing"), [("qwen2_5_vl", True), ("llava", False), ("gemma3", True)])
def test_lora(family: str, checkpointing: bool, tmp_path: Path) -> None:
    processor = tiny_processor(family)
    model = adapted(tiny_model(family, processor), checkpointing)
    batch = collate(processor, sample_groups(3, tmp_path, responses=(2, 3), images=(1, 2, 0)))
    separate = gradients(SEPARATE, model, batch)
    assert all("lora" in name for name in separate[1])
    for scorer in (PADDED, PACKED):
        assert_same(separate, gradients(scorer, model, batch))


@pytest.mark.parametrize("window", [3, 9])
def test_sliding_window(window: int, tmp_path: Path) -> None:
    """The window counts tokens of the response's own sequence, not columns of the shared one."""
    processor = tiny_processor("qwen2_5_vl")
    model = tiny_model("qwen2_5_vl", processor, use_sliding_window=True, sliding_window=window, max_window_layers=1)
    assert model.config.get_text_config().layer_types == ["full_attention", "sliding_attention"]
    batch = collate(processor, sample_groups(3, tmp_path, responses=3, images=(1, 0, 2)))
    separate = gradients(SEPARATE, model, batch)
    for scorer in (PADDED, PACKED):
        assert_same(separate, gradients(scorer, model, batch))
    wide = tiny_model("qwen2_5_vl", processor)
    assert (score(PACKED, wide, batch).logp_sum - separate[0]).abs().max() > 1e-3


def test_groups_do_not_see_each_other(tiny_pair: Pair, tmp_path: Path) -> None:
    """A group's scores stay when its neighbours change, and in any order."""
    model, processor = tiny_pair("qwen2_5_vl")
    one, two, three = sample_groups(3, tmp_path, responses=2, images=(1, 2, 0))

    def sums(*groups: Any) -> list[float]:
        with torch.no_grad():
            return score(PACKED, model, collate(processor, list(groups))).logp_sum.tolist()

    together = sums(one, two, three)
    assert sums(two) == pytest.approx(together[2:4], abs=1e-4)
    assert sums(three, two) == pytest.approx(together[4:] + together[2:4], abs=1e-4)
    twice = sums(two, replace(two, id="again"))
    assert twice == pytest.approx(together[2:4] * 2, abs=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_transformers_does_not_look_for_packed_rows(
    family: str, tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a mask is missing it takes positions that restart for a new sequence: every response would be one."""
    model, processor = tiny_pair(family)
    batch = collate(processor, sample_groups(2, tmp_path, responses=2, images=image_counts(family, 1, 1)))

    def found(*_: Any) -> None:
        raise AssertionError("the positions were taken for packed sequences")

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", found)
    with torch.no_grad():
        for one in (batch, Batch(batch.groups[:1])):
            PACKED(model, one)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava", "smolvlm"])
def test_cached_features(family: str, tmp_path: Path) -> None:
    processor = tiny_processor(family)
    model = tiny_model(family, processor)
    freeze_parts(model, ["vision", "projector"])
    cached = SharedPrefixScorer(FrozenVision(FeatureCache(2**30)), packed=True)
    batch = collate(processor, sample_groups(3, tmp_path, responses=2, images=(1, 2, 0)))
    plain = gradients(PACKED, model, batch)
    first, again = gradients(cached, model, batch), gradients(cached, model, batch)
    assert_same(plain, first)
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again[1][n]) for n, g in first[1].items())


def test_older_transformers(tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it took a mask of positions the head was asked for the last columns of rows, or for places of one row."""
    model, processor = tiny_pair("qwen2_5_vl")
    batch = collate(processor, sample_groups(3, tmp_path, responses=(2, 1), images=(1, 2, 0)))
    asked: list[Any] = []

    def note(_: Any, args: Any, given: Any) -> None:
        asked.append(given["logits_to_keep"])

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        new = [scorer(model, batch).logits for scorer in (PADDED, PACKED)]
        monkeypatch.delattr("transformers.modeling_utils.slice_logits_to_keep")
        old = [scorer(model, batch).logits for scorer in (PADDED, PACKED)]
    hook.remove()
    torch.testing.assert_close(old, new)
    assert isinstance(asked[2], int) and asked[3].shape == (int(asked[1].sum()),)


@pytest.mark.parametrize("train", [train_sft, train_dpo])
def test_training_is_the_same(train: Any, tmp_path: Path) -> None:
    """Three updates: SFT with one response a prompt, CW-DPO with a cached reference; by rounding apart."""
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
    options["objective"] = "sft" if train is train_sft else "cw_dpo"
    start, processor = fresh("qwen2_5_vl")
    groups = rows(8, tmp_path, responses=1 if train is train_sft else 2)
    ended: list[dict[str, torch.Tensor]] = []
    for packed in (False, True):
        model = clone(start)
        trainer = train(model, processor, groups, tmp_path / str(packed), padding_free=packed, **options)
        assert trainer.scorer.packed is packed
        ended.append(weights(model))
    assert largest_difference(ended[1], ended[0], weights(start)) < 1e-5
