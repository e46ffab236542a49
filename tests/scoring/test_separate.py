"""The separate scorer against one unpadded sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, collate
from agreement import score as scored
from oracle import image_counts, naive_logps
from peft import LoraConfig, get_peft_model

from cwdpo.errors import ModelError
from cwdpo.models.parts import base_model
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.family import Family
from cwdpo.scoring.full_sequence import SeparateScorer
from tiny_models import sample_groups, tiny_model, tiny_processor

Pair = Callable[[str], tuple[Any, Any]]


def score(model: Any, batch: Batch) -> Scores:
    return scored(SeparateScorer(), model, batch)


@pytest.mark.parametrize(
    ("family", "counts"), [*((family, (1, 2, 0, 3, 1)) for family in ALL), ("qwen2_5_vl", (0,)), ("llava", (0,))]
)
def test_equals_one_unpadded_sequence_at_a_time(
    family: str, counts: tuple[int, ...], tiny_pair: Pair, tmp_path: Path
) -> None:
    model, processor = tiny_pair(family)
    groups = sample_groups(5, tmp_path, responses=(2, 3, 1), images=image_counts(family, *counts))
    with torch.no_grad():
        scores = score(model, collate(processor, groups))
        naive = [logps for group in groups for logps in naive_logps(model, processor, family, group)]
    assert scores.tokens.tolist() == [len(logps) for logps in naive]
    assert len({len(logps) for logps in naive}) > 2  # the lengths do differ
    torch.testing.assert_close(scores.logp_sum, torch.stack([n.sum() for n in naive]), rtol=0, atol=1e-4)
    for row, logps in enumerate(naive):
        torch.testing.assert_close(scores.logps[row, : len(logps)], logps, rtol=0, atol=1e-4)
        assert (scores.logps[row, len(logps) :] == 0).all()


@pytest.mark.parametrize("family", ALL)
def test_batch_composition_does_not_matter(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    model, processor = tiny_pair(family)
    groups = sample_groups(4, tmp_path, responses=2, images=image_counts(family, 2, 0, 1, 0), seed=3)
    with torch.no_grad():
        together = score(model, collate(processor, groups)).logp_sum
        backwards = score(model, collate(processor, groups[::-1])).logp_sum
        alone = torch.cat([score(model, collate(processor, [group])).logp_sum for group in groups])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together, backwards.view(4, 2).flip(0).flatten(), rtol=0, atol=1e-4)


def test_token_types_reach_the_model(tiny_pair: Pair, tmp_path: Path) -> None:
    """Without them Qwen2.5-VL silently takes 1-D positions for image tokens."""
    model, processor = tiny_pair("qwen2_5_vl")
    batch = collate(processor, sample_groups(1, tmp_path, images=2))
    (group,) = batch.groups
    assert set(group.token_types["mm_token_type_ids"]) == {0, 1}
    silent = replace(group, token_types={"mm_token_type_ids": (0,) * len(group.prefix_ids)})
    with torch.no_grad():
        difference = (score(model, batch).logp_sum - score(model, Batch((silent,))).logp_sum).abs()
    assert difference.min() > 1e-2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_missing_token_types_are_refused(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    model, processor = tiny_pair(family)
    batch = collate(processor, sample_groups(1, tmp_path, images=1))
    blind = Batch((replace(batch.groups[0], token_types={}),))
    with pytest.raises(ModelError, match="mm_token_type_ids"):
        score(model, blind)


def test_lora_at_its_start_and_checkpointing_change_nothing(tmp_path: Path) -> None:
    """B = 0 at the start: same scores; with checkpointing the same gradients of the adapter."""
    processor = tiny_processor("qwen2_5_vl")
    plain = tiny_model("qwen2_5_vl", processor)
    batch = collate(processor, sample_groups(2, tmp_path, images=(1, 2)))
    expected = score(plain, batch).logp_sum.detach()
    model: Any = get_peft_model(plain, LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj"))
    assert base_model(model) is plain
    torch.testing.assert_close(score(model, batch).logp_sum, expected, rtol=0, atol=1e-5)

    gradients: list[dict[str, torch.Tensor]] = []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        score(model, batch).logp_sum.sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 8  # A and B of q and v in 2 layers
    assert max(g.abs().max() for g in gradients[0].values()) > 1e-2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_full_gradient_equals_the_naive_one(tmp_path: Path) -> None:
    processor = tiny_processor("qwen2_5_vl")
    model = tiny_model("qwen2_5_vl", processor)
    groups = sample_groups(2, tmp_path, images=(1, 0))
    score(model, collate(processor, groups)).logp_sum.sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.stack([t.sum() for g in groups for t in naive_logps(model, processor, "qwen2_5_vl", g)]).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-4 * float(scale) + 1e-6)


def test_pairs_and_repeats(tmp_path: Path) -> None:
    batch = collate(tiny_processor("qwen2_5_vl"), sample_groups(2, tmp_path, responses=(3, 2), images=1))
    assert batch.owner == [0, 0, 0, 1, 1]
    assert batch.pairs() == ([0, 0, 3], [1, 2, 4])
    assert batch.rows("rejected") == [1, 2, 4]
    one, two = (len(g.vision["pixel_values"]) for g in batch.groups)
    assert len(Family().vision_inputs(batch, [3, 2])["pixel_values"]) == 3 * one + 2 * two
    assert Family().vision_inputs(batch, [1, 1])["image_grid_thw"].shape == (2, 3)
