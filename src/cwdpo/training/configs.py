"""Arguments of the trainers: transformers' TrainingArguments plus the fields of the objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from transformers import TrainingArguments

from cwdpo.errors import RecipeError, one_line
from cwdpo.launcher import refuse_deepspeed
from cwdpo.models.parts import Part
from cwdpo.recipe import ModelSection, Stage1Section, Stage2Section, settings_of
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.scorer import AutoScorer

__all__ = ["CWDPOConfig", "GroupTrainingArguments", "SFTCConfig"]

_OF_BOTH = (
    "include_eos",
    "on_nonfinite",
    "vision_learning_rate",
    "projector_learning_rate",
    "activation_offloading",
)
"""Fields of a stage that are arguments of both trainers under the same name."""


def _field(section: type[BaseModel], name: str) -> Any:
    """A dataclass field with the default and the description of a recipe field."""
    info = section.model_fields[name]
    return field(default=info.default, metadata={"help": info.description})


def _own(section: type[BaseModel], name: str) -> Any:
    """The same without a default: left out, it is the method's own."""
    return field(default=None, metadata={"help": section.model_fields[name].description})


@dataclass
class GroupTrainingArguments(TrainingArguments):
    """What both stages take beside transformers' own arguments."""

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between logged rows."})
    max_length: int | None = field(
        default=None, metadata={"help": "Longest sequence in tokens. Nothing is cut: a longer row is an error."}
    )
    include_eos: bool = _field(Stage1Section, "include_eos")
    on_nonfinite: Literal["stop", "skip"] = _field(Stage1Section, "on_nonfinite")
    scorer: Literal["auto", "shared", "separate"] = field(
        default="auto",
        metadata={"help": "`auto`: one encoding of image and prompt where the family is known; `separate`; `shared`."},
    )
    padding_free: bool = _field(ModelSection, "padding_free")
    activation_offloading: bool = _field(Stage1Section, "activation_offloading")
    vision_learning_rate: float | None = _field(Stage1Section, "vision_learning_rate")
    projector_learning_rate: float | None = _field(Stage1Section, "projector_learning_rate")
    vision_cache_gib: float = _field(ModelSection, "vision_cache_gib")
    vision_cache_folder: str | None = _field(ModelSection, "vision_cache_folder")
    vision_cache_folder_gib: float = _field(ModelSection, "vision_cache_folder_gib")

    def __post_init__(self) -> None:
        """Set what the loop needs and leave the rest to transformers."""
        if self.deepspeed:
            raise RecipeError(f"{type(self).__name__}: deepspeed is not supported; leave it out, and shard with FSDP2")
        refuse_deepspeed()
        self.remove_unused_columns = False
        self.label_names = []
        super().__post_init__()
        cache = ("vision_cache_gib", "vision_cache_folder", "vision_cache_folder_gib")
        self._validated(ModelSection, ("max_length", "scorer", "padding_free", *cache))
        self.section()

    def make_scorer(self) -> AutoScorer:
        """Return the scorer that these arguments ask for."""
        cache = FeatureCache.of(self.vision_cache_gib, self.vision_cache_folder, self.vision_cache_folder_gib)
        return AutoScorer(self.scorer, bfloat16=self.bf16, cache=cache, packed=self.padding_free)

    @property
    def own_rates(self) -> dict[Part, float]:
        """Learning rates of the parts that have their own."""
        rates: dict[Part, float | None] = {
            "vision": self.vision_learning_rate,
            "projector": self.projector_learning_rate,
        }
        return {part: rate for part, rate in rates.items() if rate is not None}

    def section(self) -> Any:
        """Return the objective's settings, validated.

        Raises:
            RecipeError: A value breaks its rule.
        """
        return None

    def _validated(self, section: type[BaseModel], names: tuple[str, ...]) -> Any:
        try:
            return section(**{name: getattr(self, name) for name in names})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            where = f"{key} = {first['input']!r}: " if key else ""
            message = f"{type(self).__name__}: {where}{first['msg']}"
            raise RecipeError(one_line(message)) from None


@dataclass
class SFTCConfig(GroupTrainingArguments):
    """Arguments of `SFTCTrainer` (Stage 1; paper, Eq. 4)."""

    objective: str = _field(Stage1Section, "objective")
    regularizer: str = _field(Stage1Section, "regularizer")
    weight: float = _field(Stage1Section, "weight")
    nll_floor: float = _field(Stage1Section, "nll_floor")
    hinge_scope: str = _field(Stage1Section, "hinge_scope")
    nll_reduction: str = _field(Stage1Section, "nll_reduction")
    epsilon: float = _field(Stage1Section, "epsilon")

    def section(self) -> Stage1Section:
        """Return the objective's settings, validated."""
        return self._validated(Stage1Section, (*settings_of(Stage1Section), *_OF_BOTH))


@dataclass
class CWDPOConfig(GroupTrainingArguments):
    """Arguments of `CWDPOTrainer` (Stage 2; paper, Eq. 6 and 7, and its relatives)."""

    objective: str = _field(Stage2Section, "objective")
    beta: float | None = _own(Stage2Section, "beta")
    floor: float = _field(Stage2Section, "floor")
    tau: float = _field(Stage2Section, "tau")
    detach: bool = _field(Stage2Section, "detach")
    w_min: float = _field(Stage2Section, "w_min")
    renormalise: bool = _field(Stage2Section, "renormalise")
    bound_pull: bool = _field(Stage2Section, "bound_pull")
    cooling_span: str = _field(Stage2Section, "cooling_span")
    shift_weight: float = _field(Stage2Section, "shift_weight")
    sft_weight: float = _field(Stage2Section, "sft_weight")
    label_smoothing: float = _field(Stage2Section, "label_smoothing")
    target_margin: float = _field(Stage2Section, "target_margin")
    focus: float | None = _own(Stage2Section, "focus")
    winner_penalty: float = _field(Stage2Section, "winner_penalty")
    guidance: float = _field(Stage2Section, "guidance")
    detach_null: bool = _field(Stage2Section, "detach_null")
    image_weight: float = _field(Stage2Section, "image_weight")
    anchor_weight: float = _field(Stage2Section, "anchor_weight")
    samples: int = _field(Stage2Section, "samples")
    reward: str = _field(Stage2Section, "reward")
    max_new_tokens: int = _field(Stage2Section, "max_new_tokens")
    rollout_updates: int | None = _own(Stage2Section, "rollout_updates")
    rollout_batch_size: int = _field(Stage2Section, "rollout_batch_size")
    clip: float = _field(Stage2Section, "clip")
    kl: float = _field(Stage2Section, "kl")
    gae_lambda: float = _field(Stage2Section, "gae_lambda")
    value_learning_rate: float = _field(Stage2Section, "value_learning_rate")
    reference: str | None = _own(Stage2Section, "reference")

    def __post_init__(self) -> None:
        """Set what the method has of its own and was left out."""
        super().__post_init__()
        section = self.section()
        self.beta, self.focus = section.beta, section.focus
        self.rollout_updates, self.reference = section.rollout_updates, section.reference

    def section(self) -> Stage2Section:
        """Return the objective's settings, validated."""
        names = (*settings_of(Stage2Section), *_OF_BOTH)
        return self._validated(Stage2Section, tuple(n for n in names if getattr(self, n) is not None))
