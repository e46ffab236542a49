"""The tiny models are what a user has on disk: saved and loaded they are the same, and the same every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from cwdpo.models.processors import load_processor
from cwdpo.scoring.collator import PromptEncoder
from tiny_models import FAMILIES, MORE_FAMILIES, sample_groups, tiny_model


@pytest.mark.parametrize("family", (*FAMILIES, *MORE_FAMILIES))
def test_round_trip(
    family: str, tiny_folder: Callable[[str], Path], tiny_pair: Callable[[str], tuple[Any, Any]], tmp_path: Path
) -> None:
    model, processor = tiny_pair(family)
    folder = tiny_folder(family)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert loaded.config.model_type == family
    assert sum(p.numel() for p in model.parameters()) < 400_000
    again = tiny_model(family, processor)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight) and torch.equal(again.state_dict()[name], weight)
    (group,) = sample_groups(1, tmp_path)
    ours, theirs = PromptEncoder(processor).encode(group), PromptEncoder(load_processor(folder)).encode(group)
    assert ours.prefix_ids == theirs.prefix_ids and ours.responses == theirs.responses
    for name, value in ours.vision.items():
        assert torch.equal(theirs.vision[name], value)
