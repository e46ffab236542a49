"""The same updates as TRL's DPOTrainer, and its losses where it has them. Written against trl 1.16.

TRL has no cDPO by that name: `robust` is another loss, but `aot` (which sorts a batch's margins) is cDPO on batches of
one pair. `sigmoid` with `sft` is DPO + NLL there, with a mean over the tokens of a micro-batch, ours is over responses.
IPO takes means per token on both sides. WPO differs: TRL has the paper's "sampled alignment" (see `methods/wpo.py`).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_trainers import TRL_METRICS

from cwdpo.methods import SimPO
from pair_examples import example_pairs
from tiny_training import (
    QUIET,
    clone,
    fresh,
    largest_difference,
    lora,
    rows,
    scores_of,
    train_dpo,
    train_sft,
    trl_rows,
    weights,
)

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


@pytest.mark.parametrize("where", ["adapters", "attention"])
def test_no_dropout_in_stage_two(where: str, tmp_path: Path) -> None:
    """The policy starts as the reference, so that the first loss is log 2 = 0.693147 at any rate of dropout."""
    model, processor = fresh(attention_dropout=0.3 if where == "attention" else 0.0)
    if where == "adapters":
        model = get_peft_model(model, lora(lora_dropout=0.3, init_lora_weights=False))
    trainer = train_dpo(model, processor, rows(2, tmp_path, images=1), tmp_path / "out", objective="dpo", max_steps=1)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_load_balancing_equals_transformers(stage: str, tmp_path: Path) -> None:
    """Experts: the loss gains the coefficient times what the model itself calls `aux_loss`, in both micro-batches."""
    model, processor = fresh("qwen3_vl_moe", router_aux_loss_coef=0.5)
    groups = rows(4, tmp_path, images=1, responses=[1])
    if stage == "stage2":
        groups = rows(4, tmp_path, images=1)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "learning_rate": 0.0}
    train = train_sft if stage == "stage1" else train_dpo
    objective = {"objective": "sft" if stage == "stage1" else "dpo", "scorer": "separate"}
    logged = train(clone(model), processor, groups, tmp_path / "out", **cut | objective).state.log_history[0]
    expected = []
    for part in (groups[:2], groups[2:]):
        sequences: list[Any] = []
        handle = model.register_forward_pre_hook(
            lambda module, given, named, into=sequences: into.append(named), with_kwargs=True
        )
        scores_of(model, processor, part)
        handle.remove()
        named = {name: value for name, value in sequences[0].items() if name != "use_cache"}
        expected.append(float(model(**named, output_router_logits=True).aux_loss))
    assert logged["aux_loss"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    own = logged["nll/chosen"] if stage == "stage1" else 0.693147
    assert logged["loss"] == pytest.approx(own + 0.5 * sum(expected) / 2, rel=1e-5)


def test_simpo_equals_trl() -> None:
    """Loss and rewards of TRL's CPOTrainer (it reads no images), from the same means per token."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    pairs = example_pairs()
    settings = SimpleNamespace(alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=2.0, label_smoothing=0.0)
    settings.accelerator = SimpleNamespace(device="cpu")
    loss, chosen, _ = cpo.CPOTrainer.cpo_loss(settings, pairs.chosen_mean, pairs.rejected_mean)
    torch.testing.assert_close(SimPO(beta=2.0, target_margin=0.7).loss(pairs), loss)
    torch.testing.assert_close(chosen, 2.0 * pairs.chosen_mean.detach())


def test_two_pairs_a_micro_batch_under_accumulation(tmp_path: Path) -> None:
    """Two micro-batches of two pairs an update: DPO's updates are TRL's."""
    check("llava", tmp_path, {}, {"objective": "dpo"}, batch=2, gradient_accumulation_steps=2)


def test_where_the_nll_differs(tmp_path: Path) -> None:
    """There, TRL's NLL is a mean over the tokens of each micro-batch, ours over the responses: no more, no less."""
    model, processor = fresh()
    processor.chat_template = TEMPLATES["llava"]
    groups = rows(4, tmp_path, images=1)
    cut = {"batch": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainers = train_both(model, processor, trl_rows(groups), tmp_path, *LOSSES["rpo"], **cut)
    theirs, ours = (t.state.log_history[0]["loss"] for t in trainers)
    batch, scores = scores_of(model.eval(), processor, groups)
    chosen = batch.pairs()[0]
    total, tokens = -scores.logp_sum.detach()[chosen], scores.tokens[chosen]
    by_token = (total[:2].sum() / tokens[:2].sum() + total[2:].sum() / tokens[2:].sum()) / 2
    difference = 0.5 * ((total / tokens).mean() - by_token).item()
    assert abs(difference) > 1e-3 and ours - theirs == pytest.approx(difference, abs=1e-5)


OVER_TOKENS = ("entropy", "entropy/chosen", "mean_token_accuracy")
"""Under accumulation TRL logs means of the micro-batches' means; these are means over tokens."""


def check(
    family: str, tmp_path: Path, trl_args: dict[str, Any], our_args: dict[str, Any], *, batch: int, **more: Any
) -> None:
    model, processor = fresh(family)
    processor.chat_template = TEMPLATES[family]
    table, start = trl_rows(rows(8, tmp_path, images=1)), weights(model)
    theirs, ours = train_both(model, processor, table, tmp_path, trl_args, our_args, batch=batch, **more)
    want, got = ([row for row in t.state.log_history if "loss" in row] for t in (theirs, ours))
    assert [row["step"] for row in want] == [row["step"] for row in got] == [1, 2, 3, 4]
    assert len({row["loss"] for row in want}) == 4
    for one, other in zip(got, want, strict=True):
        for name in {"loss", "grad_norm", *TRL_METRICS} - (set(OVER_TOKENS) if more else set()):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    assert largest_difference(weights(ours.model), weights(theirs.model), start) < 2e-5


def train_both(
    model: Any,
    processor: Any,
    table: Any,
    tmp_path: Path,
    trl_args: dict[str, Any],
    our_args: dict[str, Any],
    *,
    batch: int,
    **more: Any,
) -> tuple[Any, Any]:
    """TRL's trainer and ours after four updates from the same weights."""
    args: dict[str, Any] = QUIET | {"per_device_train_batch_size": batch, "max_steps": 4, "beta": 0.1} | more
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
    return theirs, train_dpo(clone(model), processor, table, tmp_path / "ours", **args, **our_args)
