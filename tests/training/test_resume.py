"""A run that was killed and taken up again ends bitwise where an uninterrupted one ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback

import cwdpo.training.trainer as trainer_module
from cwdpo.errors import RunError
from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.training.callbacks.loop_callbacks import MetricsFile, RowsKnown, StopOnSignal
from cwdpo.training.callbacks.probe_callback import ProbeCallback
from cwdpo.training.checkpoints import MARKER, last_checkpoint
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_models import sample_groups
from tiny_runs import rows_of
from tiny_training import QUIET, differing, fresh, lora, rows, train_sft, weights

COMMON: dict[str, Any] = QUIET | {
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "train_sampling_strategy": "random",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 7,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
}
"""12 rows are 3 updates an epoch: checkpoints at 2, 4, 6, 7 lie in mid-epoch, at its end, between logged rows."""


class Kill(BaseException):
    """Stands for kill -9: nobody catches it."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Kill


def full_sft(groups: list[Any], folder: Path, callbacks: list[Any]) -> SFTCTrainer:
    model, processor = fresh(attention_dropout=0.1)
    # C lies at the mean NLL of the random model: the gate goes on and off.
    args = SFTCConfig(str(folder), weight=0.5, nll_floor=7.9, **COMMON)
    return SFTCTrainer(model, args, groups, processing_class=processor, callbacks=callbacks)


def full_cw_dpo(groups: list[Any], folder: Path, callbacks: list[Any]) -> CWDPOTrainer:
    model, processor = fresh(attention_dropout=0.1)
    args = CWDPOConfig(str(folder), **COMMON)
    return CWDPOTrainer(model, args=args, train_dataset=groups, processing_class=processor, callbacks=callbacks)


def fresh_lora(groups: list[Any], folder: Path, callbacks: list[Any]) -> CWDPOTrainer:
    model, processor = fresh("qwen2_5_vl")
    given: dict[str, Any] = {"processing_class": processor, "callbacks": callbacks}
    args = CWDPOConfig(str(folder), **COMMON)
    return CWDPOTrainer(model, args=args, train_dataset=groups, peft_config=lora(lora_dropout=0.2), **given)


def fresh_dora(groups: list[Any], folder: Path, callbacks: list[Any]) -> CWDPOTrainer:
    model, processor = fresh("llava")
    given: dict[str, Any] = {"processing_class": processor, "callbacks": callbacks}
    args = CWDPOConfig(str(folder), **COMMON)
    return CWDPOTrainer(model, args=args, train_dataset=groups, peft_config=lora(use_dora=True), **given)


def stage1_lora_live(groups: list[Any], folder: Path, callbacks: list[Any]) -> CWDPOTrainer:
    """The adapter of stage 1 goes on, a frozen copy of it is the reference."""
    model, processor = fresh()
    torch.manual_seed(5)
    model = get_peft_model(model, lora(lora_dropout=0.2, init_lora_weights=False))
    given: dict[str, Any] = {"processing_class": processor, "callbacks": callbacks}
    args = CWDPOConfig(str(folder), reference="live", **COMMON)
    return CWDPOTrainer(model, args=args, train_dataset=groups, **given)


Make = Callable[[list[Any], Path, list[Any]], Any]


def run(make: Make, groups: list[Any], folder: Path, *, kill: int | None = None, noise: int = 0) -> Any:
    """Train in `folder` from its last whole checkpoint, as a new process would; die after update `kill`."""
    torch.manual_seed(noise)
    random.seed(noise)
    np.random.seed(noise)
    held_out = sample_groups(3, folder / "held-out", responses=3, seed=9)
    trainer = make(groups, folder, [MetricsFile(folder / "metrics.jsonl"), *([KillAt(kill)] if kill else [])])
    probes = ProbeSet(held_out, trainer.encoder, batch_size=2, floor=-3.0, tau=1.0)
    callback = ProbeCallback(probes, SeparateScorer(), folder, every=1)
    callback.attach(trainer)
    trainer.callback_handler.callbacks.insert(0, callback)  # read before anything kills the run
    checkpoint, _ = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def final(trainer: Any, folder: Path) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
    return weights(trainer.model), rows_of(folder / "metrics.jsonl"), rows_of(folder / "probes.jsonl")


@pytest.mark.parametrize(
    "make",
    [
        full_sft,
        fresh_lora,
        *(pytest.param(m, marks=pytest.mark.slow) for m in (full_cw_dpo, fresh_dora, stage1_lora_live)),
    ],
)
def test_resume_is_bitwise(make: Make, tmp_path: Path) -> None:
    """Killed after updates 1, 3 and 5: from nothing, from the middle of an epoch, and after a skip of one epoch."""
    groups = rows(12, tmp_path, images=1)
    want = final(run(make, groups, tmp_path / "whole"), tmp_path / "whole")
    folder = tmp_path / "killed"
    for kill, step in ((1, None), (3, "checkpoint-2"), (5, "checkpoint-4")):
        with pytest.raises(Kill):
            run(make, groups, folder, kill=kill, noise=kill)
        found, _ = last_checkpoint(folder)
        assert (found and found.name) == step
    got = final(run(make, groups, folder, noise=7), folder)
    assert not differing(got[0], want[0])
    assert [row["step"] for row in want[2]] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert got[2] == want[2]
    assert {row["step"] for row in want[1] if "loss" in row} == {3, 6}
    assert got[1] == want[1]


def test_saved_between_rows_of_the_log(tmp_path: Path) -> None:
    """The row of update 6 is the mean over updates 4, 5 and 6 also where the run was resumed after 4."""
    groups = rows(12, tmp_path)
    folder = tmp_path / "run"
    run(full_sft, groups, folder)
    shutil.rmtree(folder / "checkpoint-7")
    shutil.rmtree(folder / "checkpoint-6")
    before = [row for row in rows_of(folder / "metrics.jsonl") if row["step"] == 6]
    resumed = run(full_sft, groups, folder)
    assert [row for row in rows_of(folder / "metrics.jsonl") if row["step"] == 6] == before
    single = train_rows(groups, tmp_path / "single")
    loss = next(row["loss"] for row in resumed.state.log_history if row["step"] == 6 and "loss" in row)
    assert loss == pytest.approx(sum(single[3:6]) / 3, rel=1e-6)
    tokens = next(row["num_tokens"] for row in before if "num_tokens" in row)
    encoded = [resumed.encoder.encode(g) for g in groups]
    assert tokens == 2 * sum(len(g.prefix_ids) + len(r.ids) for g in encoded for r in g.responses)  # two epochs


def train_rows(groups: list[Any], folder: Path) -> list[float]:
    """The loss of every update."""
    trainer = full_sft(groups, folder, [])
    trainer.args.logging_steps = 1
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def truncate(folder: Path) -> None:
    file = folder / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def zero_the_tail(folder: Path) -> None:
    file = folder / "rng_state.pth"
    content = file.read_bytes()
    file.write_bytes(content[:100] + bytes(len(content) - 100))


def unmark(folder: Path) -> None:
    (folder / MARKER).unlink()


def half_marker(folder: Path) -> None:
    (folder / MARKER).write_text((folder / MARKER).read_text()[:20])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], dict[str, Tensor]]:
    """A run with checkpoints 1, 2 and 3, its rows, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("saved")
    groups = rows(4, folder, images=0)
    return folder / "run", groups, weights(train_sft(*fresh(), groups, folder / "run", **SAVED).model)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, zero_the_tail, unmark, half_marker, lose_weights])
def test_damaged_checkpoint_is_skipped(damage: Callable[[Path], None], saved: Any, tmp_path: Path) -> None:
    """Asked for by name, it is not trained on."""
    whole, groups, want = saved
    folder = shutil.copytree(whole, tmp_path / "run")
    damage(folder / "checkpoint-3")
    assert last_checkpoint(folder) == (folder / "checkpoint-2", ["checkpoint-3"])
    model, processor = fresh()
    again = SFTCTrainer(model, SFTCConfig(str(folder), **QUIET | SAVED), groups, processing_class=processor)
    if damage in (flip_a_byte, zero_the_tail, half_marker):
        with pytest.raises(RunError, match="checkpoint-3"):
            again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert not differing(weights(model), want)
    assert last_checkpoint(folder) == (folder / "checkpoint-3", [])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error"), "torch"])
def test_full_disk_is_one_line(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint before stays, nothing is left of the one that could not be written."""
    write = torch.save

    def full(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" not in str(file):
            return write(content, file, *args, **kwargs)
        if error == "torch":
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3351168 vs 3351056")
        raise error

    monkeypatch.setattr(torch, "save", full)
    kept: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    with pytest.raises(RunError, match="checkpoint-2"):
        train_sft(*fresh(), rows(4, tmp_path, images=0), tmp_path / "run", **kept)
    assert last_checkpoint(tmp_path / "run") == (tmp_path / "run" / "checkpoint-1", [])


class EndWorker(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)


def test_killed_worker_is_one_line(tmp_path: Path) -> None:
    workers: dict[str, Any] = {"dataloader_num_workers": 1, "per_device_train_batch_size": 1, "max_steps": 50}
    with pytest.raises(RunError, match="worker"):
        train_sft(*fresh(), rows(8, tmp_path, images=0), tmp_path / "run", callbacks=[EndWorker()], **workers)


@pytest.mark.parametrize("cut", [False, True])
def test_rows_of_a_stopped_run_are_compared(cut: bool, tmp_path: Path) -> None:
    """Rows after the checkpoint may differ: a resumed run writes them again."""
    groups, folder, known = rows(4, tmp_path, images=0), tmp_path / "run", RowsKnown(tmp_path / "run")
    kept: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    train_sft(*fresh(), groups, folder, callbacks=[MetricsFile(folder / "metrics.jsonl"), known], **kept)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "another"]))
    known.require_unchanged(folder / "checkpoint-2")
    path.write_text(lines[0] if cut else "".join([lines[0].replace("0", "1"), *lines[1:]]))
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        known.require_unchanged(folder / "checkpoint-2")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") == (None, [])
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-5").mkdir()
    assert last_checkpoint(tmp_path) == (None, ["checkpoint-5"])


@pytest.mark.parametrize("limit", [1, 2])
def test_a_whole_checkpoint_at_all_times(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older checkpoints go only after the new one has been marked complete."""
    whole_before: list[str | None] = []
    seal = trainer_module.seal_checkpoint

    def watched(folder: Path) -> None:
        found, broken = last_checkpoint(folder.parent)
        whole_before.append(found.name if found else None)
        assert broken == [folder.name]
        seal(folder)

    monkeypatch.setattr(trainer_module, "seal_checkpoint", watched)
    kept: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "save_total_limit": limit}
    train_sft(*fresh(), rows(4, tmp_path, images=0), tmp_path / "run", **kept)
    assert whole_before == [None, "checkpoint-1", "checkpoint-2", "checkpoint-3"]
    names = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"][-limit:]


class SignalAt(TrainerCallback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def test_stop_saves_and_resumes(tmp_path: Path) -> None:
    """The update under way is finished and saved, the handlers come back, and the run ends as if nothing had been."""
    groups = rows(12, tmp_path, images=0)
    number, before = signal.SIGTERM, signal.getsignal(signal.SIGTERM)
    want = weights(run(full_sft, groups, tmp_path / "whole").model)
    stop = StopOnSignal()
    trainer = full_sft(groups, tmp_path / "run", [stop, SignalAt(3, number)])
    trainer.train()
    assert stop.received == number
    assert trainer.state.global_step == 3
    assert signal.getsignal(number) == before
    found, _ = last_checkpoint(tmp_path / "run")
    assert found == tmp_path / "run" / "checkpoint-3"
    assert not differing(weights(run(full_sft, groups, tmp_path / "run", noise=1).model), want)


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    stop, before = StopOnSignal(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        full_sft(
            rows(4, tmp_path, images=0),
            tmp_path / "run",
            [stop, SignalAt(2, signal.SIGINT), SignalAt(2, signal.SIGINT)],
        ).train()
    stop.release()
    assert signal.getsignal(signal.SIGINT) == before
