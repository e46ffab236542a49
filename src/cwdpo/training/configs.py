"""Arguments of the trainers: transformers' TrainingArguments plus the fields of the objective."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ValidationError
from transformers import TrainingArguments

from cwdpo.errors import RecipeError, one_line
from cwdpo.launcher import refuse_deepspeed
from cwdpo.methods.base import Method
from cwdpo.models.parts import Part
from cwdpo.recipe import ModelSection, Stage1Section, Stage2Section, StageSection
from cwdpo.scoring.feature_cache import FeatureCache
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.section import first_mistake

__all__ = ["CWDPOConfig", "GroupTrainingArguments", "MethodArguments", "SFTCConfig"]

_NOT_A_STAGES = {"objective", "method", *(f.name for f in fields(TrainingArguments))}
"""Arguments that are not passed on to the stage of the same name: transformers checks its own."""

S = TypeVar("S", bound=BaseModel)
C = TypeVar("C", bound="type[MethodArguments]")


def _field(section: type[BaseModel], name: str) -> Any:
    """A dataclass field with the default and the description of a recipe field."""
    info = section.model_fields[name]
    return field(default=info.default, metadata={"help": info.description})


def _left_out(section: type[BaseModel], name: str) -> Any:
    """The same without a default: left out, the method decides."""
    return field(default=None, metadata={"help": section.model_fields[name].description})


def _takes_settings(config: C) -> C:
    """Let a config take the settings of its method by name: `CWDPOConfig("out", objective="rpo", sft_weight=1)`."""
    generated, own = config.__init__, {f.name for f in fields(config)}

    @functools.wraps(generated)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        settings = {name: kwargs.pop(name) for name in [*kwargs] if name not in own}
        settings |= kwargs.pop("method_settings", None) or {}
        generated(self, *args, method_settings=settings or None, **kwargs)

    config.__init__ = __init__
    return config


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
        self.include_num_input_tokens_seen = "no"  # `num_tokens` is always logged
        super().__post_init__()
        cache = ("vision_cache_gib", "vision_cache_folder", "vision_cache_folder_gib")
        values = {name: getattr(self, name) for name in ("max_length", "scorer", "padding_free", *cache)}
        self._validated(ModelSection, values)

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

    def _validated(self, section: type[S], values: Mapping[str, Any]) -> S:
        try:
            return section.model_validate(values)
        except ValidationError as error:
            place = f"{section.place}." if issubclass(section, StageSection) else ""
            message = one_line(first_mistake(error).replace(place, "") if place else first_mistake(error))
            raise RecipeError(f"{type(self).__name__}: {message}") from None


@dataclass
class MethodArguments(GroupTrainingArguments):
    """Arguments of a trainer with a method."""

    kind: ClassVar[type[StageSection]]
    """The stage of a recipe that these arguments stand for."""

    objective: str = ""
    method: Method | None = field(
        default=None, metadata={"help": "A method with its settings, in place of objective and settings (in Python)."}
    )
    method_settings: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of the method by name (in Python they are keyword arguments)."}
    )

    def __post_init__(self) -> None:
        """Make the method; a value that breaks its rule is refused here."""
        super().__post_init__()
        settings = self.method_settings or {}
        if recipes_own := settings.keys() & StageSection.model_fields.keys():
            raise RecipeError(f"{type(self).__name__}: {min(recipes_own)} is a key of recipes, not an argument")
        own = {f.name for f in fields(self)} & self.kind.model_fields.keys() - _NOT_A_STAGES
        shared = {name: value for name in own if (value := getattr(self, name)) is not None}
        chosen: dict[str, Any] = {"objective": self.objective} if self.method is None else {"method": self.method}
        section = self._validated(self.kind, {**shared, **settings, **chosen})
        self.objective, self.method, self.method_settings = section.objective, section.method, None
        self.__dict__["_section"] = section

    def with_method(self, method: Method | None) -> Self:
        """Return these arguments with another method; as they are for None."""
        return self if method is None else replace(self, method=method)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as trackers log them."""
        method = self.section().method.model_dump(mode="json")
        return {**super().to_dict(), "method": method}

    def section(self) -> Any:
        """Return the stage of a recipe that these arguments stand for."""
        return self.__dict__["_section"]

    def __getattr__(self, name: str) -> Any:
        """Read a setting of the method: `args.beta`."""
        section = self.__dict__.get("_section")
        if section is not None and name in type(section.method).model_fields:
            return getattr(section.method, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")


@_takes_settings
@dataclass
class SFTCConfig(MethodArguments):
    """Arguments of `SFTCTrainer` (Stage 1; paper, Eq. 4): `SFTCConfig("out", objective="sft_c", nll_floor=3)`."""

    kind: ClassVar[type[StageSection]] = Stage1Section

    objective: str = _field(Stage1Section, "objective")


@_takes_settings
@dataclass
class CWDPOConfig(MethodArguments):
    """Arguments of `CWDPOTrainer` (Stage 2; paper, Eq. 6 and 7, and its relatives).

    `CWDPOConfig("out", objective="rpo", sft_weight=1, beta=0.2)`; `cwdpo methods` lists methods and settings.
    """

    kind: ClassVar[type[StageSection]] = Stage2Section

    objective: str = _field(Stage2Section, "objective")
    floor: float | None = _left_out(Stage2Section, "floor")
    tau: float | None = _left_out(Stage2Section, "tau")
    reference: str | None = _left_out(Stage2Section, "reference")

    def __post_init__(self) -> None:
        """Make the method, and settle what it leaves to its stage."""
        super().__post_init__()
        section = self.section()
        self.floor, self.tau, self.reference = section.floor, section.tau, section.reference
