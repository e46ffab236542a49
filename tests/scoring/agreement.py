"""Two scorers side by side: the same log-probabilities, the same gradients."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from cwdpo.models.attention import OWN_ATTENTION, use_own_attention
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from tiny_models import FAMILIES, MORE_FAMILIES

ALL = (*FAMILIES, *MORE_FAMILIES)


def collate(processor: Any, groups: list[Any]) -> Batch:
    return GroupCollator(PromptEncoder(processor))(groups)["batch"]


def score(scorer: Any, model: Any, batch: Batch) -> Scores:
    return scores_from_logits(scorer(model, batch))


def gradients(scorer: Any, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Sums of log-probabilities, and the gradient of a sum over them with weights of both signs."""
    model.zero_grad()
    sums = score(scorer, model, batch).logp_sum
    (sums * torch.linspace(-1, 1.3, len(sums))).sum().backward()
    return sums.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-4)
    assert one[1].keys() == other[1].keys() and one[1]
    size = torch.stack([g.norm() for g in one[1].values()]).norm()
    assert size > 0.1
    for name, gradient in one[1].items():
        # Some are 0 but for rounding (the bias of a key shifts all scores alike): measured against the whole there.
        allowed = 1e-5 * gradient.norm() + 1e-7 * size
        assert (gradient - other[1][name]).norm() <= allowed, name


def attend(model: Any, attention: str) -> None:
    if attention in OWN_ATTENTION:
        use_own_attention(model, attention)
    else:
        model.set_attn_implementation(attention)


def adapted(model: Any, checkpointing: bool) -> Any:
    """The model in training under adapters that are not zero, with or without gradient checkpointing."""
    found: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found.train()
    if checkpointing:
        found.enable_input_require_grads()
        found.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return found
