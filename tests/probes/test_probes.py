"""Probes: they change nothing, and every number is what plain torch gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from cwdpo.data.schema import Response
from cwdpo.errors import DataError
from cwdpo.probes.reading import ProbeSet, kind_of
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.loop_callbacks import MetricsFile
from cwdpo.training.callbacks.probe_callback import ProbeCallback, probe_scalars
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.trainers import CWDPOTrainer
from tiny_models import tiny_image
from tiny_runs import rows_of
from tiny_training import QUIET, clone, differing, fresh, lora, rows, scores_of, weights


def probe_set(groups: list[Any], processor: Any, batch_size: int = 2) -> ProbeSet:
    return ProbeSet(groups, PromptEncoder(processor), batch_size=batch_size, floor=-7.5, tau=0.5)


def gold_logits(model: Any, processor: Any, groups: list[Any]) -> Tensor:
    """`Float[chosen tokens, vocabulary]` in the order of the groups."""
    parts: list[Tensor] = []
    for group in groups:
        batch, _ = scores_of(model, processor, [group.with_responses([group.chosen])])
        parts.append(SeparateScorer()(model, batch).logits)
    return torch.cat(parts)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_reading_against_plain_torch(batch_size: int, tmp_path: Path) -> None:
    """Per kind: mean over responses of the mean over tokens. Over the gold tokens: TV, JS (bits), ECE in 15 bins."""
    model, processor = fresh()
    groups = rows(5, tmp_path, responses=[2, 4, 3])
    other = clone(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.02)
    probes = probe_set(groups, processor, batch_size)
    with torch.no_grad():
        first, start = probes.read(model, SeparateScorer(), keep=True)
        reading, _ = probes.read(other, AutoScorer("auto"), start=start)
        beside, _ = probes.read(other, SeparateScorer(), before=model)
        batch, scores = scores_of(other, processor, groups)
        p, q = (gold_logits(m, processor, groups).double().softmax(-1) for m in (model, other))
    assert start is not None
    torch.testing.assert_close(start.double().softmax(-1), p, rtol=1e-5, atol=1e-7)
    assert first["tv"] == first["js"] == 0.0

    kinds = [kind_of(r) for r in batch.responses]
    assert set(reading["kinds"]) == set(kinds) == {"chosen", "hard", "medium", "easy"}
    length = scores.mask.sum(1)
    mean = scores.logps.sum(1) / length
    for kind, values in reading["kinds"].items():
        mine = torch.tensor([k == kind for k in kinds])
        weight = torch.sigmoid((mean[mine] + 7.5) / 0.5)
        want = {
            "count": int(mine.sum()),
            "logp_mean": float(mean[mine].mean()),
            "logp_sum": float(scores.logps.sum(1)[mine].mean()),
            "entropy": float((scores.entropy.sum(1) / length)[mine].mean()),
            "top1": float((scores.top1.sum(1) / length)[mine].mean()),
            "cooling_weight": float(weight.mean()),
        }
        for name, value in want.items():
            assert values[name] == pytest.approx(value, rel=1e-4), (kind, name)
        bars = [sum(i / 10 <= w < (i + 1) / 10 for w in weight.tolist()) for i in range(10)]
        assert values["cooling_histogram"] == bars
        assert sum(bars) == values["count"]

    tv = float(0.5 * (p - q).abs().sum(-1).mean())
    m = 0.5 * (p + q)
    js = float((0.5 * (p * (p / m).log2() + q * (q / m).log2()).sum(-1)).mean())
    for found in (reading, beside):
        assert found["tv"] == pytest.approx(tv, rel=1e-3)
        assert found["js"] == pytest.approx(js, rel=1e-3)
    assert tv > 0.01

    top, index = q.max(-1)
    gold = torch.cat([torch.tensor(r.ids) for r in batch.responses if r.role == "chosen"])
    ece = 0.0
    for b in range(15):
        inside = (top >= b / 15) & (top < (b + 1) / 15)
        if inside.any():
            accuracy = float((index == gold)[inside].double().mean())
            ece += float(inside.double().mean()) * abs(accuracy - float(top[inside].mean()))
    assert reading["ece"] == pytest.approx(ece, rel=1e-4)
    assert sum(bar["count"] for bar in reading["reliability"]) == len(gold)


def test_further_figures_against_plain_torch(tmp_path: Path) -> None:
    """Σ log max π per response, 1 − top-1, gold tokens that are the argmax, pairs ranked right, top tokens."""
    model, processor = fresh()
    groups = rows(4, tmp_path, responses=3)
    probes = ProbeSet(groups, PromptEncoder(processor), batch_size=3, floor=-3.0, tau=1.0)
    reading, _ = probes.read(model, SeparateScorer(), per_prompt=True, tokens=2)
    with torch.no_grad():
        batch, scores = scores_of(model, processor, groups)
        chosen, rejected = batch.pairs()
        gold = sorted(set(chosen))
        argmax = torch.where(scores.mask, scores.top1.log(), 0.0).sum(1)[gold].mean()
        assert reading["kinds"]["chosen"]["argmax_logp"] == pytest.approx(float(argmax), rel=1e-4)
        off = 1 - (scores.top1.sum(1) / scores.mask.sum(1))[gold].mean()
        assert reading["kinds"]["chosen"]["off_argmax"] == pytest.approx(float(off), rel=1e-4)
        assert reading["accuracy"] == pytest.approx(float(scores.correct[gold][scores.mask[gold]].float().mean()))
        mean = scores.logps.sum(1) / scores.mask.sum(1)
        assert reading["ranking"] == pytest.approx(float((mean[chosen] > mean[rejected]).float().mean()))

        shown = reading["top_tokens"]
        assert [row["id"] for row in shown] == ["row-0", "row-1"]
        only, _ = scores_of(model, processor, [groups[1].with_responses([groups[1].chosen])])
        expected = SeparateScorer()(model, only).logits.softmax(-1)
    assert len(shown[1]["places"]) == len(shown[1]["gold"]) == len(expected)
    for place, probabilities in zip(shown[1]["places"], expected, strict=True):
        best, ids = probabilities.topk(20)
        assert [p for _, p in place] == pytest.approx(best.tolist(), abs=1e-5)
        assert place[0][0] == processor.tokenizer.decode([int(ids[0])])


def test_a_reading_by_hand(tmp_path: Path) -> None:
    """A head of zeros is the uniform distribution over V classes: ℓ̄ = −log V, entropy log V, top-1 1/V.

    Two models that differ in one bias-free head row cannot be compared by hand, but uniform against itself can:
    TV = JS = 0. All argmaxes are token 0, no gold token is: ECE = |0 − 1/V| = 1/V.
    """
    model, processor = fresh()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    classes = model.lm_head.weight.shape[0]
    probes = probe_set(rows(3, tmp_path, responses=2), processor)
    _, start = probes.read(model, SeparateScorer(), keep=True)
    reading, _ = probes.read(model, SeparateScorer(), start=start)
    chosen = reading["kinds"]["chosen"]
    assert chosen["logp_mean"] == pytest.approx(-math.log(classes), rel=1e-5)
    assert chosen["entropy"] == pytest.approx(math.log(classes), rel=1e-5)
    assert chosen["top1"] == pytest.approx(1 / classes, rel=1e-5)
    assert reading["ece"] == pytest.approx(1 / classes, rel=1e-5)
    assert reading["tv"] == 0.0
    assert reading["js"] == 0.0


def trainer_with(callbacks: list[Any], groups: list[Any], folder: Path, adapters: bool) -> Any:
    model, processor = fresh(attention_dropout=0.2)
    if adapters:
        torch.manual_seed(1)
        model = get_peft_model(model, lora(lora_dropout=0.3, init_lora_weights=False))
    args = CWDPOConfig(
        str(folder),
        **QUIET
        | {
            "max_steps": 4,
            "optim": "adamw_torch",
            "train_sampling_strategy": "random",
            "reference": "live" if adapters else "cached",
        },
    )
    return CWDPOTrainer(model, args=args, train_dataset=groups, processing_class=processor, callbacks=callbacks)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_probes_change_nothing(adapters: bool, tmp_path: Path) -> None:
    """With dropout and a random order: final weights are bitwise those of a run without probes."""
    groups, held_out = rows(6, tmp_path, images=1), rows(3, tmp_path, responses=3, seed=1)
    without = trainer_with([], groups, tmp_path / "without", adapters)
    without.train()
    callback = ProbeCallback(
        probe_set(held_out, without.processing_class), AutoScorer("auto"), tmp_path / "with", every=1
    )
    probed = trainer_with([callback], groups, tmp_path / "with", adapters)
    callback.attach(probed)
    before = weights(probed.model)
    probed.train()
    assert len(callback.rows) == 5
    assert not differing(weights(probed.model), weights(without.model))
    assert differing(weights(probed.model), before)
    assert [p.requires_grad for p in probed.model.parameters()] == [p.requires_grad for p in without.model.parameters()]
    assert probed.model.training == without.model.training
    ours, theirs = ([row for row in t.state.log_history if "loss" in row] for t in (probed, without))
    assert ours == theirs


def test_rows_of_a_run(tmp_path: Path) -> None:
    """Readings at 0, 2 and the last update; each Δ against the start and against the reading before."""
    groups, held_out = rows(6, tmp_path, images=0), rows(2, tmp_path, images=0, responses=3, seed=1)
    folder = tmp_path / "run"
    # The callback stands before the file on purpose: its first row is logged before training begins.
    callback = ProbeCallback(probe_set(held_out, fresh()[1]), SeparateScorer(), folder, every=2)
    trainer = trainer_with([callback, MetricsFile(folder / "metrics.jsonl")], groups, folder, False)
    trainer.args.max_steps = 3
    callback.attach(trainer)
    model = trainer.model
    with torch.no_grad():
        before = scores_of(clone(model).eval(), trainer.processing_class, held_out)
    trainer.train()
    readings = rows_of(folder / "probes.jsonl")
    assert [row["step"] for row in readings] == [0, 2, 3]
    assert readings == json.loads(json.dumps(callback.rows))
    with torch.no_grad():
        after = scores_of(model.eval(), trainer.processing_class, held_out)
    mine = [i for i, r in enumerate(after[0].responses) if kind_of(r) == "chosen"]
    start, end = (float(found[1].logp_mean[mine].mean()) for found in (before, after))
    first, middle, last = (row["kinds"]["chosen"] for row in readings)
    assert (first["delta_start"], first["delta_last"]) == (0.0, 0.0)
    assert first["logp_mean"] == pytest.approx(start, rel=1e-5)
    assert last["delta_start"] == pytest.approx(end - start, abs=1e-4)
    assert middle["delta_start"] + last["delta_last"] == pytest.approx(last["delta_start"], abs=1e-9)
    assert readings[0]["tv"] == readings[0]["js"] == 0.0
    assert 0 < readings[1]["tv"] < 1
    logged = rows_of(folder / "metrics.jsonl")
    assert [row["step"] for row in logged if "probe/ece" in row] == [0, 2, 3]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3]
    assert not any("train_runtime" in row for row in logged)
    flat = probe_scalars(readings[1])
    assert flat["probe/delta_start/chosen"] == middle["delta_start"]
    assert flat["probe/tv"] == readings[1]["tv"]


def test_another_probe_set_starts_anew(tmp_path: Path) -> None:
    """Readings of other prompts, images or responses are never continued."""
    _, processor = fresh()
    groups = rows(2, tmp_path, images=1)
    digest = probe_set(groups, processor).digest
    assert digest == probe_set(list(groups), processor).digest
    first = groups[0]
    for other in (
        replace(first, id="other"),
        replace(first, images=(tiny_image(tmp_path / "other.png", seed=77),)),
        replace(first, messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},)),
        first.with_responses([Response("else"), *first.responses[1:]]),
    ):
        assert probe_set([other, groups[1]], processor).digest != digest


def test_kinds() -> None:
    """A rejected response is reported by its difficulty where it has one; other roles by their name."""
    from cwdpo.scoring.batch import EncodedResponse

    def kind(role: str, difficulty: str | None = None) -> str:
        return kind_of(EncodedResponse((1,), role, "dataset", difficulty, ""))

    assert [kind("chosen"), kind("rejected", "hard"), kind("rejected"), kind("paraphrase")] == [
        *("chosen", "hard", "rejected", "paraphrase"),
    ]


def test_no_chosen_response(tmp_path: Path) -> None:
    _, processor = fresh()
    groups = [g.with_responses(g.by_role("rejected")) for g in rows(2, tmp_path)]
    with pytest.raises(DataError, match="no prompt has a chosen response"):
        probe_set(groups, processor)
