"""The paper's claims, and questions of ours, each with what is measured for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CLAIMS", "Claim", "Contrast"]


@dataclass(frozen=True)
class Contrast:
    """One entry minus another in a measure, and the sign that the claim gives it.

    Attributes:
        one: Entry.
        other: Entry.
        measure: Key of `MEASURES`.
        sign: +1 where `one` is claimed to be higher, -1 lower.
        tuned: Each side at its own chosen learning rate.
    """

    one: str
    other: str
    measure: str
    sign: int
    tuned: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        where: Place in the paper, or `beyond` for questions of ours.
        sentence: What is claimed.
        contrasts: What was measured for it.
        source: Tables or figures whose runs it needs.
        other: Key of another way to judge it: `costs`, `influence`, `order`, `steps`.
        reason: Why it cannot be tested here; where this stands, nothing else does.
        every: It says something of each contrast: one that goes the other way refutes it.
    """

    where: str
    sentence: str
    contrasts: tuple[Contrast, ...] = ()
    source: tuple[str, ...] = ()
    other: str = ""
    reason: str = ""
    every: bool = False


def _up(one: str, *others: str, measures: Sequence[str] = ("correct",), tuned: bool = False) -> tuple[Contrast, ...]:
    return tuple(Contrast(one, other, m, +1, tuned) for other in others for m in measures)


def _down(one: str, *others: str, measures: Sequence[str], tuned: bool = False) -> tuple[Contrast, ...]:
    return tuple(Contrast(one, other, m, -1, tuned) for other in others for m in measures)


_QUALITY = ("correct", "cider")
_DRIFT = ("tv", "js")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "abstract",
        "CW-DPO is more stable than DPO (drifts less)",
        _down("cw_dpo", "dpo", measures=_DRIFT, tuned=True),
        ("table1",),
    ),
    Claim(
        "abstract",
        "CW-DPO is better calibrated than DPO",
        _down("cw_dpo", "dpo", measures=("ece",), tuned=True),
        ("table1",),
    ),
    Claim(
        "abstract",
        "CW-DPO is better calibrated than SFT",
        _down("cw_dpo", "sft", measures=("ece",), tuned=True),
        ("table1",),
    ),
    Claim(
        "abstract",
        "CW-DPO wins more comparisons than DPO",
        _up("cw_dpo", "dpo", measures=_QUALITY, tuned=True),
        ("table1",),
    ),
    Claim(
        "abstract",
        "CW-DPO wins more comparisons than SFT",
        _up("cw_dpo", "sft", measures=_QUALITY, tuned=True),
        ("table1",),
    ),
    Claim("abstract", "CW-DPO converges in fewer steps than DPO", source=("fig4",), other="steps"),
    Claim(
        "abstract",
        "The cooling weight is the main driver: taking it away costs more than taking Stage 1's negatives away",
        _up("sft_cw", "sftc_shift", "sftc_dpo"),
        ("table2",),
    ),
    Claim(
        "abstract",
        "Mixing negatives of the data with on-policy ones is better than either",
        _up("cw_dpo_mixed", "cw_dpo", "cw_dpo_beam", measures=_QUALITY),
        ("table5",),
        every=True,
    ),
    Claim("§4.1", "CW-DPO beats PPO", _up("cw_dpo", "ppo", measures=_QUALITY, tuned=True), ("table1",)),
    Claim("§4.1", "CW-DPO beats GRPO", _up("cw_dpo", "grpo", measures=_QUALITY, tuned=True), ("table1",)),
    Claim("§4.1", "CW-DPO beats V-DPO", _up("cw_dpo", "v_dpo", measures=_QUALITY, tuned=True), ("table1",)),
    Claim("§4.1", "CW-DPO beats OPA-DPO", _up("cw_dpo", "opa_dpo", measures=_QUALITY, tuned=True), ("table1",)),
    Claim("§4.1", "Plain DPO can fall below SFT", _down("dpo", "sft", measures=_QUALITY, tuned=True), ("table1",)),
    Claim(
        "§4.1",
        "CW-DPO on Qwen2.5-VL-72B leads on COCO, Flickr30k, NoCaps, MMMU and MMBench",
        reason="needs the 72B model, GPUs and these data sets; `cwdpo paper table1 --scale full` runs the captions",
    ),
    Claim(
        "§4.2", "SFT-C keeps more predictive entropy than SFT", _up("sft_c", "sft", measures=("entropy",)), ("table2",)
    ),
    Claim("§4.2", "SFT-C writes better captions than SFT", _up("sft_c", "sft", measures=_QUALITY), ("table2",)),
    Claim(
        "§4.3",
        "From the same SFT-C start, CW-DPO drifts less than DPO",
        _down("cw_dpo", "sftc_dpo", measures=_DRIFT),
        ("table3",),
    ),
    Claim("§4.3", "… puts less mass on the top token", _down("cw_dpo", "sftc_dpo", measures=("top1",)), ("table3",)),
    Claim("§4.3", "… is better calibrated", _down("cw_dpo", "sftc_dpo", measures=("ece",)), ("table3",)),
    Claim("§4.3", "… and writes better captions", _up("cw_dpo", "sftc_dpo", measures=_QUALITY), ("table3",)),
    Claim("§4.4", "Without Stage 1, CW-DPO is worse", _up("filtered", "no_sft", measures=_QUALITY), ("table2",)),
    Claim(
        "§4.4",
        "Without Stage 1's negatives, CW-DPO is worse",
        _up("filtered", "sft_cw", measures=_QUALITY),
        ("table2",),
    ),
    Claim(
        "§4.4",
        "With a hard constraint in Stage 1, CW-DPO is worse",
        _up("filtered", "hard_cw", measures=_QUALITY),
        ("table2",),
    ),
    Claim("§4.4", "Without Stage 2, the model is worse", _up("filtered", "sft_c", measures=_QUALITY), ("table2",)),
    Claim(
        "§4.4",
        "With a fixed weight of .7, CW-DPO is worse",
        _up("filtered", "sftc_shift", measures=_QUALITY),
        ("table2",),
    ),
    Claim(
        "§4.4", "With a fixed weight of 1, CW-DPO is worse", _up("filtered", "sftc_dpo", measures=_QUALITY), ("table2",)
    ),
    Claim(
        "§4.4",
        "Without filtering of easy negatives, CW-DPO is worse",
        _up("filtered", "cw_dpo", measures=_QUALITY),
        ("table2",),
    ),
    Claim(
        "App. A", "SFT-C → CW-DPO beats label smoothing → DPO", _up("cw_dpo", "ls_dpo", measures=_QUALITY), ("table3",)
    ),
    Claim(
        "App. A",
        "CW-DPO beats Focal-DPO from the same start",
        _up("cw_dpo", "sftc_focal", measures=_QUALITY),
        ("table3",),
    ),
    Claim("App. A", "CW-DPO drifts less than Focal-DPO", _down("cw_dpo", "sftc_focal", measures=_DRIFT), ("table3",)),
    Claim(
        "App. B",
        "Every C from 2 to 6 and every ℓ_floor from -5 to -2 beats DPO",
        tuple(
            Contrast(e, "dpo", "correct", +1) for e in ("c_2", "c_5", "c_6", "floor_5", "floor_4", "floor_2", "cw_dpo")
        ),
        ("table4",),
        every=True,
    ),
    Claim(
        "App. B",
        "C = 4 is better than 2 and 6",
        _up("cw_dpo", "c_2", "c_6"),
        ("table4",),
        every=True,
    ),
    Claim(
        "App. B",
        "ℓ_floor = -3 is better than -5 and -2",
        _up("cw_dpo", "floor_5", "floor_2"),
        ("table4",),
        every=True,
    ),
    Claim(
        "App. D",
        "CW-DPO beats DPO wherever the negatives come from",
        tuple(
            Contrast(f"cw_dpo{n}", f"dpo{n}", "correct", +1)
            for n in ("", "_beam", "_beam_filtered", "_perturb", "_sample", "_mixed")
        ),
        ("table5",),
        every=True,
    ),
    Claim(
        "App. D",
        "Beam negatives are worse than edited ones, for both",
        (*_down("cw_dpo_beam", "cw_dpo", measures=("correct",)), *_down("dpo_beam", "dpo", measures=("correct",))),
        ("table5",),
    ),
    Claim(
        "App. D",
        "With beam negatives, DPO falls below SFT",
        _down("dpo_beam", "sft", measures=("correct",)),
        ("table5",),
    ),
    Claim(
        "App. E",
        "Every τ from .5 to 5 beats DPO",
        tuple(Contrast(e, "dpo", "correct", +1) for e in ("tau_0.5", "cw_dpo", "tau_2", "tau_5")),
        ("table6",),
        every=True,
    ),
    Claim(
        "App. E",
        "τ = 1 is better than .5 and 5",
        _up("cw_dpo", "tau_0.5", "tau_5"),
        ("table6",),
        every=True,
    ),
    Claim(
        "App. F",
        "A step of SFT-C costs about twice one of SFT; CW-DPO costs what DPO does",
        source=("table7",),
        other="costs",
    ),
    Claim(
        "App. G",
        "Over training the update's influence stays, ‖A‖² and LB_K rise, the residual falls",
        source=("fig5",),
        other="influence",
    ),
    Claim("App. H", "w_c stays ordered easy < medium < hard while Stage 2 trains", source=("fig6",), other="order"),
    Claim(
        "beyond",
        "CW-DPO beats what is simpler: a plain NLL term (DPO+NLL), and a fixed weight of .5",
        _up("cw_dpo", "rpo", "dpo_shift", measures=_QUALITY, tuned=True),
        ("table1",),
    ),
    *(
        Claim("beyond", f"{title} beats CW-DPO", _up(entry, "cw_dpo", measures=_QUALITY, tuned=True), ("table1",))
        for entry, title in (
            ("renormalised", "A renormalised margin"),
            ("bounded", "A bound on the winner's pull"),
            ("differing", "Cooling the differing span alone"),
        )
    ),
    Claim("beyond", "Refreshed beam negatives beat those made once", _up("cw_dpo_fresh", "cw_dpo_beam"), ("changing",)),
    Claim(
        "beyond",
        "Drawing by w_c (1 - w_c) beats drawing evenly",
        _up("cw_dpo_frontier", "cw_dpo_candidates"),
        ("changing",),
    ),
)
