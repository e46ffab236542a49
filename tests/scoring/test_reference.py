"""Reference log-probabilities: cached and live are the same, for every way in which a reference is had."""

from __future__ import annotations

import copy
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from cwdpo.errors import ModelError, RunError
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.reference import CachedReference, LiveReference, ReferenceCache
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.trainers import REFERENCE_ADAPTER, CWDPOTrainer
from tiny_training import QUIET, clone, differing, fresh, logps_of, lora, rows, scores_of, weights


class Counting:
    """A scorer that counts what it scores."""

    def __init__(self) -> None:
        self.scored = 0

    def __call__(self, model: Any, batch: Any) -> Any:
        self.scored += len(batch.responses)
        return SeparateScorer()(model, batch)


def adapted(model: Any, *, dropout: float = 0.0, seed: int = 1) -> Any:
    """A model with an adapter that changes it, as one that stage 1 trained."""
    torch.manual_seed(seed)
    return get_peft_model(model, lora(lora_dropout=dropout, init_lora_weights=False))


def make(folder: Path, groups: Any, model: Any, processor: Any, *, reference: str = "live", **given: Any) -> Any:
    more = given.pop("more", {})
    args = CWDPOConfig(str(folder), reference=reference, **QUIET | {"per_device_train_batch_size": 2} | more)
    return CWDPOTrainer(model, args=args, train_dataset=groups, processing_class=processor, **given)


def full(processor: Any) -> tuple[Any, dict[str, Any], Any]:
    """Full finetuning: the reference is the start."""
    model = fresh()[0]
    return model, {}, clone(model)


def stage1_adapter(processor: Any) -> tuple[Any, dict[str, Any], Any]:
    """The adapter of stage 1 goes on: the reference is base and adapter as they are now."""
    model = adapted(fresh()[0], dropout=0.3)
    return model, {}, clone(model)


def fresh_adapter(processor: Any) -> tuple[Any, dict[str, Any], Any]:
    """Fresh adapters, here with a start that is not the base: the reference is the base all the same."""
    model = fresh()[0]
    return model, {"peft_config": lora(lora_dropout=0.3, init_lora_weights=False)}, clone(model)


def other_model(processor: Any) -> tuple[Any, dict[str, Any], Any]:
    other = fresh(seed=5)[0]
    return fresh()[0], {"ref_model": clone(other)}, other


WAYS = [full, stage1_adapter, fresh_adapter, other_model]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_reference_stays_what_it_was(way: Any, reference: str, tmp_path: Path) -> None:
    """Before and after training the trainer's reference equals the model that it is said to be."""
    groups = rows(4, tmp_path, responses=[2, 3])
    _, processor = fresh()
    model, given, want_from = way(processor)
    want = logps_of(want_from, processor, groups)
    trainer = make(tmp_path / "run", groups, model, processor, reference=reference, **given)
    if reference == "cached":
        assert trainer.fill_reference() == 10
    batch, _ = scores_of(fresh()[0], processor, groups)
    torch.testing.assert_close(trainer.reference(trainer.model, batch), want, rtol=1e-6, atol=1e-5)
    trainer.train()
    got = trainer.reference(trainer.model, batch)
    assert not got.requires_grad
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
    moved = logps_of(trainer.model, processor, groups) - want
    assert float(moved.abs().max()) > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_cached_and_live_train_alike(way: Any, tmp_path: Path) -> None:
    """The same losses and, up to rounding, the same weights."""
    groups = rows(4, tmp_path)
    found = []
    for reference in ("cached", "live"):
        _, processor = fresh()
        torch.manual_seed(0)
        model, given, _ = way(processor)
        for config in [given["peft_config"]] if "peft_config" in given else []:
            config.lora_dropout = 0.0
        if way is stage1_adapter:
            model = adapted(fresh()[0])
        trainer = make(tmp_path / reference, groups, model, processor, reference=reference, **given)
        trainer.train()
        found.append(trainer)
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, parameter in found[0].model.named_parameters():
        other = dict(found[1].model.named_parameters())[name]
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("way", [full, stage1_adapter])
def test_first_loss_is_log_2(way: Any, reference: str, tmp_path: Path) -> None:
    """Policy equals reference before the first update: −log σ(0) = log 2 for every pair, weighted or not."""
    groups = rows(4, tmp_path)
    _, processor = fresh()
    model, given, _ = way(processor)
    if way is stage1_adapter:
        model = adapted(fresh()[0])
    trainer = make(tmp_path, groups, model, processor, reference=reference, more={"max_steps": 1}, **given)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=2e-6)


def test_reference_adapter_is_frozen(tmp_path: Path) -> None:
    """The copy's weights never move, the policy's do, and only what was trained before is trained after."""
    groups = rows(4, tmp_path)
    _, processor = fresh()
    model = adapted(fresh()[0], dropout=0.2)
    for name, parameter in model.named_parameters():
        # The user trains the adapters of one layer only.
        parameter.requires_grad_("language_model.layers.1." in name and "lora_" in name)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    trainer = make(tmp_path / "run", groups, model, processor)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trained
    before = weights(trainer.model)
    copies = [n for n in before if f".{REFERENCE_ADAPTER}." in n]
    assert len(copies) == len([n for n in before if ".default." in n])
    for name in copies:
        assert torch.equal(before[name], before[name.replace(f".{REFERENCE_ADAPTER}.", ".default.")])
    trainer.train()
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trained
    assert trainer.model.active_adapter == "default"
    assert set(differing(before, weights(trainer.model))) == trained


def test_base_under_fresh_adapters_is_untouched(tmp_path: Path) -> None:
    groups = rows(2, tmp_path)
    model, processor = fresh()
    base = weights(model)
    trainer = make(tmp_path / "run", groups, model, processor, peft_config=lora())
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trained == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert not differing(base, weights(trainer.model.unload()))


def test_saved_adapter_loads_with_peft(tmp_path: Path) -> None:
    """Beside the frozen reference adapter the policy's is saved where PEFT looks for it."""
    groups = rows(2, tmp_path)
    _, processor = fresh()
    trainer = make(tmp_path / "run", groups, adapted(fresh()[0]), processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(fresh()[0], str(tmp_path / "saved"))
    want = logps_of(trainer.model, processor, groups)
    torch.testing.assert_close(logps_of(loaded, processor, groups), want, rtol=1e-6, atol=1e-5)


def test_cache_survives(tmp_path: Path) -> None:
    """A second run on the same rows and model scores nothing anew; a row more scores its batch only."""
    groups = rows(5, tmp_path)
    _, processor = fresh()
    cache = tmp_path / "shared.sqlite"
    counts = []
    for number, part in enumerate((groups[:4], groups[:4], groups)):
        scorer = Counting()
        given: dict[str, Any] = {"reference": "cached", "reference_cache": cache, "scorer": scorer}
        trainer = make(tmp_path / str(number), part, fresh()[0], processor, **given)
        counts.append(trainer.fill_reference())
        assert scorer.scored == counts[-1]
    assert counts == [8, 0, 2]
    assert trainer.fill_reference() == 0  # once in a trainer's life


def test_second_train_keeps_the_reference(tmp_path: Path) -> None:
    """`train()` again: the model has moved, its reference has not."""
    groups = rows(2, tmp_path)
    _, processor = fresh()
    trainer = make(tmp_path / "run", groups, fresh()[0], processor, reference="cached")
    trainer.train()
    trainer.train()
    margins = [row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row]
    assert abs(margins[0]) > 1e-3


def test_another_model_is_refused(tmp_path: Path) -> None:
    groups = rows(2, tmp_path)
    _, processor = fresh()
    cache = tmp_path / "shared.sqlite"
    given: dict[str, Any] = {"reference": "cached", "reference_cache": cache}
    make(tmp_path / "a", groups, fresh()[0], processor, **given).fill_reference()
    with pytest.raises(ModelError, match=r"shared\.sqlite: made with another reference model; .*delete it"):
        make(tmp_path / "b", groups, fresh(seed=5)[0], processor, **given).fill_reference()
    with pytest.raises(ModelError, match=r"shared\.sqlite: made with another mixed precision"):
        make(tmp_path / "c", groups, fresh()[0], processor, more={"bf16": True}, **given).fill_reference()
    # Other fresh adapters on the same base have the same reference.
    for seed in (1, 2):
        more = {"seed": seed}
        trainer = make(tmp_path / str(seed), groups, fresh()[0], processor, peft_config=lora(), more=more, **given)
        assert trainer.fill_reference() == 0


def test_cache_file(tmp_path: Path) -> None:
    """Sums of stored tokens; what is there stays; a missing row and a broken file are one line."""
    cache = ReferenceCache(tmp_path / "x" / "logps.sqlite")
    cache.store({"a": torch.tensor([-1.0, -2.5]), "b": torch.tensor([-0.25])})
    cache.store({"a": torch.tensor([-9.0])})
    assert cache.sums(["b", "a", "b"]).tolist() == [-0.25, -3.5, -0.25]
    assert cache.missing(["a", "c"])
    assert not cache.missing(["a", "b", "a"])
    many = {f"k{i}": torch.tensor([-float(i)]) for i in range(1200)}
    cache.store(many)
    assert cache.sums([f"k{i}" for i in (7, 1199, 600)]).tolist() == [-7.0, -1199.0, -600.0]
    model, processor = fresh()
    batch, _ = scores_of(model, processor, rows(1, tmp_path))
    with pytest.raises(RunError, match=r"^sample\.jsonl:1: no reference log-probabilities in"):
        CachedReference(cache)(model, batch)
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(RunError, match=r"bad\.sqlite: the reference cache cannot be used: .*delete the file"):
        ReferenceCache(tmp_path / "bad.sqlite")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE logps SET tokens = x'00' WHERE key = 'b'",
        "UPDATE logps SET tokens = substr(tokens, 1, 4) WHERE key = 'b'",
        "UPDATE logps SET tokens = (SELECT tokens FROM logps WHERE key = 'a') WHERE key = 'b'",
        "UPDATE logps SET digest = x'00' WHERE key = 'b'",
    ],
)
def test_a_damaged_entry_is_dropped(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ReferenceCache(tmp_path / "logps.sqlite")
    cache.store({key: torch.tensor([-1.0, -value]) for key, value in (("a", 2.0), ("b", 3.0), ("c", 4.0))})
    with sqlite3.connect(cache.path) as connection:
        connection.execute(damage)
    again = ReferenceCache(tmp_path / "logps.sqlite")
    assert again.drop_damaged() == 1 and again.drop_damaged() == 0
    assert [record.args for record in caplog.records] == [(cache.path, 1)]
    assert again.missing(["b"]) and again.sums(["a", "c"]).tolist() == [-3.0, -5.0]


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """Another schema; pages that are damaged after it was opened; no room."""
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE logps (a, b)")
    with pytest.raises(RunError, match="delete the file"):
        ReferenceCache(tmp_path / "other.sqlite")
    cache = ReferenceCache(tmp_path / "logps.sqlite")
    cache.path.write_bytes(cache.path.read_bytes()[:100] + b"x" * 20000)
    for use in (cache.count, cache.drop_damaged, lambda: cache.missing(["a"]), lambda: cache.store({})):
        with pytest.raises(RunError, match="delete the file"):
            use()
    with pytest.raises(RunError, match="make room"), ReferenceCache(tmp_path / "full.sqlite")._connect():
        raise sqlite3.OperationalError("database or disk is full")


def test_entries_without_digest_are_computed_again(tmp_path: Path) -> None:
    """Of a cache that an earlier version made: nobody knows whether they are what was written."""
    with sqlite3.connect(tmp_path / "old.sqlite") as connection:
        connection.execute("CREATE TABLE logps (key TEXT PRIMARY KEY, tokens BLOB NOT NULL)")
        connection.execute("INSERT INTO logps VALUES ('a', ?)", (torch.tensor([-1.0, -2.0]).numpy().tobytes(),))
    cache = ReferenceCache(tmp_path / "old.sqlite")
    assert cache.missing(["a"]) and cache.count() == 0 and cache.dropped == 1
    cache.store({"a": torch.tensor([-1.0, -3.0]), "b": torch.tensor([-4.0])})
    assert cache.sums(["a", "b"]).tolist() == [-4.0, -4.0]


def test_fill_keeps_whole_batches(tmp_path: Path) -> None:
    """A fill that is cut short keeps the batches before; the next one gives bitwise the values of a whole one."""
    model, processor = fresh()
    groups = rows(6, tmp_path)
    batches = [scores_of(model, processor, groups[i : i + 2])[0] for i in (0, 2, 4)]

    class Dies(Counting):
        def __call__(self, model: Any, batch: Any) -> Any:
            if self.scored == 4:
                raise KeyboardInterrupt
            return super().__call__(model, batch)

    cut, whole = (ReferenceCache(tmp_path / f"{name}.sqlite") for name in ("cut", "whole"))
    with pytest.raises(KeyboardInterrupt):
        cut.fill(model, Dies(), batches)
    with sqlite3.connect(cut.path) as connection:
        assert connection.execute("SELECT count(*) FROM logps").fetchone() == (4,)
    seen: list[int] = []
    assert cut.fill(model, Counting(), batches, seen.append) == 8
    assert seen == [2, 2, 2]
    assert whole.fill(model, Counting(), batches) == 12
    keys = [r.key for b in batches for r in b.responses]
    assert torch.equal(cut.sums(keys), whole.sums(keys))


def test_live_reference_leaves_no_trace(tmp_path: Path) -> None:
    """Mode, random state and gradients are as before, with dropout in the policy."""
    model, processor = fresh()
    model = adapted(model, dropout=0.5)
    model.add_adapter("frozen", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("default")
    model.train()
    batch, _ = scores_of(fresh()[0], processor, rows(2, tmp_path))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    state: Tensor = torch.get_rng_state()
    for reference in (
        LiveReference(SeparateScorer(), adapter="frozen"),
        LiveReference(SeparateScorer(), base_of_adapter=True),
        LiveReference(SeparateScorer()),
    ):
        assert not reference(model, batch).requires_grad
        assert model.training
        assert model.active_adapter == "default"
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in model.parameters())
