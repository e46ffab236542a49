"""Families whose inputs are peculiar: what is scored in a batch is what each response gets by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import collate, score
from oracle import naive_logps
from transformers import AutoConfig, AutoModelForImageTextToText

from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse
from cwdpo.scoring.full_sequence import OneByOneScorer, SeparateScorer
from cwdpo.scoring.scorer import AutoScorer
from tiny_models import CROSS, sample_groups, tiny_model, tiny_processor

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}
SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 7,
}
IMAGE = 299
POOLING = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, -1]])


def molmo2() -> Any:
    sight = SIGHT | {"num_key_value_heads": 2, "head_dim": 16, "image_size": [28, 28], "num_position_embeddings": 16}
    adapter = {"vision_feature_layer": [-1, 0], "text_hidden_size": 64, "intermediate_size": 64, "hidden_size": 32}
    adapter |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    marks = {"image_start_token_id": 290, "low_res_image_start_token_id": 291, "image_end_token_id": 292}
    text = TEXT | {"additional_vocab_size": 8, "max_position_embeddings": 512}
    parts = {"text_config": text, "vision_config": sight, "adapter_config": adapter}
    return AutoConfig.for_model("molmo2", **parts, **marks, image_patch_id=IMAGE)


def minicpmv4_6() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    text = TEXT | {"layer_types": ["full_attention"] * 2, "rope_parameters": rope | {"partial_rotary_factor": 1.0}}
    sight = SIGHT | {"image_size": 28}
    return AutoConfig.for_model(
        "minicpmv4_6",
        text_config={"model_type": "qwen3_5_text", **text},
        vision_config=sight,
        insert_layer_id=0,
        image_token_id=IMAGE,
    )


def pictures(family: str, chance: torch.Generator) -> dict[str, torch.Tensor]:
    """One picture of 4 × 4 patches."""
    if family == "minicpmv4_6":
        pixels = torch.randn(1, 3, 7, 16 * 7, generator=chance)
        return {"pixel_values": pixels, "target_sizes": torch.tensor([[4, 4]], dtype=torch.int32)}
    pixels = torch.randn(1, 16, 147, generator=chance)
    grids = {"image_grids": torch.tensor([[2, 2, 0, 0]]), "image_num_crops": torch.tensor([1])}
    return {"pixel_values": pixels, "image_token_pooling": POOLING, **grids}


@pytest.mark.parametrize(("config", "tokens"), [(molmo2, 4), (minicpmv4_6, 1)])
def test_pictures_of_later_prompts(config: Any, tokens: int) -> None:
    family, chance = config.__name__, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config()).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.normal_(0, 0.5 if "embed" in name else 1.2 / weight[0].numel() ** 0.5)
    prefix = (1, 290, *[IMAGE] * tokens, 292, 5, 6, 7)
    types = {"mm_token_type_ids": tuple(int(token == IMAGE) for token in prefix)} if family == "molmo2" else {}
    answers = tuple(EncodedResponse(ids, "chosen", "", None, "") for ids in ((11, 12, 13), (11, 14)))
    groups = [EncodedGroup(str(i), str(i), prefix, types, pictures(family, chance), answers) for i in range(3)]
    batch, scorer = Batch(tuple(groups)), AutoScorer("separate")
    with torch.no_grad():
        alone = score(OneByOneScorer(), model, batch).logps
        assert isinstance(scorer.scorer_for(model, batch), SeparateScorer)
        torch.testing.assert_close(score(scorer, model, batch).logps, alone, rtol=0, atol=1e-4)
    assert (alone[0] - alone[2]).abs().max() > 1e-2


def test_cross_attention(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mllama is scored one response at a time, as plain transformers does; also without pictures."""
    model, processor = tiny_model(CROSS), tiny_processor(CROSS)
    groups = sample_groups(3, tmp_path, responses=2, images=(1, 2, 0))
    batch, scorer = collate(processor, groups), AutoScorer()
    with torch.no_grad():
        found = score(scorer, model, batch).logp_sum
        naive = [logps.sum() for group in groups for logps in naive_logps(model, processor, CROSS, group)]
    torch.testing.assert_close(found, torch.stack(naive), rtol=0, atol=1e-4)
    assert isinstance(scorer.scorer_for(model, batch), OneByOneScorer)
    assert ["one response at a time" in r.getMessage() for r in caplog.records] == [True]
