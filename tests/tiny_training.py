"""What the training tests share: small trainers, naive computations, bitwise comparisons."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch import Tensor

from cwdpo.data.schema import PromptGroup
from cwdpo.scoring.batch import Scores
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.training.configs import CWDPOConfig, SFTCConfig
from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer
from tiny_models import sample_groups, tiny_model, tiny_processor

QUIET: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "seed": 3,
}
"""Plain gradient descent in the order of the rows: updates can be recomputed by hand."""


def lora(**changes: Any) -> LoraConfig:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    return LoraConfig(**settings | changes)


def train_sft(
    model: Any,
    processor: Any,
    groups: Any,
    folder: Path,
    *,
    callbacks: Any = None,
    peft_config: Any = None,
    **args: Any,
) -> SFTCTrainer:
    trainer = SFTCTrainer(
        model,
        SFTCConfig(str(folder), **QUIET | args),
        groups,
        processing_class=processor,
        callbacks=callbacks,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def train_dpo(
    model: Any,
    processor: Any,
    groups: Any,
    folder: Path,
    *,
    callbacks: Any = None,
    peft_config: Any = None,
    **args: Any,
) -> CWDPOTrainer:
    trainer = CWDPOTrainer(
        model,
        args=CWDPOConfig(str(folder), **QUIET | args),
        train_dataset=groups,
        processing_class=processor,
        callbacks=callbacks,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bitwise equal."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """‖one − other‖ over all tensors, relative to how far training moved, ‖other − start‖."""
    assert one.keys() == other.keys() == start.keys()
    gap = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    path = sum(float((other[n].double() - start[n].double()).square().sum()) for n in one)
    assert path > 0
    return (gap / path) ** 0.5


def scores_of(model: Any, processor: Any, groups: list[PromptGroup], **encoder: Any) -> tuple[Any, Scores]:
    """Batch and scores of all groups at once."""
    batch = GroupCollator(PromptEncoder(processor, **encoder))(groups)["batch"]
    return batch, scores_from_logits(SeparateScorer()(model, batch))


def logps_of(model: Any, processor: Any, groups: list[PromptGroup]) -> Tensor:
    """Summed log-probabilities of all responses in evaluation mode."""
    mode = model.training
    with torch.no_grad():
        found = scores_of(model.eval(), processor, groups)[1].logp_sum
    model.train(mode)
    return found


def fresh(family: str = "llava", **changes: Any) -> tuple[Any, Any]:
    """A model that may be trained, and its processor."""
    processor = tiny_processor(family)
    return tiny_model(family, processor, **changes), processor


def clone(model: Any) -> Any:
    return copy.deepcopy(model)


def rows(n: int, folder: Path, **changes: Any) -> list[PromptGroup]:
    return sample_groups(n, folder / "images", **changes)


def trl_rows(groups: list[Any]) -> datasets.Dataset:
    """The same rows in TRL's columns, images as PNG bytes."""
    table: dict[str, list[Any]] = {
        "images": [[image.path for image in g.images] for g in groups],
        "prompt": [list(g.messages) for g in groups],
        "chosen": [_answer(g.chosen.text) for g in groups],
        "rejected": [_answer(g.by_role("rejected")[0].text) for g in groups],
    }
    made = datasets.Dataset.from_dict(table)
    return made.cast_column("images", datasets.List(datasets.Image()))


def _answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
