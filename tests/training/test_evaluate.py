"""Evaluation: the objective's loss over a data set, however it is batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_invariance import CASES, RESPONSES

from cwdpo.errors import DataError, RunError
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_training import QUIET, differing, fresh, rows, scores_of, train_dpo, train_sft, trl_rows, weights


def make(case: str, folder: Path, groups: Any, held_out: Any, **more: Any) -> Any:
    train, args, _ = CASES[case]
    model, processor = fresh()
    if train is train_sft:
        given = SFTCConfig(str(folder), **QUIET | args | more)
        return SFTCTrainer(model, given, groups, held_out, processing_class=processor)
    given = CWDPOConfig(str(folder), **QUIET | args | more)
    return CWDPOTrainer(model, args=given, train_dataset=groups, eval_dataset=held_out, processing_class=processor)


@pytest.mark.parametrize("case", CASES)
def test_loss_of_a_data_set(case: str, tmp_path: Path) -> None:
    """After some updates, so that policy and reference differ: the naive loss over all 8 rows as one batch."""
    groups, held_out = rows(4, tmp_path), rows(8, tmp_path, responses=RESPONSES, seed=1)
    found: list[dict[str, float]] = []
    trainer = make(case, tmp_path / "run", groups, held_out, max_steps=4)
    trainer.train()
    for size in (1, 3, 8):
        trainer.args.per_device_eval_batch_size = size
        found.append(trainer.evaluate())
    start, processor = fresh()
    with torch.no_grad():
        reference = scores_of(start, processor, held_out)[1].logp_sum
        batch, scores = scores_of(trainer.model.eval(), processor, held_out)
        want = float(CASES[case][2](batch, scores, reference))
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(want, rel=1e-5)
        for name in {n for n in metrics if not n.endswith(("runtime", "per_second"))}:
            assert metrics[name] == pytest.approx(found[0][name], rel=1e-4, abs=1e-5), name
    assert "eval_mean_token_accuracy" in found[0]
    assert "eval_logps/rejected" in found[0]


@pytest.mark.parametrize("case", ["sft_c", "dpo"])
def test_changes_nothing(case: str, tmp_path: Path) -> None:
    """Dropout is off in evaluation and the random state comes back: training goes on as without it."""
    groups = rows(6, tmp_path, images=0)
    held_out = rows(3, tmp_path, images=0, seed=1)
    found = []
    for more in ({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 1}):
        train = train_sft if case == "sft_c" else train_dpo
        kept: dict[str, Any] = {"max_steps": 3, **more}
        model, processor = fresh(attention_dropout=0.2)
        folder = tmp_path / more["eval_strategy"]
        if train is train_sft:
            trainer: Any = SFTCTrainer(
                model, SFTCConfig(str(folder), **QUIET | kept), groups, held_out, processing_class=processor
            )
        else:
            given = CWDPOConfig(str(folder), **QUIET | kept)
            trainer = CWDPOTrainer(
                model, args=given, train_dataset=groups, eval_dataset=held_out, processing_class=processor
            )
        trainer.train()
        found.append(weights(trainer.model))
        assert sum("eval_loss" in row for row in trainer.state.log_history) == (3 if len(found) == 2 else 0)
    assert not differing(*found)


def test_other_data_sets(tmp_path: Path) -> None:
    """Several by name; another one per call, also in TRL's columns."""
    groups, held_out = rows(2, tmp_path, images=1), rows(3, tmp_path, images=1, seed=1)
    trainer = make("dpo", tmp_path / "a", groups, {"one": held_out[:1], "two": held_out[1:]}, max_steps=1)
    before = trainer.evaluate()
    assert before["eval_one_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert trainer.evaluate(trl_rows(groups))["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    trainer.train()
    after = trainer.evaluate()
    assert {"eval_one_loss", "eval_two_loss"} <= after.keys()
    assert after["eval_two_loss"] != pytest.approx(0.693147, abs=1e-3)


def test_rows_without_a_cached_reference(tmp_path: Path) -> None:
    trainer = make("dpo", tmp_path / "a", rows(2, tmp_path), None, max_steps=1)
    trainer.train()
    with pytest.raises(RunError, match=r"sample\.jsonl:1.*no reference log-probabilities.*live"):
        trainer.evaluate(rows(1, tmp_path, seed=5))


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    """Rows without any rejected response cannot be evaluated as pairs."""
    trainer = make("dpo", tmp_path / "a", rows(2, tmp_path), None, max_steps=1, reference="live")
    with pytest.raises(DataError, match=r"sample\.jsonl:1.*rejected"):
        trainer.evaluate(rows(1, tmp_path, responses=1))
