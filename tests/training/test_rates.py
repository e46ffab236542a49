"""Learning rates of their own for the vision tower and the projector."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cwdpo.errors import ModelError, RecipeError
from cwdpo.models.loading import add_lora
from cwdpo.models.parts import part_of
from cwdpo.recipe import LoraSection, ModelSection
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import SFTCTrainer
from tiny_runs import CliServer, rows_of, tiny_recipe, write_yaml
from tiny_training import QUIET, differing, fresh, rows, weights

RATES = {"vision_learning_rate": 2e-3, "projector_learning_rate": 5e-3}
ADAMW = {"optim": "adamw_torch", "adam_epsilon": 1e-20}


def trainer_of(model: Any, processor: Any, groups: list[Any], folder: Path, **changes: Any) -> SFTCTrainer:
    return SFTCTrainer(model, SFTCConfig(str(folder), **QUIET | changes), groups, processing_class=processor)


def moved(groups: list[Any], folder: Path, **changes: Any) -> dict[str, Tensor]:
    """How far one update moves every weight."""
    model, processor = fresh("qwen2_5_vl")
    before = weights(model)
    trainer_of(model, processor, groups, folder, max_steps=1, **changes).train()
    return {name: before[name].double() - value.double() for name, value in weights(model).items()}


def test_each_part_moves_by_its_own_rate(tmp_path: Path) -> None:
    """Plain gradient descent moves a weight by rate × gradient: 2e-3 and 5e-3 where 1e-2 is the stage's."""
    groups = rows(2, tmp_path, images=1)
    plain, own = moved(groups, tmp_path / "a"), moved(groups, tmp_path / "b", **RATES)
    ratios = {"vision": 0.2, "projector": 0.5, "language": 1.0}
    seen = set[str]()
    for name, step in plain.items():
        part = part_of(name)
        seen |= {part} if step.abs().max() > 1e-6 else set()
        torch.testing.assert_close(own[name], ratios[part] * step, rtol=1e-3, atol=2e-7)
    assert seen == set(ratios)


def test_adamw_first_moves_by_the_rate_itself(tmp_path: Path) -> None:
    """Its first step is rate × g / |g|: the largest move of each part is its rate."""
    own = moved(rows(2, tmp_path, images=1), tmp_path / "run", **RATES, **ADAMW, learning_rate=1e-2)
    largest = dict.fromkeys(("vision", "projector", "language"), 0.0)
    for name, step in own.items():
        largest[part_of(name)] = max(largest[part_of(name)], float(step.abs().max()))
    assert largest == pytest.approx({"vision": 2e-3, "projector": 5e-3, "language": 1e-2}, rel=1e-3)


def test_groups_keep_their_weight_decay(tmp_path: Path) -> None:
    """What transformers lets decay does so in every part, and nothing else; every trained weight is in one group."""
    model, processor = fresh("qwen2_5_vl")
    trainer = trainer_of(model, processor, rows(2, tmp_path), tmp_path / "run", weight_decay=0.1, **RATES)
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in model.named_parameters()}
    seen: list[str] = []
    decaying = trainer.get_decay_parameter_names(model)
    assert any("merger" in name for name in decaying) and not any(name.endswith("bias") for name in decaying)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert group["lr"] == {"vision": 2e-3, "projector": 5e-3, "language": 1e-2}[part_of(name)]
            assert group["weight_decay"] == (0.1 if name in decaying else 0.0), name
    assert sorted(seen) == sorted(names.values())


def test_adapters_and_parts_trained_in_full(tmp_path: Path) -> None:
    """Adapters on the tower at its rate, the projector in full at its own, both on the schedule and in the log."""
    model, processor = fresh("qwen2_5_vl")
    lora = LoraSection(r=2)
    torch.manual_seed(0)
    model = add_lora(model, ModelSection(lora=lora, train_fully=["projector"]), lora)
    groups = rows(4, tmp_path, images=1)
    changes: dict[str, Any] = {"lr_scheduler_type": "linear", "max_steps": 4, **RATES}
    trainer = trainer_of(model, processor, groups, tmp_path / "run", **changes)
    trainer.train()
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for group in trainer.optimizer.param_groups:
        assert {group["initial_lr"] for p in group["params"] if part_of(names[id(p)]) == "vision"} <= {2e-3}
        assert {group["initial_lr"] for p in group["params"] if part_of(names[id(p)]) == "projector"} <= {5e-3}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(names)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    for n, row in enumerate(logged):  # 1, 3/4, 2/4, 1/4 of the peak
        share = 1 - n / 4
        found = [row[f"learning_rate{part}"] for part in ("", "/vision", "/projector")]
        assert found == pytest.approx([1e-2 * share, 2e-3 * share, 5e-3 * share])


def test_without_own_rates_nothing_is_logged_beside(tmp_path: Path) -> None:
    model, processor = fresh("llava")
    trainer = trainer_of(model, processor, rows(2, tmp_path), tmp_path / "run", max_steps=1)
    trainer.train()
    assert not any(key.startswith("learning_rate/") for row in trainer.state.log_history for key in row)
    assert len(trainer.optimizer.param_groups) == 2


def test_resumed_bitwise(tmp_path: Path) -> None:
    groups = rows(4, tmp_path, images=1)
    changes: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine"}
    changes |= {**RATES, **ADAMW}
    model, processor = fresh()
    whole = trainer_of(model, processor, groups, tmp_path / "run", **changes)
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again, _ = fresh()
    resumed = trainer_of(again, processor, groups, tmp_path / "run", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert not differing(weights(again), weights(model))
    rates = [[{k: v for k, v in r.items() if "rate" in k} for r in t.state.log_history] for t in (whole, resumed)]
    assert rates[0][:4] == rates[1][:4]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["", "fsdp2"])
def test_two_processes(
    sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """DDP and FSDP2: the losses and rates of one process."""
    mix = {"dataset": 1, "other": 1}
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), negatives={"stage1": mix, "stage2": mix})
    values["stage1"] |= RATES
    values["stage2"]["enabled"], values["probes"]["every"], values["evaluation"]["prompts"] = False, 0, 0
    path, logged = write_yaml(tmp_path / "recipe.yaml", values), list[Any]()
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        call = cli_server.start("train", path, "--out", out, ranks=ranks, sharding=sharding if ranks == 2 else "")
        assert call.codes() == [0] * ranks, call.stderr
        rows = [r for r in rows_of(out / "stage1" / "metrics.jsonl") if "loss" in r]
        logged.append([[r["loss"], r["learning_rate/vision"], r["learning_rate/projector"]] for r in rows])
    for one, two in zip(*logged, strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert logged[0][0][0] > logged[0][-1][0]


def test_a_rate_for_what_is_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage1\.vision_learning_rate: model\.freeze names vision") as caught:
        load_recipe(None, ["stage1.vision_learning_rate=1e-6", "model.freeze=[vision]"])
    assert "\n" not in str(caught.value)
    model, processor = fresh("llava")
    lora = LoraSection(r=2, target_modules=["q_proj"])
    model = add_lora(model, ModelSection(lora=lora, freeze=["vision"]), lora)
    trainer = trainer_of(model, processor, rows(2, tmp_path), tmp_path / "run", **RATES)
    with pytest.raises(ModelError, match="vision_learning_rate: no weight of this part is trained"):
        trainer.create_optimizer()
    for config in (SFTCConfig, CWDPOConfig):
        with pytest.raises(RecipeError, match="vision_learning_rate"):
            config(str(tmp_path), vision_learning_rate=-1.0)
