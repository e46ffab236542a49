"""One training step of ours and of TRL on the same rows: forward, loss, backward, gradients thrown away."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cwdpo.models.attention import SHARED_PREFIX, use_own_attention
from cwdpo.probes.reading import ProbeSet
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from workload import groups_of, lora_config


@dataclass
class Side:
    """A step that can be run again and again.

    Attributes:
        step: Runs forward, loss and backward, lets the gradients go, and returns the loss.
        forward: The loss alone, with its graph.
        model: What is trained.
        trainer: The trainer behind it.
    """

    step: Callable[[], float]
    forward: Callable[[], Any]
    model: Any
    trainer: Any

    def shake(self) -> None:
        """Move what is trained a little away from the reference, on every side by the same numbers."""
        with torch.no_grad():
            for name, parameter in sorted(self.model.named_parameters()):
                if parameter.requires_grad:
                    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                    noise = torch.randn(parameter.shape, generator=draw).to(parameter.device, parameter.dtype)
                    if "lora_" in name:
                        parameter.copy_(0.02 * noise)
                    else:
                        parameter.add_(1e-3 * noise)

    def gradients(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the loss and the gradient of what is trained."""
        loss = self.forward()
        loss.backward()
        found = {n: p.grad.float().cpu() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach()), found


def disagreement(one: Side, other: Side) -> dict[str, float]:
    """Return how far loss and gradient of two sides are apart, after the same small move away from the reference."""
    for side in (one, other):
        side.shake()
    (loss, mine), (their_loss, theirs) = one.gradients(), other.gradients()
    assert mine.keys() == theirs.keys()
    gap = sum(float((mine[n] - theirs[n]).square().sum()) for n in mine) ** 0.5
    size = sum(float(g.square().sum()) for g in theirs.values()) ** 0.5
    return {"loss": loss, "loss_difference": abs(loss - their_loss), "gradient_difference": gap / size}


def _scratch() -> str:
    """Return a new folder that goes when the process ends, for a side lives as long as anyone holds it."""
    folder = tempfile.mkdtemp(prefix="cwdpo-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _arguments(folder: str, pairs: int, bf16: bool, checkpointing: bool) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": pairs,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "disable_tqdm": True,
        "bf16": bf16,
        "activation_checkpointing": checkpointing,
        "max_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


def _adapters(model: Any, lora: bool) -> Any:
    if lora:
        model.requires_grad_(False)
    return lora_config() if lora else None


def ours(
    model: Any,
    processor: Any,
    rows: list[dict[str, Any]],
    *,
    lora: bool,
    objective: str = "dpo",
    responses: int | None = 2,
    cache: bool = False,
    scorer: str = "auto",
    bf16: bool = False,
    checkpointing: bool = False,
    copied: bool = True,
    attention: str = "sdpa",
    packed: bool = False,
) -> Side:
    """Return our step: `dpo` or `cw_dpo` (reference cached, as is the default), `sft_c` or `sft`.

    Args:
        model: The model; a copy of it is trained where `copied`.
        processor: Its processor.
        rows: The update's rows.
        lora: Train adapters on the language model alone.
        objective: What is minimised.
        responses: Responses of a prompt that are used.
        cache: Keep the image features of the frozen tower, so that the timed steps find them.
        scorer: `auto`, `shared` or `separate`.
        bf16: Compute in bfloat16.
        checkpointing: Gradient checkpointing.
        copied: Leave `model` itself alone.
        attention: `sdpa` or `shared_prefix`.
        packed: All prompts in one row without padding.
    """
    model = copy.deepcopy(model) if copied else model
    if attention == SHARED_PREFIX:
        use_own_attention(model, SHARED_PREFIX)
    folder = _scratch()
    common: dict[str, Any] = _arguments(folder, len(rows), bf16, checkpointing)
    common |= {"scorer": scorer, "padding_free": packed, "vision_cache_gib": 8.0 if cache else 0.0, "logging_steps": 1}
    groups = groups_of(rows, responses)
    rest: dict[str, Any] = {"processing_class": processor, "peft_config": _adapters(model, lora)}
    trainer: Any
    if objective.startswith("sft"):
        trainer = SFTCTrainer(model, SFTCConfig(objective=objective, **common), groups, **rest)
    else:
        config = CWDPOConfig(objective=objective, **common)
        trainer = CWDPOTrainer(model, args=config, train_dataset=groups, **rest)
        trainer.fill_reference()
    model = trainer.model.to(trainer.args.device).train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer.data_collator(groups)

    def begin() -> None:
        trainer.get_batch_samples(iter([inputs]), 1, trainer.args.device)

    def forward() -> Any:
        begin()
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs)

    def step() -> float:
        begin()
        loss = trainer.training_step(model, inputs)
        model.zero_grad(set_to_none=True)
        return float(loss)

    forward()  # chooses the scorer
    return Side(step, forward, model, trainer)


def trl(
    model: Any,
    processor: Any,
    rows: list[dict[str, Any]],
    *,
    lora: bool,
    bf16: bool = False,
    checkpointing: bool = False,
    copied: bool = True,
) -> Side:
    """Return the step of TRL's `DPOTrainer` (its collator, its loss, its reference in every step)."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder = _scratch()
    columns = [{name: row[name] for name in ("images", "prompt", "chosen", "rejected")} for row in rows]
    model = copy.deepcopy(model) if copied else model
    reference = None if lora else copy.deepcopy(model)
    trainer: Any = DPOTrainer(
        model,
        reference,
        args=DPOConfig(max_length=None, beta=0.1, **_arguments(folder, len(rows), bf16, checkpointing)),
        train_dataset=Dataset.from_list(copy.deepcopy(columns)),
        processing_class=processor,
        peft_config=_adapters(model, lora),
    )
    model = trainer.model.to(trainer.args.device).train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(trainer.data_collator(copy.deepcopy(columns)))

    def forward() -> Any:
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, dict(inputs))

    def step() -> float:
        loss = trainer.training_step(model, dict(inputs))
        model.zero_grad(set_to_none=True)
        return float(loss)

    return Side(step, forward, model, trainer)


def probe_set(processor: Any, rows: list[dict[str, Any]], batch_size: int) -> Callable[[Side], None]:
    """Return what one reading of the probes on these rows does to a side's model."""
    side_of: dict[int, ProbeSet] = {}

    def read(side: Side) -> None:
        if id(side) not in side_of:
            encoder = side.trainer.encoder
            side_of[id(side)] = ProbeSet(groups_of(rows), encoder, batch_size=batch_size, floor=-3.0, tau=1.0)
        side_of[id(side)].read(side.model, side.trainer.scorer)

    return read


def output_folder(side: Side) -> Path:
    """The side's temporary folder."""
    return Path(side.trainer.args.output_dir)
