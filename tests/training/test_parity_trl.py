"""The same updates as TRL's DPOTrainer, and its losses where it has them. Written against trl 1.16.

TRL has no cDPO by that name: `robust` is another loss, but `aot` (which sorts a batch's margins) is cDPO on batches of
one pair. `sigmoid` with `sft` is DPO + NLL there (a mean over the batch's tokens, ours over responses). IPO takes means
per token on both sides. WPO differs: TRL's weights are the paper's "sampled alignment" (see `methods/wpo.py`).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_trainers import TRL_METRICS

from cwdpo.methods import SimPO
from pair_examples import example_pairs
from tiny_training import QUIET, clone, fresh, largest_difference, rows, train_dpo, trl_rows, weights

trl = pytest.importorskip("trl")

# TRL trains on everything that the template writes of an answer, so also on a new line after the end-of-turn token
# (ChatML) or on a trailing blank without any end (Vicuna). We end a response with its end-of-turn token. Templates that
# write nothing after it, and the start token themselves (TRL adds none), make the sequences of both the same.
TEMPLATES = {
    "llava": "<s>{% for m in messages %}{{ m['role'] | upper }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %} <image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "qwen2_5_vl": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% if m['role'] != 'assistant' %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("scorer", ["auto", pytest.param("separate", marks=pytest.mark.slow)])
def test_updates_equal_trl(family: str, scorer: str, tmp_path: Path) -> None:
    """Loss, gradient norm and every metric of four updates agree to 1e-5, and so do the weights after them."""
    check(family, tmp_path, {}, {"objective": "dpo", "scorer": scorer}, batch=2)


LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ipo": ({"loss_type": "ipo"}, {"objective": "ipo"}),
    "cdpo": ({"loss_type": "aot", "label_smoothing": 0.2}, {"objective": "cdpo", "label_smoothing": 0.2}),
    "rpo": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, {"objective": "rpo", "sft_weight": 0.5}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_trl(name: str, tmp_path: Path) -> None:
    """The same for other losses that TRL has, on batches of one pair where it takes those to mean the same."""
    theirs, ours = LOSSES[name]
    check("llava", tmp_path, theirs, ours, batch=2 if name == "ipo" else 1)


def test_simpo_equals_trl() -> None:
    """Loss and rewards of TRL's CPOTrainer (it reads no images), from the same means per token."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    pairs = example_pairs()
    settings = SimpleNamespace(alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=2.0, label_smoothing=0.0)
    settings.accelerator = SimpleNamespace(device="cpu")
    loss, chosen, _ = cpo.CPOTrainer.cpo_loss(settings, pairs.chosen_mean, pairs.rejected_mean)
    torch.testing.assert_close(SimPO(beta=2.0, target_margin=0.7).loss(pairs), loss)
    torch.testing.assert_close(chosen, 2.0 * pairs.chosen_mean.detach())


def check(family: str, tmp_path: Path, trl_args: dict[str, Any], our_args: dict[str, Any], *, batch: int) -> None:
    model, processor = fresh(family)
    processor.chat_template = TEMPLATES[family]
    table = trl_rows(rows(8, tmp_path, images=1))
    args: dict[str, Any] = QUIET | {"per_device_train_batch_size": batch, "max_steps": 4, "beta": 0.1}
    theirs = trl.DPOTrainer(
        clone(model),
        clone(model),
        args=trl.DPOConfig(
            str(tmp_path / "trl"), bf16=False, activation_checkpointing=False, max_length=None, **args, **trl_args
        ),
        train_dataset=table,
        processing_class=processor,
    )
    theirs.train()
    start = weights(model)
    ours = train_dpo(clone(model), processor, table, tmp_path / "ours", **args, **our_args)
    want, got = ([row for row in t.state.log_history if "loss" in row] for t in (theirs, ours))
    assert [row["step"] for row in want] == [row["step"] for row in got] == [1, 2, 3, 4]
    assert len({row["loss"] for row in want}) == 4
    for one, other in zip(got, want, strict=True):
        for name in ("loss", "grad_norm", *TRL_METRICS):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    assert largest_difference(weights(ours.model), weights(theirs.model), start) < 2e-5
