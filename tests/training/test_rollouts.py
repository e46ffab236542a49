"""GRPO and PPO in the loop: sampled responses, their updates against naive computations, learning, kills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import COMMON, Kill, KillAt

from cwdpo.errors import DataError, RecipeError
from cwdpo.models.generation import sample_tokens
from cwdpo.objectives.sampled import SampledResponse
from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.full_sequence import SeparateScorer, prompt_inputs
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.training.callbacks.loop_callbacks import MetricsFile
from cwdpo.training.checkpoints import last_checkpoint
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.rollout_scoring import Critic, scores_and_features
from cwdpo.training.trainers import CWDPOTrainer
from tiny_training import QUIET, differing, fresh, largest_difference, lora, rows, weights

SHORT: dict[str, Any] = {"max_new_tokens": 6, "samples": 3}


def vowels(group: EncodedGroup, texts: Sequence[str]) -> list[float]:
    """A reward that any text can earn: the share of its characters that are letters from a to m."""
    return [sum("a" <= c.lower() <= "m" for c in text) / max(1, len(text)) for text in texts]


def trainer_of(groups: Any, folder: Path, *, made: Any = None, **args: Any) -> CWDPOTrainer:
    model, processor = made or fresh()
    others = {name: args.pop(name) for name in ("callbacks", "peft_config", "scorer", "reward") if name in args}
    settings = CWDPOConfig(str(folder), **QUIET | SHORT | args)
    given: dict[str, Any] = {"reward": vowels, "train_dataset": groups, "processing_class": processor}
    return CWDPOTrainer(model, args=settings, **given | others)


class Watched(CWDPOTrainer):
    """Keeps the batches of every update."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_batch_samples(*args, **kwargs)
        self.seen = [*getattr(self, "seen", []), self.update_batches]
        return found


def sampled(batches: Sequence[Batch]) -> list[SampledResponse]:
    return [r for b in batches for r in b.responses if isinstance(r, SampledResponse)]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_sample_tokens(family: str, tmp_path: Path) -> None:
    """An answer ends with the first token that ends one, holds nothing forbidden, and is drawn from the policy."""
    model, processor = fresh(family)
    trainer = trainer_of(rows(3, tmp_path, images=1), tmp_path, made=(model, processor), objective="grpo")
    encoder, groups = trainer.encoder, [trainer.encoder.encode(g) for g in rows(3, tmp_path, images=1)]
    tokenizer = encoder.tokenizer
    end, forbidden = tokenizer.eos_token_id, set(tokenizer.all_special_ids)
    inputs = prompt_inputs(model, groups, tokenizer.pad_token_id)
    plain = encoder.prompt_inputs(rows(3, tmp_path, images=1), padding=True, padding_side="left")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(inputs[name], plain[name]), name
    state = torch.get_rng_state()
    found = sample_tokens(model, tokenizer, inputs, count=20, max_new_tokens=30, without=forbidden, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(answers) for answers in found] == [20, 20, 20]
    flat = [ids for answers in found for ids in answers]
    assert all(end not in ids[:-1] and not forbidden - {end} & set(ids) for ids in flat)
    assert all(ids[-1] == end for ids in flat if len(ids) < 30)
    assert len(set(flat)) > 30
    again = sample_tokens(model, tokenizer, inputs, count=20, max_new_tokens=30, without=forbidden, seed=1)
    assert again == found


def test_grpo_s_first_update_is_the_policy_gradient(tmp_path: Path) -> None:
    """At π = π_old = π_ref the gradient is that of −mean over responses of A·ℓ̄, by a scorer of its own."""
    groups = rows(4, tmp_path, images=1)
    model, processor = fresh()
    args = CWDPOConfig(
        str(tmp_path / "run"), **QUIET | SHORT | {"objective": "grpo", "per_device_train_batch_size": 2, "max_steps": 1}
    )
    given: dict[str, Any] = {"train_dataset": groups, "processing_class": processor, "reward": vowels}
    trainer = Watched(model, args=args, **given, scorer=SeparateScorer())
    trainer.train()
    (batches,) = trainer.seen
    other, _ = fresh()
    other.train()
    logp_mean = scores_from_logits(SeparateScorer()(other, batches[0])).logp_mean
    rewards = torch.tensor([r.reward for r in sampled(batches)]).view(2, 3)
    assert float(rewards.std()) > 0
    want = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    assert [r.advantages[0] for r in sampled(batches)] == pytest.approx(want.tolist(), abs=1e-4)
    assert all(len(set(r.advantages)) == 1 and len(r.advantages) == len(r.ids) for r in sampled(batches))
    (-(want * logp_mean).mean()).backward()
    moved = 0
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            by_hand = parameter.detach() - 1e-2 * parameter.grad
            torch.testing.assert_close(model.state_dict()[name], by_hand, rtol=1e-5, atol=1e-7)
            moved += not torch.equal(by_hand, parameter)
    assert moved > 10


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_any_cut_samples_the_same(name: str, tmp_path: Path) -> None:
    """4 × 1 and 1 × 4 end at the same weights; a smaller batch of prompts at once draws other responses."""
    groups, start, found = rows(8, tmp_path, images=1), weights(fresh()[0]), []
    for i, (micro, at_once) in enumerate(((4, 16), (1, 16), (4, 3))):
        cut = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        args = {"objective": name, "max_steps": 3, "rollout_batch_size": at_once, "rollout_updates": 2}
        trainer = trainer_of(groups, tmp_path / f"{i}", **args | cut)
        trainer.train()
        found.append(trainer)
        assert not (tmp_path / f"{i}" / "reference").exists()
    one, other, smaller = (weights(t.model) for t in found)
    assert largest_difference(one, other, start) < 1e-4
    assert largest_difference(one, smaller, start) > 1e-2
    logged = [row for row in found[0].state.log_history if "loss" in row]
    named = {"reward", "reward_std", "frac_reward_zero_std", "kl", "clip_ratio", "entropy", "completions/mean_length"}
    assert all(not (named | ({"value_loss"} if name == "ppo" else set())) - row.keys() for row in logged)
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-6) and logged[1]["kl"] > 0


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_learns(name: str, tmp_path: Path) -> None:
    """The reward of a random model rises."""
    args = {"objective": name, "samples": 8, "max_steps": 24, "optim": "adamw_torch", "learning_rate": 3e-3, "kl": 0.0}
    trainer = trainer_of(rows(4, tmp_path, images=0), tmp_path / "run", per_device_train_batch_size=4, **args)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1


def test_kl_holds_the_policy_back(tmp_path: Path) -> None:
    """The same updates with a heavy divergence in the loss stay nearer to the reference."""
    ends: list[float] = []
    for kl in (0.001, 2.0):
        args = {"objective": "grpo", "max_steps": 12, "optim": "adamw_torch", "learning_rate": 3e-3, "kl": kl}
        trainer = trainer_of(rows(4, tmp_path, images=0), tmp_path / f"{kl}", per_device_train_batch_size=4, **args)
        trainer.train()
        ends.append([row["kl"] for row in trainer.state.log_history if "kl" in row][-1])
    assert ends[1] < 0.6 * ends[0]


def test_the_reference_of_fresh_adapters_is_the_base(tmp_path: Path) -> None:
    args = {"objective": "grpo", "peft_config": lora(), "max_steps": 2, "per_device_train_batch_size": 2}
    trainer = trainer_of(rows(4, tmp_path, images=0), tmp_path / "run", learning_rate=1.0, **args)
    trainer.train()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-4


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_killed_within_a_rollout(name: str, tmp_path: Path) -> None:
    """Three updates a rollout and an epoch, saved after every second: after 2 in its middle, after 4 in the next's."""
    groups, args = rows(12, tmp_path, images=1), COMMON | {"objective": name, "rollout_updates": 3}

    def run(folder: Path, kill: int | None = None, noise: int = 0) -> Any:
        torch.manual_seed(noise)
        callbacks = [MetricsFile(folder / "metrics.jsonl"), *([KillAt(kill)] if kill else [])]
        trainer = trainer_of(groups, folder, made=fresh(attention_dropout=0.1), callbacks=callbacks, **args)
        checkpoint, _ = last_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return weights(trainer.model), [json.loads(line) for line in lines]

    want, rows_wanted = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    for kill in (3, 5):
        with pytest.raises(Kill):
            run(folder, kill, noise=kill)
    found, rows_found = run(folder, noise=9)
    assert not differing(found, want)
    assert rows_found == rows_wanted
    assert [row["step"] for row in rows_wanted if "loss" in row] == [3, 6]


def test_the_critic_learns_returns(tmp_path: Path) -> None:
    """One state alone is at its return after one step of rate 1; several are fitted by many steps."""
    critic = Critic(1.0)
    state = torch.nn.functional.normalize(torch.tensor([[3.0, 4.0]]), dim=-1)
    assert critic.values(state).tolist() == [0.0]
    critic.learn(state, torch.tensor([2.0]))
    assert critic.values(state).tolist() == pytest.approx([2.0])  # ½·2·(φ·φ + 1)
    model, processor = fresh()
    trainer = trainer_of(rows(4, tmp_path, images=0), tmp_path, made=(model, processor), objective="ppo")
    batch = Batch(tuple(trainer.encoder.encode(g) for g in rows(4, tmp_path, images=0)))
    model.eval()
    with torch.no_grad():
        logps, mask, features = scores_and_features(model, SeparateScorer(), batch)
        plain = scores_from_logits(SeparateScorer()(model, batch))
        hidden: list[torch.Tensor] = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        SeparateScorer()(model, batch)
        hook.remove()
    assert torch.equal(logps, plain.logps) and torch.equal(mask, plain.mask)
    last = torch.nn.functional.normalize(hidden[0][:, -1], dim=-1)  # right-aligned: the last place of every response
    lengths = mask.sum(-1).tolist()
    assert torch.equal(torch.stack([features[i, n - 1] for i, n in enumerate(lengths)]), last)
    critic, returns = Critic(1.0), torch.linspace(0, 1, int(mask.sum()))
    errors = []
    for _ in range(200):
        errors.append(float((critic.values(features[mask]) - returns).square().mean()))
        critic.learn(features[mask], returns)
    assert errors[-1] < 0.5 * errors[1] < errors[0]


@pytest.mark.parametrize("args", [{"reference": "cached"}, {"include_eos": False}, {"samples": 1}])
def test_what_does_not_go_together(args: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=next(iter(args))):
        CWDPOConfig(str(tmp_path), **QUIET | {"objective": "grpo"} | args)


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    groups = rows(2, tmp_path, images=0)
    model, processor = fresh()
    args = CWDPOConfig(str(tmp_path), **QUIET | SHORT | {"objective": "grpo"})
    with pytest.raises(RecipeError, match=r"^eval_dataset: grpo has no loss on given responses"):
        CWDPOTrainer(model, args=args, train_dataset=groups, eval_dataset=groups, processing_class=processor)
    short = trainer_of(groups, tmp_path / "a", objective="grpo", max_length=100, max_new_tokens=99, max_steps=1)
    with pytest.raises(DataError, match=r"are more than the limit of 100; lower stage2\.max_new_tokens"):
        short.train()
    broken = trainer_of(groups, tmp_path / "b", objective="grpo", reward=lambda group, texts: [0.0], max_steps=1)
    with pytest.raises(DataError, match=r"^sample\.jsonl:\d: the reward gave \[0\.0\] for 3 responses"):
        broken.train()
