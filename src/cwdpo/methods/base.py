"""What a method is: its settings, its words, what its loss reads, and the loss itself.

A method is one file with one class. A loss is pure: log-probabilities (natural, summed over response tokens unless a
name says `mean`) in, one value a pair out. It does not reduce over the batch, know a model or move a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cwdpo.plugins import Registry
from cwdpo.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cwdpo.methods.pair_logps import PairLogps

__all__ = ["METHODS", "Method", "Needs", "coefficients"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss reads beside the policy's log-probabilities.

    Attributes:
        reference: Log-probabilities of the frozen reference.
        image: How the images of a second look are altered (`PairLogps.altered`); empty without one.
        altered: Which responses are scored under it.
        altered_reference: The reference scores them too.
        every_chosen: Every chosen response of a prompt makes pairs, not only the first.
        span: Where the rejected response differs from the chosen one (`PairLogps.span`).
        cut: Both responses cut to the length of the shorter one (`PairLogps.cut`).
        scores: What the data say of both responses (`PairLogps.score_gap`).
        whole_batch: All pairs of an update at once: it is one micro-batch on one process.
    """

    reference: bool = True
    image: Literal["", "crop", "blank", "mask"] = ""
    altered: tuple[Literal["chosen", "rejected"], ...] = ("chosen",)
    altered_reference: bool = True
    every_chosen: bool = False
    span: bool = False
    cut: bool = False
    scores: bool = False
    whole_batch: bool = False


class Method(Section):
    """A loss and its settings; a recipe chooses one by `objective` and sets its fields beside that key."""

    name: ClassVar[str]
    """Value of `objective` for a module of ours, which bears this name; of a class of yours what you like."""
    title: ClassVar[str]
    """What people call it; the class's name if left out, as for `name`."""
    formula: ClassVar[str] = ""
    """In one line; Δ = log π_θ − log π_ref, r = βΔ, m = r_w − r_l, ℓ̄ a mean per token, ~ under the altered image."""
    paper: ClassVar[str] = ""
    """Authors and year."""
    arxiv: ClassVar[str] = ""
    """Number on arXiv, empty without one."""
    note: ClassVar[str] = ""
    """What else to know."""
    stage: ClassVar[Literal["stage1", "stage2"]] = "stage2"
    """Stage that it trains."""
    on_policy: ClassVar[bool] = False
    """Whether it trains on responses that the policy samples, by their rewards, and not on pairs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name a class after itself where it says nothing else; a name is never inherited."""
        cls.name = cls.__dict__.get("name", cls.__name__)
        cls.title = cls.__dict__.get("title", cls.__name__)
        super().__init_subclass__(**kwargs)

    @property
    def needs(self) -> Needs:
        """What the loss reads."""
        return Needs()

    @property
    def label(self) -> str:
        """What a recipe, a tracker and a report call it: its name; of a sum the names of its terms."""
        return self.name

    @property
    def reward_scale(self) -> float:
        """β of the implicit rewards that metrics show: `beta` where there is one."""
        return getattr(self, "beta", 1.0)

    def loss(self, pairs: Any, /) -> Tensor:
        """Return one value a pair.

        Args:
            pairs: `PairLogps`. (Stage 1 and on-policy methods take their own.)

        Returns:
            `Float[pairs]`, differentiable with respect to the policy's log-probabilities.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss(self, pairs)")


METHODS = Registry("method", "cwdpo.methods", Method)
"""All methods by name."""


def coefficients(method: Method, pairs: PairLogps) -> tuple[Tensor, Tensor]:
    """Return how hard a step pulls y_w up and pushes y_l down.

        −∇loss = winner · ∇log π_θ(y_w) − loser · ∇log π_θ(y_l)

    With a span the loser's is that on the span's tokens, with a cut both are those on the first tokens.

    Returns:
        `Float[pairs]` each, in float64 where the device has it; negative where a step does the reverse.
    """
    import torch

    from cwdpo.devices import to_float64

    with torch.enable_grad():
        leaves = pairs.map(lambda values: to_float64(values.detach()))
        chosen, rejected = [_leaf(leaves.chosen)], [_leaf(leaves.rejected)]
        leaves = replace(leaves, chosen=chosen[0], rejected=rejected[0])
        if leaves.span is not None:
            rejected.append(_leaf(leaves.span.logp))
            leaves = replace(leaves, span=replace(leaves.span, logp=rejected[-1]))
        if leaves.cut is not None:
            chosen.append(_leaf(leaves.cut.chosen))
            rejected.append(_leaf(leaves.cut.rejected))
            leaves = replace(leaves, cut=replace(leaves.cut, chosen=chosen[-1], rejected=rejected[-1]))
        found = torch.autograd.grad(method.loss(leaves).sum(), [*chosen, *rejected], materialize_grads=True)
    return -torch.stack(found[: len(chosen)]).sum(0), torch.stack(found[len(chosen) :]).sum(0)


def _leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()
