"""What is trained for the paper's tables: starts (Stage 1), and arms (Stage 2 from one of them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "BASE", "STARTS", "Arm", "Start"]

_Values = Mapping[str, Any]

BASE = "base"
"""The start that is not trained."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A Stage 1.

    Attributes:
        title: What people call it.
        stage1: Keys of the recipe's section; the rest are the scale's.
        followed: It is probed while it trains, for the figures.
        corrected: It also learns the base's own answers, corrected.
    """

    title: str
    stage1: _Values
    followed: bool = False
    corrected: bool = False


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A Stage 2 from a start.

    Attributes:
        start: Key of `STARTS`, or `BASE`.
        title: What people call it.
        stage2: Keys of the recipe's section; the rest are the scale's.
        negatives: Keys of `negatives.stage2`.
        tuned: It is compared across methods, so its learning rate is chosen as every method's is.
        followed: It is probed while it trains, for the figures.
        corrected: It compares with the base's own answers, and takes them corrected for chosen ones too.
    """

    start: str
    title: str
    stage2: _Values
    negatives: _Values = field(default_factory=dict[str, Any])
    tuned: bool = False
    followed: bool = False
    corrected: bool = False


STARTS: Mapping[str, Start] = {
    "sft": Start(title="SFT", stage1={"objective": "sft"}),
    "sft_c": Start(title="SFT-C", stage1={"objective": "sft_c"}),
    "sft_followed": Start(title="SFT", stage1={"objective": "sft"}, followed=True),
    "sft_c_followed": Start(title="SFT-C", stage1={"objective": "sft_c"}, followed=True),
    "opa_sft": Start(title="SFT, with own answers corrected", stage1={"objective": "sft"}, corrected=True),
    "label_smoothing": Start(
        title="SFT with label smoothing", stage1={"objective": "sft_c", "regularizer": "label_smoothing"}
    ),
    "hard_constraint": Start(
        title="SFT-C, hard constraint", stage1={"objective": "sft_c", "regularizer": "hard_constraint"}
    ),
    **{
        f"sft_c_{c:g}": Start(title=f"SFT-C, C = {c:g}", stage1={"objective": "sft_c", "nll_floor": c})
        for c in (2.0, 5.0, 6.0)
    },
}

_BASELINES = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "v_dpo": "V-DPO",
    "mdpo": "mDPO",
    "rpo": "DPO+NLL",
    "dpo_shift": "DPO-Shift, .5",
    "dpop": "DPOP",
    "cdpo": "cDPO",
    "ipo": "IPO",
    "simpo": "SimPO",
    "focal_dpo": "Focal-DPO",
    "focalpo": "FocalPO",
    "wpo": "WPO",
}

_REMEDIES = {"renormalised": "renormalise", "bounded": "bound_pull"}


def _mix(**shares: Any) -> dict[str, Any]:
    return {"dataset": 0, **shares}


NEGATIVES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "beam": ("beam search", _mix(beam=1)),
    "perturb": ("changed by a lexicon", _mix(perturb=1)),
    "sample": ("sampled", _mix(sample=1)),
    "mixed": ("mixed: data, lexicon, beam, sampled", _mix(dataset=1, perturb=1, beam=1, sample=1)),
    "beam_filtered": ("beam search, filtered", _mix(beam=1, filter={"similarity": 1.0, "measure": "support"})),
    "beam_exact": ("beam search, no right ones", _mix(beam=1, filter={"similarity": 1.0, "measure": "exact"})),
    "scheduled": ("lexicon first, beam later", _mix(schedule=[{"at": 0, "perturb": 1}, {"at": 1, "beam": 1}])),
    "candidates": ("lexicon and beam, drawn anew", _mix(perturb=1, beam=1, candidates=4)),
    "frontier": ("the same, by w_c (1 - w_c)", _mix(perturb=1, beam=1, candidates=4, curriculum="frontier")),
    "fresh": ("beam search, refreshed", _mix(beam=1, refresh={"every": 25})),
}
"""What Table 5 is asked of: name, and `negatives.stage2`."""

_SECOND_STAGES: Mapping[str, tuple[str, str, _Values]] = {
    "dpo": ("sft", "DPO", {"objective": "dpo"}),
    "cw_dpo": ("sft_c", "CW-DPO", {"objective": "cw_dpo"}),
}


def _arms() -> dict[str, Arm]:
    cooled = {"objective": "cw_dpo"}
    arms = {
        "dpo": Arm(start="sft", title="DPO", stage2={"objective": "dpo"}, tuned=True),
        "cw_dpo": Arm(start="sft_c", title="CW-DPO", stage2=cooled, tuned=True),
    }
    arms |= {n: Arm(start="sft", title=t, stage2={"objective": n}, tuned=True) for n, t in _BASELINES.items()}
    opa = {"objective": "opa_dpo"}
    arms["opa_dpo"] = Arm(start="opa_sft", title="OPA-DPO", stage2=opa, tuned=True, corrected=True)
    # Table 2 and beyond: one piece of the recipe taken out
    arms["filtered"] = Arm(start="sft_c", title="CW-DPO, filtered", stage2=cooled, negatives={"filter": {"logp": -5.0}})
    arms["no_sft"] = Arm(start=BASE, title="CW-DPO on the base", stage2=cooled)
    arms["sft_cw"] = Arm(start="sft", title="SFT → CW-DPO", stage2=cooled)
    arms["hard_cw"] = Arm(start="hard_constraint", title="hard constraint → CW-DPO", stage2=cooled)
    arms["sftc_dpo"] = Arm(start="sft_c", title="SFT-C → DPO", stage2={"objective": "dpo"})
    shifted = {"objective": "dpo_shift", "shift_weight": 0.7}
    arms["sftc_shift"] = Arm(start="sft_c", title="SFT-C → fixed weight .7", stage2=shifted)
    # Table 3
    arms["ls_dpo"] = Arm(start="label_smoothing", title="label smoothing → DPO", stage2={"objective": "dpo"})
    arms["sftc_focal"] = Arm(start="sft_c", title="SFT-C → Focal-DPO", stage2={"objective": "focal_dpo"})
    # Tables 4 and 6
    for c in (2, 5, 6):
        arms[f"c_{c}"] = Arm(start=f"sft_c_{c}", title=f"C = {c}", stage2=cooled)
    for floor in (-5, -4, -2):
        arms[f"floor_{-floor}"] = Arm(start="sft_c", title=f"ℓ_floor = {floor}", stage2={**cooled, "floor": floor})
    for tau in (0.5, 2.0, 5.0):
        arms[f"tau_{tau:g}"] = Arm(start="sft_c", title=f"τ = {tau:g}", stage2={**cooled, "tau": tau})
    # Table 5
    for name, (title, mix) in NEGATIVES.items():
        for arm, (start, method, stage2) in _SECOND_STAGES.items():
            arms[f"{arm}_{name}"] = Arm(start=start, title=f"{method}, {title}", stage2=stage2, negatives=mix)
    # beyond the paper
    for name, key in _REMEDIES.items():
        arms[name] = Arm(start="sft_c", title=f"CW-DPO, {name}", stage2={**cooled, key: True}, tuned=True)
    differing = {**cooled, "cooling_span": "differing"}
    arms["differing"] = Arm(start="sft_c", title="CW-DPO, differing span", stage2=differing, tuned=True)
    # the figures
    for arm, (start, method, stage2) in _SECOND_STAGES.items():
        arms[f"{arm}_followed"] = Arm(start=start, title=method, stage2=stage2, followed=True)
    return arms


ARMS: Mapping[str, Arm] = _arms()
