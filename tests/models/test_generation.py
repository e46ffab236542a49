"""Answers of many prompts at once: those of transformers' own `generate`, with each prompt read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cwdpo.models.fsdp import is_sharded, share_weights
from cwdpo.models.generation import generate, sample_tokens
from cwdpo.scoring.collator import PromptEncoder
from sharding_on_cpu import in_processes
from tiny_models import FAMILIES, HYBRID, MORE_FAMILIES, sample_groups, tiny_model, tiny_processor

BEAMS = {"num_beams": 3, "num_return_sequences": 3}
SAMPLES = {"num_return_sequences": 4, "temperature": 1.0}


def answers(model: Any, encoder: PromptEncoder, groups: Any, way: dict[str, Any]) -> list[list[str]]:
    encode = lambda prompts: encoder.prompt_inputs(prompts, padding=True)  # noqa: E731
    return generate(model, encoder.tokenizer, encode, groups, max_new_tokens=6, seed=3, **way)


def plain(model: Any, encoder: PromptEncoder, groups: Any, way: dict[str, Any]) -> list[list[str]]:
    """The same by one call of `model.generate`, which copies the prompts before it reads them."""
    encoder.tokenizer.padding_side = "left"
    inputs = encoder.prompt_inputs(groups, padding=True)
    torch.manual_seed(3)
    sampled = {"do_sample": True, "top_k": 0} if "temperature" in way else {"do_sample": False}
    tokens = model.generate(**inputs, **sampled, **way, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    many = way["num_return_sequences"]
    return [texts[i : i + many] for i in range(0, len(texts), many)]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, HYBRID])
def test_answers_are_those_of_transformers(family: str, tmp_path: Path):
    """Prompts of unequal length with one or two pictures; one where the processor takes no more."""
    model, encoder = tiny_model(family), PromptEncoder(tiny_processor(family))
    groups = sample_groups(3, tmp_path, images=1 if family == "paligemma" else (1, 2))
    for way in (BEAMS, SAMPLES):
        found = answers(model, encoder, groups, way)
        assert found == plain(model, encoder, groups, way)
        assert len({text for texts in found for text in texts}) > 3


def rows_read(model: Any, run: Any) -> list[tuple[int, int]]:
    """Sequences and tokens of every pass through the language model."""
    found: list[tuple[int, int]] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_hook(
        lambda _, args, kwargs, __: found.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize(("way", "copies"), [(BEAMS, 3), (SAMPLES, 4)])
def test_a_prompt_is_read_once_whatever_its_answers(way: dict[str, Any], copies: int, tmp_path: Path):
    """Two prompts: 2 sequences of the whole length, then one token at a time for 2 × copies of them."""
    model, encoder = tiny_model("llava"), PromptEncoder(tiny_processor("llava"))
    groups = sample_groups(2, tmp_path, images=1)
    first, *rest = rows_read(model, lambda: answers(model, encoder, groups, way))
    assert first[0] == 2 and first[1] > 10
    assert set(rest) == {(2 * copies, 1)}


def test_models_with_windows_are_left_to_transformers(tmp_path: Path):
    """A window's cache cannot be cut by a token: Gemma 3 reads 2 × 3 copies of its prompts."""
    model, encoder = tiny_model("gemma3"), PromptEncoder(tiny_processor("gemma3"))
    groups = sample_groups(2, tmp_path, images=1)
    first, *rest = rows_read(model, lambda: answers(model, encoder, groups, BEAMS))
    assert first[0] == 6 and first[1] > 10
    assert set(rest) == {(6, 1)}


@pytest.mark.parametrize(
    "family",
    ["qwen2_5_vl", *(pytest.param(f, marks=pytest.mark.slow) for f in (*FAMILIES[1:], *MORE_FAMILIES, HYBRID))],
)
def test_shared_weights_answer_as_whole_ones(family: str, tmp_path: Path):
    """Float32 adapters on a base in bfloat16.

    Two processes with other prompts each, one and three; the first one's end with most tokens."""
    groups = sample_groups(4, tmp_path, images=1)
    parts, ends = (groups[:1], groups[1:]), ([t for t in range(367) if t % 3], [2])

    def adapted() -> Any:
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(tiny_model(family).to(torch.bfloat16), lora).eval()

    def found(model: Any, rank: int) -> tuple[list[Any], list[list[tuple[int, ...]]]]:
        encoder = PromptEncoder(tiny_processor(family))
        model.generation_config.eos_token_id = ends[rank]
        texts = [answers(model, encoder, parts[rank], way) for way in ({}, BEAMS, SAMPLES)]
        encoder.tokenizer.padding_side = "left"
        inputs = encoder.prompt_inputs(parts[rank], padding=True)
        return texts, sample_tokens(model, encoder.tokenizer, inputs, count=3, max_new_tokens=9, seed=2)

    def shared(rank: int) -> Any:
        model = share_weights(adapted())
        assert is_sharded(model)
        return found(model, rank)

    whole = [found(adapted(), rank) for rank in (0, 1)]
    longest = [max(len(tokens) for rows in sampled for tokens in rows) for _, sampled in whole]
    assert longest[1] == 9 and (longest[0] < 9 or family == "paligemma")  # which says one token again and again
    assert in_processes(2, shared, tmp_path / "shared") == whole
