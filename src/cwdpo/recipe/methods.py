"""What can be asked for as Stage 1 and Stage 2: one list, which recipe, objectives and `cwdpo methods` agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["METHODS", "STAGE2_METHODS", "Method"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """An objective, or a regulariser of Stage 1.

    Attributes:
        key: The recipe's field.
        name: Its value.
        title: What people call it.
        formula: In a line; Δ = log π_θ − log π_ref, m = β(Δ_w − Δ_l), ℓ̄ a mean per token, a ~ the altered image.
        paper: Authors and year.
        arxiv: Number on arXiv, empty where it has none.
        settings: Fields of the stage that it reads, beside those of every stage.
        defaults: What of these is its own where the recipe leaves it out.
        reference: It compares with a frozen reference.
        image: What is done to the image of a second pass; empty where there is none.
        every_chosen: Every chosen response of a prompt makes pairs, not the first alone.
        on_policy: It trains on responses that the policy samples as it goes, by their rewards, not on pairs.
        note: What else it needs, or what to know.
    """

    key: str
    name: str
    title: str
    formula: str
    paper: str
    arxiv: str = ""
    settings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reference: bool = False
    image: str = ""
    every_chosen: bool = False
    on_policy: bool = False
    note: str = ""


_THE_PAPER = "Cooling-Weighted DPO"


def _regularizer(name: str, formula: str, *settings: str, paper: str = _THE_PAPER, arxiv: str = "") -> Method:
    title = f"SFT-C with {name.replace('_', ' ')}"
    return Method(
        key="stage1.regularizer", name=name, title=title, formula=formula, paper=paper, arxiv=arxiv, settings=settings
    )


def _pairs(
    name: str,
    title: str,
    formula: str,
    paper: str,
    arxiv: str,
    *settings: str,
    defaults: Mapping[str, Any] | None = None,
    reference: bool = True,
    image: str = "",
    every_chosen: bool = False,
    note: str = "",
) -> Method:
    return Method(
        key="stage2.objective",
        name=name,
        title=title,
        formula=formula,
        paper=paper,
        arxiv=arxiv,
        settings=("beta", *settings),
        defaults=defaults or {},
        reference=reference,
        image=image,
        every_chosen=every_chosen,
        note=note,
    )


def _on_policy(name: str, title: str, formula: str, paper: str, arxiv: str, *settings: str, **more: Any) -> Method:
    return Method(
        key="stage2.objective",
        name=name,
        title=title,
        formula=formula,
        paper=paper,
        arxiv=arxiv,
        settings=("samples", "reward", "max_new_tokens", "rollout_updates", "rollout_batch_size", "clip", *settings),
        reference=True,
        on_policy=True,
        **more,
    )


METHODS: tuple[Method, ...] = (
    Method(
        key="stage1.objective",
        name="sft",
        title="SFT",
        formula="NLL(y⁺)",
        paper="maximum likelihood",
        settings=("nll_reduction",),
    ),
    Method(
        key="stage1.objective",
        name="sft_c",
        title="SFT-C",
        formula="NLL(y⁺) and a regulariser on the negatives or the positives, one of the next five",
        paper=_THE_PAPER,
        settings=("regularizer",),
    ),
    _regularizer("nll_floor", "NLL(y⁺) + λ·ReLU(C − NLL(y⁻))", "weight", "nll_floor", "hinge_scope", "nll_reduction"),
    _regularizer("nll_ceiling", "NLL(y⁺) + λ·ReLU(NLL(y⁻) − C)", "weight", "nll_floor", "hinge_scope", "nll_reduction"),
    _regularizer("entropy", "NLL(y⁺) − λ·H(π(·|y⁻))", "weight", "nll_reduction"),
    _regularizer(
        "label_smoothing",
        "(1 − ε)·NLL(y⁺) + ε·(mean −log π over the vocabulary)",
        "epsilon",
        "nll_reduction",
        paper="Szegedy et al., 2015",
        arxiv="1512.00567",
    ),
    _regularizer("hard_constraint", "NLL(y⁺), or C − NLL(y⁻) alone while it is above 0", "nll_floor", "nll_reduction"),
    _pairs(
        "cw_dpo",
        "CW-DPO",
        "−log σ(β(Δ_w − w_c·Δ_l)), w_c = σ((ℓ̄(y_l) − floor)/τ)",
        _THE_PAPER,
        "",
        *("floor", "tau", "w_min", "detach", "renormalise", "bound_pull", "cooling_span"),
        note="w_min, renormalise, bound_pull and cooling_span are ours",
    ),
    _pairs("dpo", "DPO", "−log σ(m)", "Rafailov et al., 2023", "2305.18290"),
    _pairs("dpo_shift", "DPO-Shift", "−log σ(β(Δ_w − f·Δ_l))", "Yang et al., 2025", "2502.07599", "shift_weight"),
    _pairs("rpo", "DPO+NLL", "−log σ(m) − α·ℓ̄(y_w)", "Pang et al., 2024", "2404.19733", "sft_weight"),
    _pairs(
        "cdpo",
        "cDPO",
        "−(1 − ε)·log σ(m) − ε·log σ(−m)",
        "Mitchell, 2023 (ericmitchell.ai/cdpo.pdf)",
        "",
        "label_smoothing",
    ),
    _pairs("ipo", "IPO", "(Δ_w/L_w − Δ_l/L_l − 1/(2β))²", "Azar et al., 2023", "2310.12036", note="means per token"),
    _pairs(
        "simpo",
        "SimPO",
        "−log σ(β(ℓ̄(y_w) − ℓ̄(y_l)) − γ)",
        "Meng et al., 2024",
        "2405.14734",
        "target_margin",
        defaults={"beta": 2.0},
        reference=False,
        note="no reference",
    ),
    _pairs(
        "focal_dpo",
        "Focal-DPO",
        "−(1 − p)^γ·log p, p = σ(m)",
        "Lin et al., 2017 (the focal loss)",
        "1708.02002",
        "focus",
    ),
    _pairs(
        "focalpo",
        "FocalPO",
        "−p^γ·log p, p = σ(m)",
        "Liu et al., 2025",
        "2501.06645",
        "focus",
        defaults={"focus": 0.05},
    ),
    _pairs(
        "dpop",
        "DPOP",
        "−log σ(m − βλ·max(0, −Δ_w))",
        "Pal et al., 2024",
        "2402.13228",
        "winner_penalty",
        defaults={"beta": 0.3},
    ),
    _pairs("wpo", "WPO", "−exp(ℓ̄(y_w) + ℓ̄(y_l))·log σ(m), weight detached", "Zhou et al., 2024", "2406.11827"),
    _pairs(
        "mdpo",
        "mDPO",
        "−log σ(m) − log σ(β(Δ_w − Δ̃_w)) − log σ(β·Δ_w)",
        "Wang et al., 2024",
        "2406.11839",
        image="crop",
        note="the winner again under a crop of 1 to 20 % of the image",
    ),
    _pairs(
        "v_dpo",
        "V-DPO",
        "−log σ(β(p̂_w − p̂_l)), p̂ = γ·log π − (γ−1)·log π̃ − log π_ref",
        "Xie et al., 2024",
        "2411.02712",
        *("guidance", "detach_null"),
        image="blank",
        note="both responses again under a grey image",
    ),
    _pairs(
        "opa_dpo",
        "OPA-DPO",
        "−log σ(m) − μ·log σ(β(Δ_w − Δ̃_w)) − α·log σ(β·Δ_w)",
        "Yang et al., 2025",
        "2501.09695",
        *("image_weight", "anchor_weight"),
        image="mask",
        every_chosen=True,
        note="every chosen response of a prompt, again under the image with 30 % masked; see negatives.correction",
    ),
    _on_policy(
        "grpo",
        "GRPO",
        "−min(ρA, clip(ρ)A) + kl·(1/r + log r − 1)",
        "Shao et al., 2024",
        "2402.03300",
        "kl",
        defaults={"reference": "live"},
        note="per token; ρ = π/π_old, r = π/π_ref, A: reward against the prompt's others; needs no rejected ones",
    ),
    _on_policy(
        "ppo",
        "PPO",
        "−min(ρA, clip(ρ)A)",
        "Schulman et al., 2017",
        "1707.06347",
        *("kl", "gae_lambda", "value_learning_rate"),
        defaults={"reference": "live", "rollout_updates": 4},
        note="per token; A: GAE of reward − kl·log r with a linear value function; needs no rejected responses",
    ),
)
"""All of them, in the order in which they are shown."""

STAGE2_METHODS: Mapping[str, Method] = {m.name: m for m in METHODS if m.key == "stage2.objective"}
"""Those of Stage 2 by name."""
