"""The shared scorer against the separate one: the same log-probabilities, the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, assert_same, collate, gradients, score
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import image_counts, naive_logps
from torch import Tensor

from cwdpo.models import attention as attention_module
from cwdpo.models.attention import OWN_ATTENTION, SHARED_PREFIX, use_own_attention
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import sample_groups, tiny_model, tiny_processor

Pair = Callable[[str], tuple[Any, Any]]
SEPARATE, SHARED = SeparateScorer(), SharedPrefixScorer()


@pytest.mark.parametrize(
    ("family", "checkpointing"), [*((family, False) for family in ALL), ("qwen3_vl", True), ("gemma3", True)]
)
def test_a_causal_prefix_needs_no_mask(
    family: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of one length: the mask has rows for the responses alone where the family's prefix is causal."""
    processor = tiny_processor(family)
    model = tiny_model(family, processor)
    group = sample_groups(1, tmp_path, responses=3, images=image_counts(family, 1), seed=2)[0]
    batch = collate(processor, [replace(group, id=name) for name in ("a", "b")])
    one = gradients(SEPARATE, model, batch)
    use_own_attention(model, SHARED_PREFIX)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows: list[int] = []
    whole = attention_module.sdpa_attention_forward

    def noted(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        rows.append(query.shape[2] if attention_mask is None else -query.shape[2])
        return whole(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(attention_module, "sdpa_attention_forward", noted)
    assert_same(one, gradients(SHARED, model, batch))
    prefix = len(batch.groups[0].prefix_ids)
    tail = sum(len(r.ids) - 1 for r in batch.groups[0].responses)
    causal = family not in ("paligemma", "gemma3")
    assert set(rows) == ({prefix, -tail} if causal else {-prefix - tail})


@pytest.mark.parametrize("attention", OWN_ATTENTION)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "gemma3"])
def test_without_a_shared_prefix_it_is_sdpa(family: str, attention: str, tmp_path: Path) -> None:
    processor = tiny_processor(family)
    model = tiny_model(family, processor)
    batch = collate(processor, sample_groups(2, tmp_path, responses=2, images=image_counts(family, 1, 1)))
    one = gradients(SEPARATE, model, batch)
    asked = {"input_ids": torch.arange(60, 74).view(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    asked["attention_mask"][0, :3] = 0
    written = model.generate(**asked, max_new_tokens=5, num_beams=2)
    use_own_attention(model, attention)
    other = gradients(SEPARATE, model, batch)
    assert torch.equal(one[0], other[0]) and all(torch.equal(g, other[1][n]) for n, g in one[1].items())
    assert torch.equal(written, model.generate(**asked, max_new_tokens=5, num_beams=2))


@pytest.mark.parametrize("family", ALL)
def test_equals_one_unpadded_sequence_at_a_time(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    """Against `log_softmax` of single sequences: no code of ours but the encoder is on that side."""
    model, processor = tiny_pair(family)
    groups = sample_groups(3, tmp_path, responses=(3, 2), images=image_counts(family, 2, 0, 1), seed=5)
    with torch.no_grad():
        scores = score(SHARED, model, collate(processor, groups))
        naive = [logps for group in groups for logps in naive_logps(model, processor, family, group)]
    assert scores.tokens.tolist() == [len(logps) for logps in naive]
    for row, logps in enumerate(naive):
        torch.testing.assert_close(scores.logps[row, : len(logps)], logps, rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    family=st.sampled_from(["qwen2_5_vl", "llava"]),
)
def test_any_lengths(shapes: list[tuple[int, list[int]]], family: str, tiny_pair: Pair) -> None:
    """Text-only groups of any prompt and response lengths, responses of a single token among them; packed or padded."""
    model, _ = tiny_pair(family)
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(60, 300, (length,), generator=draw).tolist())

    def answers(lengths: list[int]) -> tuple[EncodedResponse, ...]:
        return tuple(EncodedResponse(ids(n), "chosen", "", None, "") for n in lengths)

    groups = [EncodedGroup(str(g), "", ids(n), {}, {}, answers(lengths)) for g, (n, lengths) in enumerate(shapes)]
    batch = Batch(tuple(groups))
    with torch.no_grad():
        one = score(SEPARATE, model, batch)
        others = [score(scorer, model, batch) for scorer in (SHARED, SharedPrefixScorer(packed=True))]
    for other in others:
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(other.logps, one.logps, rtol=0, atol=1e-4)


def test_responses_do_not_see_each_other(tiny_pair: Pair, tmp_path: Path) -> None:
    """The scores of a response stay when the ones beside it change; and a first response is scored as when alone."""
    model, processor = tiny_pair("qwen2_5_vl")
    (group,) = sample_groups(1, tmp_path, responses=3)
    first, second, third = group.responses

    def sums(*responses: Any) -> list[float]:
        with torch.no_grad():
            return score(SHARED, model, collate(processor, [group.with_responses(responses)])).logp_sum.tolist()

    together = sums(first, second, third)
    assert sums(third, first, second) == pytest.approx([together[2], together[0], together[1]], abs=1e-4)
    assert sums(second) == pytest.approx([together[1]], abs=1e-4)
    assert sums(second, second) == pytest.approx([together[1]] * 2, abs=1e-4)
    assert len({round(value, 2) for value in together}) == 3


def test_image_and_prompt_pass_once(tmp_path: Path) -> None:
    """12 responses: the tower sees the patches once, the text model prefix + responses without their last tokens."""
    processor = tiny_processor("qwen2_5_vl")
    model = tiny_model("qwen2_5_vl", processor)
    batch = collate(processor, sample_groups(1, tmp_path, responses=12))
    (group,) = batch.groups
    seen: dict[str, list[int]] = {"tower": [], "text": [], "head": []}
    inner = model.model
    inner.visual.blocks[0].register_forward_hook(lambda _, args, out: seen["tower"].append(out.shape[0]))
    inner.language_model.layers[0].register_forward_hook(lambda _, args, out: seen["text"].append(out.shape[1]))
    model.lm_head.register_forward_hook(lambda _, args, out: seen["head"].append(out.shape[:-1].numel()))
    with torch.no_grad():
        SHARED(model, batch)
    own = sum(len(r.ids) - 1 for r in group.responses)
    assert seen == {
        "tower": [len(group.vision["pixel_values"])],
        "text": [len(group.prefix_ids) + own],
        "head": [1 + own],
    }
