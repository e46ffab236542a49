"""The two stages: optimizer, batch and length, and the method that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from cwdpo.errors import RecipeError
from cwdpo.methods.base import Method
from cwdpo.methods.choose import choose_method, kind_of
from cwdpo.methods.cooling import Cooling
from cwdpo.methods.sum import Sum, sum_of
from cwdpo.section import Described, Section

__all__ = ["Stage1Section", "Stage2Section", "StageSection"]


class _Asked(NamedTuple):
    """A method as a recipe asks for it."""

    objective: Any
    settings: dict[str, Any]


class StageSection(Section):
    """What both stages share: optimizer, batch, length, and a method whose settings stand beside these keys."""

    place: ClassVar[Literal["stage1", "stage2"]]
    """Name of the section."""

    enabled: bool = True
    """Leave a stage out by setting this to false."""
    objective: str
    """The method (`cwdpo methods` lists them with formula, paper and settings), or a class in a file of yours:
    `my_losses.py:MyLoss`. Its settings stand beside this key."""
    method: Method = Field(default_factory=Method, exclude=True)
    """The method with its settings, which are written flat."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    vision_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the vision tower, of its adapters or of itself; null: `learning_rate`."""
    projector_learning_rate: float | None = Field(default=None, gt=0)
    """The same for what joins the tower to the language model."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the stage's rows; `max_steps` overrides."""
    max_steps: int = -1
    """Number of updates; -1 goes by `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts per update, over all devices."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Prompts per forward pass on one device. Changes memory and speed, never the result."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Fraction of the updates in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """An update whose loss or gradient is not finite stops the run, or is skipped. Its rows are named, in
    `skipped.jsonl` if it is skipped; more than five in a row stop the run."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offloading: bool = False
    """Offload activations to CPU RAM between forward and backward pass: less GPU memory, two extra copies. Exact.
    Saves nothing on a CPU; not with FSDP."""
    save_steps: int = Field(default=100, ge=1)
    """Updates between checkpoints; a killed run resumes from the last one."""
    log_steps: int = Field(default=10, ge=1)
    """Updates between rows of metrics.jsonl."""
    include_eos: bool = True
    """Count the end-of-turn token as part of the response (in likelihoods and in ℓ̄)."""

    @field_validator("max_steps")
    @classmethod
    def _some_update(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError(
                f"{cls.place}.max_steps = {value}: must be at least 1, or -1 to go by epochs; "
                f"{cls.place}.enabled: false leaves the stage out"
            )
        return value

    # -- the method ----------------------------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        """Take apart the section's keys and the method's; a key of both (`floor`) goes to both."""
        if not isinstance(values, dict):
            return values
        common: dict[str, Any] = {name: value for name, value in values.items() if name in cls.model_fields}
        settings: dict[str, Any] = {name: value for name, value in values.items() if name not in cls.model_fields}
        method = common.pop("method", None)
        if isinstance(method, Method):
            if settings:
                raise ValueError(f"{next(iter(settings))} is given beside method; set it in the method")
            own = {name: getattr(method, name) for name in type(method).model_fields if name in cls.model_fields}
            common = {**common, **own, "objective": method.label, "method": method}
            kind = type(method)
        elif method is not None:
            raise ValueError(f"unknown key `{cls.place}.method`; did you mean `objective`?")
        elif isinstance(common.get("objective"), list | tuple):
            if settings:
                raise ValueError(f"{cls.place}.{next(iter(settings))}: the objective is a sum; set it in a term of it")
            summed = cls._sum(common)
            common |= {"objective": summed.label, "method": summed}
            kind = Sum
        else:
            objective = common.setdefault("objective", cls.model_fields["objective"].default)
            kind = kind_of(objective, f"{cls.place}.objective")
            settings |= {name: value for name, value in common.items() if name in kind.model_fields}
            common["method"] = _Asked(objective, settings)
        if kind.on_policy and "reference" in cls.model_fields:
            common.setdefault("reference", "live")
        return common

    @classmethod
    def _sum(cls, common: dict[str, Any]) -> Sum:
        """Return the sum that `objective` lists; a key of the section that a term has too (`floor`) holds for it."""
        others = [name for name in cls.model_fields if name != "method"]

        def make(name: str, settings: Mapping[str, Any]) -> Method:
            shared = kind_of(name, f"{cls.place}.objective").model_fields.keys() & common.keys()
            given = {key: common[key] for key in shared} | dict(settings)
            return choose_method(name, given, place=cls.place, others=others)

        return sum_of(common["objective"], make, f"{cls.place}.objective")

    @field_validator("method", mode="plain")
    @classmethod
    def _chosen(cls, asked: Any) -> Method:
        if isinstance(asked, Method):
            return asked
        others = [name for name in cls.model_fields if name != "method"]
        return choose_method(*asked, place=cls.place, others=others)

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        own = self.method.model_dump(mode=info.mode)
        if isinstance(self.method, Sum):
            values["objective"], own = own["terms"], {}
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat[name] = value
            if name == "objective":
                flat |= {key: setting for key, setting in own.items() if key not in values}
        return flat

    def described(self) -> Iterator[Described]:
        """Yield every key, the method's own after `objective`."""
        for key in super().described():
            if isinstance(self.method, Sum) and key.name in ("objective", "method"):
                if key.name == "objective":
                    yield key._replace(value=self.model_dump(mode="json")["objective"])
            elif key.name == "method":
                yield from (own for own in self.method.described() if own.name not in type(self).model_fields)
            else:
                yield key

    # -- batches and updates -------------------------------------------------------------------------------------------

    def prompts_at_once(self, processes: int = 1) -> int:
        """Return the prompts of a forward pass on each of some processes.

        Raises:
            RecipeError: The batch is not a multiple of what they compute at once.
        """
        micro = min(self.micro_batch_size, max(1, self.batch_size // processes))
        if self.batch_size % (micro * processes):
            at_once = f"{self.place}.micro_batch_size = {micro}"
            if processes > 1:
                at_once = f"{micro} prompts × {processes} processes"
            raise RecipeError(
                f"{self.place}.batch_size = {self.batch_size} is not a multiple of {at_once}; change "
                f"{self.place}.batch_size or {self.place}.micro_batch_size"
                + (", or the number of processes" if processes > 1 else "")
            )
        return micro

    def updates(self, rows: int) -> int:
        """Return how many updates the stage makes on so many rows."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.epochs * math.ceil(rows / self.batch_size))


class Stage1Section(StageSection):
    """Stage 1: SFT-C (paper, Eq. 4), or plain SFT."""

    place: ClassVar[Literal["stage1", "stage2"]] = "stage1"

    objective: str = "sft_c"
    """`sft_c` adds a regularizer on the negatives; `sft` is the plain likelihood; `my_losses.py:MySFT` is yours."""


class Stage2Section(Cooling, StageSection):
    """Stage 2: CW-DPO (paper, Eq. 6 and 7), or another method of preference optimization."""

    place: ClassVar[Literal["stage1", "stage2"]] = "stage2"

    objective: str = "cw_dpo"
    """The method (`cwdpo methods` lists them with formula, paper and settings), or a class in a file of yours:
    `my_losses.py:MyLoss`. Its settings stand beside this key."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    reference: Literal["cached", "live"] = "cached"
    """Reference log-probabilities: computed once and kept on disk, or by a frozen model in every step. `grpo` and `ppo`
    require `live` (the default for them)."""

    @model_validator(mode="after")
    def _on_policy(self) -> Stage2Section:
        """Refuse what does not go with responses that are sampled during training."""
        if self.method.on_policy and self.reference == "cached":
            raise ValueError(
                f"stage2.reference: cached does not go with {self.objective}, which samples its responses as it "
                "trains; leave it out, or use live"
            )
        if self.method.on_policy and not self.include_eos:
            raise ValueError(
                f"stage2.include_eos: false does not go with {self.objective}: the end of turn is sampled like every "
                "token; use true"
            )
        return self
