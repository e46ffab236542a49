"""The two stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cwdpo.methods.base import METHODS, Method
from cwdpo.methods.cooling import Cooling
from cwdpo.section import Section

__all__ = ["Stage1Section", "Stage2Section", "StageSection", "settings_of"]


class StageSection(Section):
    """What both stages share: optimiser, batch, length."""

    enabled: bool = True
    """Leave a stage out by setting this to false."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    vision_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the vision tower, of its adapters or of itself; null: `learning_rate`."""
    projector_learning_rate: float | None = Field(default=None, gt=0)
    """The same for what joins the tower to the language model."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the stage's share of the data; `max_steps` overrides."""
    max_steps: int = Field(default=-1, ge=-1)
    """Number of updates; -1 goes by `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts per update, over all devices."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Prompts per forward pass on one device. Changes memory and speed, never the result."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """An update whose loss or gradient is not finite stops the run, or is left out. Its rows are named, in
    `skipped.jsonl` where it is left out; more than five in a row stop the run."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offloading: bool = False
    """Keep what the backward pass needs (with `gradient_checkpointing`, each layer's input) in main memory meanwhile:
    less on the GPU, for two copies of it. Exact. Saves nothing on a CPU; not with FSDP."""
    save_steps: int = Field(default=100, ge=1)
    """Updates between checkpoints; a killed run goes on from the last one."""
    log_steps: int = Field(default=10, ge=1)
    """Updates between rows of metrics.jsonl."""
    include_eos: bool = True
    """Count the end-of-turn token as part of the response (in likelihoods and in ℓ̄)."""

    @property
    def method(self) -> Method:
        """The loss with its settings."""
        kind = METHODS.find(getattr(self, "objective"))  # noqa: B009
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


class Stage1Section(StageSection):
    """Stage 1: SFT-C (paper, Eq. 4), or plain SFT."""

    objective: Literal["sft_c", "sft"] = "sft_c"
    """`sft_c` adds the regulariser on the negatives; `sft` is the plain likelihood."""
    regularizer: Literal["nll_floor", "nll_ceiling", "entropy", "label_smoothing", "hard_constraint"] = "nll_floor"
    """`nll_floor` is Eq. 4. `nll_ceiling` is what the paper's prose says. `entropy` rewards entropy on the negatives.
    `label_smoothing` smooths the positives. `hard_constraint` follows the constraint alone while it is violated."""
    weight: float = Field(default=0.1, ge=0)
    """λ of Eq. 4 (for `entropy`: weight of the entropy, in nats)."""
    nll_floor: float = Field(default=4.0, gt=0)
    """C of Eq. 4, in nats per token (or per response with `nll_reduction: sum`)."""
    hinge_scope: Literal["global_batch", "example"] = "global_batch"
    """Where the ReLU of Eq. 4 stands: on the mean over the global batch, as printed, or on each negative."""
    nll_reduction: Literal["mean", "sum"] = "mean"
    """Negative log-likelihood of a response: mean over its tokens, or sum."""
    epsilon: float = Field(default=0.1, gt=0, lt=1)
    """Share of the uniform distribution in `label_smoothing`."""


class Stage2Section(Cooling, StageSection):
    """Stage 2: CW-DPO (paper, Eq. 6 and 7), or one of its relatives."""

    objective: Literal[
        "cw_dpo",
        "dpo",
        "dpo_shift",
        "rpo",
        "cdpo",
        "ipo",
        "simpo",
        "focal_dpo",
        "focalpo",
        "dpop",
        "wpo",
        "mdpo",
        "v_dpo",
        "opa_dpo",
        "grpo",
        "ppo",
    ] = "cw_dpo"
    """The loss; `cwdpo methods` lists formulas, papers and which of the settings below each reads."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the preference model. The paper never states it. Where it is left out, `dpop` has 0.3 and
    `simpo` 2."""
    detach: bool = True
    """No gradient through the cooling weight, as in Eq. 8."""
    w_min: float = Field(default=0.0, ge=0, le=1)
    """Least cooling weight: above 0 some ranking signal stays on cold negatives."""
    renormalise: bool = False
    """Scale the margin by 2/(1+w), so that the pulls on winner and loser add up to DPO's (ours, not the paper's)."""
    bound_pull: bool = False
    """Scale a pair down where `cw_dpo` would pull its winner harder than DPO does (ours, not the paper's)."""
    cooling_span: Literal["response", "differing"] = "response"
    """What `cw_dpo` cools: the whole loser, or (ours) only its tokens from the first to the last in which it differs
    from the winner, by their own mean log-probability."""
    shift_weight: float = Field(default=0.5, ge=0, le=1)
    """The fixed weight of `dpo_shift`."""
    sft_weight: float = Field(default=1.0, ge=0)
    """α of `rpo`: weight of the chosen response's NLL per token."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """ε of `cdpo`: probability that a pair is labelled the wrong way round."""
    target_margin: float = Field(default=1.0, ge=0)
    """γ of `simpo`: lead of the winner's reward β·ℓ̄ that counts as even."""
    focus: float = Field(default=2.0, ge=0)
    """γ of `focal_dpo` (2) and `focalpo` (0.05 where it is left out)."""
    winner_penalty: float = Field(default=50.0, ge=0)
    """λ of `dpop`: price of a winner below the reference."""
    guidance: float = Field(default=1.5, gt=0)
    """γ of `v_dpo`: above 1 the policy is guided away from what it says without the image."""
    detach_null: bool = True
    """No gradient through the pass of `v_dpo` without the image."""
    image_weight: float = Field(default=0.2, ge=0)
    """μ of `opa_dpo`: weight of preferring the winner under its whole image."""
    anchor_weight: float = Field(default=1.0, ge=0)
    """α of `opa_dpo`: weight of keeping the winner above the reference."""
    samples: int = Field(default=4, ge=1)
    """Responses that `grpo` and `ppo` sample for every prompt, at temperature 1."""
    reward: Literal["auto", "exact", "cider"] = "auto"
    """What they are rewarded for: CIDEr-D against the references (1 is what the tables call 100), document frequencies
    from all training prompts; `exact`: 1 for a right caption of `scenes`; `auto`: `exact` on `scenes`, else `cider`."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest sampled response, in tokens."""
    rollout_updates: int = Field(default=1, ge=1)
    """Updates whose responses are sampled at once, before the first of them; from the second on the policy is no longer
    the one that sampled, which is what `clip` is for. `ppo` has 4 where it is left out."""
    rollout_batch_size: int = Field(default=16, ge=1)
    """Prompts whose responses are sampled at once; changes memory, speed and what is drawn. Several processes share
    such batches out among them."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε of `grpo` and `ppo`: how far π/π_old may go from 1 before a token stops counting."""
    kl: float = Field(default=0.04, ge=0)
    """Weight of the KL divergence to the reference: in the loss of `grpo`, in the rewards of `ppo`; 0 has none."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of `ppo`'s advantages: 1 trusts the rewards alone, 0 the value function."""
    value_learning_rate: float = Field(default=0.5, gt=0, le=1)
    """Step of `ppo`'s value function, a linear one: 1 sets the value of a state that is seen alone to its return."""
    reference: Literal["cached", "live"] = "cached"
    """Reference log-probabilities: computed once and kept on disk, or by a frozen model in every step. `grpo` and `ppo`
    score what did not exist before: `live` where it is left out, and no other."""

    @model_validator(mode="before")
    @classmethod
    def _method_defaults(cls, values: Any) -> Any:
        """Fill in what is the method's own and is left out."""
        if not isinstance(values, dict):
            return values
        name: Any = values.get("objective")
        if name not in ("simpo", "dpop", "focalpo", "grpo", "ppo"):
            return values
        own = {n: f.default for n, f in METHODS.find(name).model_fields.items()}
        return {**own, **({"reference": "live"} if name in ("grpo", "ppo") else {}), **values}

    @model_validator(mode="after")
    def _on_policy(self) -> Stage2Section:
        """Refuse what cannot go with responses that are sampled as training goes."""
        if not METHODS.find(self.objective).on_policy:
            return self
        if self.reference == "cached":
            raise ValueError(
                f"reference: cached does not go with {self.objective}, whose responses are sampled as it trains; "
                "leave it out, or use live"
            )
        if not self.include_eos:
            raise ValueError(
                f"include_eos: false does not go with {self.objective}: to stop is sampled like every token; use true"
            )
        if self.objective == "grpo" and self.samples < 2:
            raise ValueError("samples = 1 leaves grpo nothing to compare a reward with; use 2 or more")
        return self


def settings_of(section: type[StageSection]) -> tuple[str, ...]:
    """Return the fields of a stage that belong to its objective, not to optimiser and batch."""
    return tuple(name for name in section.model_fields if name not in StageSection.model_fields)
