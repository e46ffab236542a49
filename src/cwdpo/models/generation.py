"""Answers to many prompts at once, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["RandomState", "capture_random", "generate", "inference", "restore_random"]


@dataclass(frozen=True)
class RandomState:
    """Torch's random state on the CPU and on every GPU."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]


def capture_random() -> RandomState:
    """Return torch's random state."""
    return RandomState(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def restore_random(state: RandomState) -> None:
    """Put torch's random state back."""
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)


@contextmanager
def inference(model: Any) -> Generator[None]:
    """Run the block in evaluation mode without gradients; mode, cache setting and random state come back after it."""
    modes = {module: module.training for module in model.modules()}
    random_state = capture_random()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        restore_random(random_state)


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

    Args:
        model: A transformers model with `generate`.
        tokenizer: Its tokenizer; padded on the left for the call.
        encode: Prompts to model inputs, padded (a processor call).
        prompts: What `encode` takes.
        max_new_tokens: Longest answer.
        num_beams: Width of a beam search; 1 is greedy or sampling.
        num_return_sequences: Answers per prompt.
        temperature: Sample at this temperature; None takes the most likely token.
        top_p: Sample from the likeliest tokens that have this probability together.
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
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in dict(inputs).items()}
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with inference(model):
        torch.manual_seed(seed)
        tokens = model.generate(
            **inputs,
            **sampling,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    new = tokens[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return [texts[i : i + num_return_sequences] for i in range(0, len(texts), num_return_sequences)]
