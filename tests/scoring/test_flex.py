"""The shared scorer under FlexAttention: the mask as blocks is the dense one, scores and gradients are the same.

torch refuses to differentiate FlexAttention on a CPU before it looks at the operation, which has a gradient; the tests
of gradients leave that check out. It runs uncompiled here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, assert_same, attend, collate, gradients, score
from oracle import image_counts
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from cwdpo.errors import ModelError
from cwdpo.models import attention as attention_module
from cwdpo.models.attention import SHARED_FLEX
from cwdpo.models.loading import load_model
from cwdpo.recipe import ModelSection
from cwdpo.scoring import attention_masks as masks
from cwdpo.scoring.attention_masks import blocks_of, dense, rule_of
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.scoring.sequence_layout import Layout
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import sample_groups, tiny_model, tiny_processor

CPU = torch.device("cpu")
SEPARATE, PADDED, PACKED = SeparateScorer(), SharedPrefixScorer(), SharedPrefixScorer(packed=True)


@pytest.fixture
def differentiable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention's own operation, uncompiled, with the gradient that it has on a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    monkeypatch.setattr(masks, "require_backward", lambda _: None)
    yield


def flexible(family: str, **changes: Any) -> tuple[Any, Any]:
    processor = tiny_processor(family)
    model = tiny_model(family, processor, **changes)
    attend(model, "flex_attention")
    return model, processor


def spread(mask: Any) -> Tensor:
    """`Bool[rows, queries, keys]` as the kernel reads blocks: some in full, some by the rule, others never."""
    rows, _, width, _ = mask.shape
    size = mask.BLOCK_SIZE[0]
    by_rule = torch_flex.create_mask(mask.mask_mod, rows, None, width, width, device="cpu")[:, 0]
    found = torch.zeros(rows, width, width, dtype=torch.bool)
    kinds = [(mask.kv_num_blocks, mask.kv_indices, False), (mask.full_kv_num_blocks, mask.full_kv_indices, True)]
    for counts, indices, full in kinds:
        for row in range(rows):
            for q, count in enumerate(counts[row, 0].tolist()):
                for k in indices[row, 0, q, :count].tolist():
                    at = (row, slice(q * size, (q + 1) * size), slice(k * size, (k + 1) * size))
                    found[at] = True if full else by_rule[at]
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("blocks", ["none", "prefix", "image"])
def test_blocks_are_the_dense_mask(packed: bool, window: int | None, blocks: str) -> None:
    """Some 900 tokens, so that there are blocks in full, in part and not at all."""
    shapes = [(300, (140, 2, 1)), (1, (1,)), (130, (20, 30)), (260, (3,))]
    groups = [
        EncodedGroup("", "", (1,) * p, {}, {}, tuple(EncodedResponse((1,) * n, "", "", None, "") for n in answers))
        for p, answers in shapes
    ]
    batch = Batch(tuple(groups))
    layout = Layout.packed(batch) if packed else Layout.padded(batch)
    some = {"none": layout.index < 0, "prefix": layout.segments == 0, "image": (layout.segments == 0)}[blocks]
    if blocks == "image":
        some = some & (layout.index > 9) & (layout.index < 200)
    rule = rule_of(layout, torch.where(some, 0, -1), CPU, window)
    mask = blocks_of(rule, layout, CPU)
    expected = dense(rule, layout, CPU)
    assert torch.equal(spread(mask), expected)
    squares = -(-expected.shape[-1] // 128)
    assert int((mask.kv_num_blocks + mask.full_kv_num_blocks).sum()) < 0.7 * len(expected) * squares**2


@pytest.mark.parametrize("family", ALL)
def test_equals_separate(family: str, tmp_path: Path, differentiable: None) -> None:
    model, processor = flexible(family)
    assert model.config.get_text_config()._attn_implementation == SHARED_FLEX
    groups = sample_groups(4, tmp_path, responses=(1, 2, 3, 12), images=image_counts(family, 1, 2, 0, 3))
    batch = collate(processor, groups)
    assert Layout.packed(batch).ids.shape[1] > 128
    separate = gradients(SEPARATE, model, batch)
    assert_same(separate, gradients(PADDED, model, batch))
    assert_same(separate, gradients(PACKED, model, batch))


@pytest.mark.parametrize("packed", [False, True])
def test_sliding_window(packed: bool, tmp_path: Path, differentiable: None) -> None:
    model, processor = flexible("qwen2_5_vl", use_sliding_window=True, sliding_window=9, max_window_layers=1)
    batch = collate(processor, sample_groups(3, tmp_path, responses=3, images=(1, 0, 2)))
    assert_same(gradients(SEPARATE, model, batch), gradients(SharedPrefixScorer(packed=packed), model, batch))


def test_with_checkpointing(tmp_path: Path, differentiable: None) -> None:
    model, processor = flexible("qwen2_5_vl")
    batch = collate(processor, sample_groups(3, tmp_path, responses=2))
    model.train()
    plain = gradients(PACKED, model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(plain, gradients(PACKED, model, batch))


def test_scores_as_torch_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No check left out: the scores, and that FlexAttention is what is called, once a layer."""
    model, processor = flexible("qwen2_5_vl")
    batch = collate(processor, sample_groups(2, tmp_path, responses=2))
    called: list[Any] = []
    whole = torch_flex.flex_attention

    def noted(*args: Any, **kwargs: Any) -> Any:
        called.append(kwargs["block_mask"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(torch_flex, "flex_attention", noted)
    with torch.no_grad():
        separate, shared = score(SEPARATE, model, batch), score(PACKED, model, batch)
    torch.testing.assert_close(shared.logps, separate.logps, rtol=0, atol=1e-4)
    assert len(called) == model.config.get_text_config().num_hidden_layers and called[0] is called[-1]


def test_autocast(tmp_path: Path) -> None:
    """bfloat16 around float32 weights makes queries of one type and values of another, which the kernel refuses."""
    model, processor = flexible("qwen2_5_vl")
    batch = collate(processor, sample_groups(2, tmp_path, responses=2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        separate, shared = score(SEPARATE, model, batch), score(PACKED, model, batch)
    assert float((separate.logps - shared.logps).abs().sum() / separate.mask.sum()) < 4e-2


def test_training_on_a_cpu_is_one_line(tmp_path: Path) -> None:
    model, processor = flexible("llava")
    batch = collate(processor, sample_groups(2, tmp_path))
    scorer = AutoScorer("shared").scorer_for(model, batch)
    with pytest.raises(ModelError, match=r"flex_attention: torch has no backward pass for it on cpu.*attention: sdpa"):
        scorer(model, batch)
    with torch.no_grad():
        scorer(model, batch)
    scorer(model.requires_grad_(False), batch)


def test_attention_dropout_is_one_line(tmp_path: Path) -> None:
    model, processor = flexible("qwen2_5_vl", attention_dropout=0.1)
    batch = collate(processor, sample_groups(2, tmp_path))
    with torch.no_grad(), pytest.raises(ModelError, match=r"knows no dropout.*attention_dropout = 0\.1"):
        PACKED(model.train(), batch)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_recipe(family: str, tiny_folder: Any) -> None:
    """Qwen-VL too, for which transformers refuses its own; the tower keeps sdpa."""
    model = load_model(ModelSection(path=str(tiny_folder(family)), attention="flex_attention"))
    assert model.config.get_text_config()._attn_implementation == SHARED_FLEX
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert attention_module.OWN_ATTENTION["flex_attention"] == SHARED_FLEX
