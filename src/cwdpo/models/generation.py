"""Answers to many prompts at once, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from cwdpo.errors import NonFiniteError
from cwdpo.models.fsdp import is_sharded, wrap_method
from cwdpo.models.modes import inference

__all__ = ["generate", "sample_tokens"]


_GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def generate(
    model: Any,
    tokenizer: Any,
    encode: Callable[[Sequence[Any]], Any],
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[str]]:
    """Answer one batch of prompts.

    Where a prompt gets several beams or samples, it is read once and its key-value cache copied for them. (By itself
    `model.generate` copies the prompts first, and reads every copy.)

    Where processes share the model's weights, all of them call this together, with pictures or all without, each with
    prompts of its own; one whose answers are finished stays in step with the others.

    Args:
        model: A transformers model with `generate`.
        tokenizer: Its tokenizer; padded on the left for the call.
        encode: Prompts to model inputs, padded (a processor call).
        prompts: What `encode` takes.
        max_new_tokens: Longest answer.
        num_beams: Width of a beam search; 1 is greedy or sampling.
        num_return_sequences: Answers per prompt.
        temperature: Sample at this temperature; None takes the most likely token.
        top_p: Top-p (nucleus) sampling.
        seed: Fixes the sampling.

    Returns:
        For each prompt its answers, without special tokens and outer white space.
    """
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        inputs = encode(prompts)
    finally:
        tokenizer.padding_side = side
    how = _GREEDY
    if temperature is not None:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    how = {**how, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
    new = _new_tokens(model, tokenizer, inputs, how, max(num_beams, num_return_sequences), num_return_sequences, seed)
    texts = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return [texts[i : i + num_return_sequences] for i in range(0, len(texts), num_return_sequences)]


def sample_tokens(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    *,
    count: int,
    max_new_tokens: int,
    without: Collection[int] = (),
    seed: int = 0,
) -> list[list[tuple[int, ...]]]:
    """Sample answers to one batch of prompts at temperature 1, as the tokens that were drawn.

    Whatever else the model's own generation settings ask for (a penalty on repetition, the likeliest tokens alone) is
    left out: the answers are drawn from the policy itself, but for the tokens in `without`. As for
    shared weights, see `generate`.

    Args:
        model: A transformers model with `generate`.
        tokenizer: Its tokenizer.
        inputs: What the model takes for the prompts, padded on the left.
        count: Answers per prompt.
        max_new_tokens: Longest answer.
        without: Tokens that are never drawn; those that end an answer are drawn all the same.
        seed: Fixes the sampling.

    Returns:
        For each prompt its answers; the token that ends an answer is its last one where the answer was not cut.

    Raises:
        NonFiniteError: The model gives no finite probabilities to draw from.
    """
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)}
    never = sorted(set(without) - ends)
    how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    how |= {"max_new_tokens": max_new_tokens, "num_beams": 1, "eos_token_id": sorted(e for e in ends if e is not None)}
    how |= {"suppress_tokens": never} if never else {}
    drawable = _Drawable()
    how["logits_processor"] = LogitsProcessorList([drawable])
    rows = _new_tokens(model, tokenizer, inputs, how, count, count, seed).tolist()
    if bool(drawable.broken):
        raise NonFiniteError("the policy's probabilities of what to say next are not finite")
    answers = [tuple(row[: next((i for i, token in enumerate(row) if token in ends), len(row)) + 1]) for row in rows]
    return [answers[i : i + count] for i in range(0, len(answers), count)]


class _Drawable(LogitsProcessor):
    """Notices logits that nothing can be drawn from, and lets generation continue, in step with other processes."""

    broken: torch.Tensor | bool = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> Any:
        """Return the logits, made even where they are not finite."""
        bad = ~scores.amax(-1, keepdim=True).isfinite()
        self.broken = bad.any() | self.broken
        return scores.masked_fill(bad, 0.0)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _new_tokens(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    how: Mapping[str, Any],
    copies: int,
    answers: int,
    seed: int,
) -> torch.Tensor:
    """Return `Long[prompts × answers, tokens]`: what the model says, padded behind."""
    wrap_method(model, "generate")
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in dict(inputs).items()}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # By itself transformers waits for the other processes' answers under FSDP1 and DeepSpeed alone.
    common: dict[str, Any] = {"use_cache": True, "pad_token_id": pad, "synced_gpus": is_sharded(model)}
    length = inputs["input_ids"].shape[1]
    with inference(model):
        if copies > 1:
            inputs = _read_once(model, inputs, copies, common)
        torch.manual_seed(seed)
        tokens = model.generate(**inputs, **common, **how, num_return_sequences=answers)
    return tokens[:, length:]


def _read_once(model: Any, inputs: dict[str, Any], copies: int, common: dict[str, Any]) -> dict[str, Any]:
    """Run the prompts through the model and return inputs from which every beam or sample continues.

    The last token of a prompt is left to be read again, for what follows it is drawn from there. So the cache is cut by
    one token, which windows and linear attention do not allow: such models get their inputs back.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    kind = model.generation_config.cache_implementation
    if kind is not None or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return inputs
    layers = [_PromptLayer() for _ in cache.layers]
    cache.layers[:] = layers
    model.generate(
        **inputs, **_GREEDY, **common, max_new_tokens=1, num_beams=1, num_return_sequences=1, past_key_values=cache
    )
    cache.crop(-1)
    cache.batch_repeat_interleave(copies)
    for layer in layers:
        layer.prompt = cache.get_seq_length()
    return {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"past_key_values": cache}


class _PromptLayer(DynamicLayer):
    """A layer of the cache whose first tokens, the prompt's, are the same in all its beams and stay where they are."""

    prompt = 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put what the beams have written in another order."""
        assert self.keys is not None and self.values is not None
        for states in (self.keys, self.values):
            written = states[..., self.prompt :, :]
            written.copy_(written.index_select(0, beam_idx.to(written.device)))
