"""The paper's tables: their rows, which of our arms stands for each, and the figures that the paper prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cwdpo.paper.arms import ARMS, BASE, NEGATIVES, STARTS

__all__ = ["COSTS", "FIGURES", "TABLES", "PaperFigure", "Row", "Table"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: As shown.
        entry: Key of `ARMS` or `STARTS`, or `BASE`.
        paper: The paper's figures by column, where it has the row.
        group: What the row belongs to.
    """

    label: str
    entry: str
    paper: Mapping[str, float] = field(default_factory=dict[str, float])
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: What it is asked for by.
        title: What it shows.
        rows: From top to bottom.
        against: Entry that the others are held against, paired by seed.
        tuned: Whether each method's learning rate is chosen (as for every other), or one rate serves all rows.
        note: What differs from the paper.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    against: str
    tuned: bool = False
    note: str = ""

    @property
    def entries(self) -> list[str]:
        """What its rows need, each once."""
        return list(dict.fromkeys([row.entry for row in self.rows] + [self.against]))


def _coco(b4: float, meteor: float, cider: float, spice: float, **more: float) -> dict[str, float]:
    return {"bleu4": b4, "meteor": meteor, "cider": cider, "spice": spice, **more}


_CW = _coco(39.6, 30.4, 142.6, 25.8)
_DPO = _coco(33.8, 28.2, 137.2, 24.2)


def _beyond(*entries: str) -> tuple[Row, ...]:
    return tuple(Row(ARMS[e].title, e, group="beyond the paper") for e in entries)


_TABLE1 = Table(
    "table1",
    "Methods",
    (
        Row("Base", BASE, _coco(31.2, 26.2, 128.8, 23.8, mmmu=70.2, mmbench=84.9)),
        Row("SFT", "sft", _coco(35.2, 28.4, 136.5, 24.3, mmmu=71.8, mmbench=86.2)),
        Row("DPO", "dpo", _coco(33.5, 28.0, 136.9, 24.0, mmmu=71.1, mmbench=84.9)),
        Row("PPO", "ppo", _coco(34.9, 28.7, 139.2, 24.7, mmmu=71.4, mmbench=85.8)),
        Row("V-DPO", "v_dpo", _coco(36.6, 28.7, 138.3, 24.8, mmmu=72.9, mmbench=86.8)),
        Row("GRPO", "grpo", _coco(36.5, 28.8, 138.2, 24.9, mmmu=72.8, mmbench=86.9)),
        Row("OPA-DPO", "opa_dpo", _coco(36.8, 29.0, 138.5, 25.1, mmmu=73.1, mmbench=87.2)),
        Row("CW-DPO", "cw_dpo", {**_CW, "mmmu": 74.6, "mmbench": 89.6}),
        *_beyond("rpo", "dpo_shift", "mdpo", "dpop", "cdpo", "ipo", "simpo", "focal_dpo", "focalpo", "wpo"),
        *_beyond("renormalised", "bounded", "differing"),
    ),
    against="dpo",
    tuned=True,
)
_TABLE2 = Table(
    "table2",
    "Ablation of CW-DPO",
    (
        Row("CW-DPO (with filtering)", "filtered", _CW),
        Row("w/o Smooth SFT", "no_sft", _coco(34.6, 28.4, 137.6, 24.4), "Stage 1"),
        Row("w/o Negative Sampling", "sft_cw", _coco(35.8, 29.4, 138.9, 24.6), "Stage 1"),
        Row("w/o Soft Penalty", "hard_cw", _coco(36.2, 29.7, 139.2, 24.8), "Stage 1"),
        Row("w/o CW-DPO", "sft_c", _coco(36.7, 28.8, 140.7, 24.7), "Stage 2"),
        Row("w/o Cooling Weight (.7)", "sftc_shift", _coco(39.2, 30.1, 141.5, 25.1), "Stage 2"),
        Row("w/o Cooling Weight (1)", "sftc_dpo", _coco(39.2, 30.1, 141.5, 25.1), "Stage 2"),
        Row("w/o Negative Filtering", "cw_dpo", _coco(36.1, 27.9, 137.4, 24.3), "Stage 2"),
    ),
    against="filtered",
    note="The paper's one row for a fixed weight names two systems, .7 and 1; both are here.",
)
_TABLE3 = Table(
    "table3",
    "Components beside their relatives",
    (
        Row("SFT → DPO", "dpo", {**_DPO, "tv": 0.45, "js": 0.30}),
        Row("label smoothing → DPO", "ls_dpo", _coco(34.5, 28.4, 138.0, 24.4)),
        Row("SFT-C → Focal-DPO", "sftc_focal", {**_coco(37.0, 29.3, 140.5, 25.1), "tv": 0.28, "js": 0.19}),
        Row("SFT-C → CW-DPO", "cw_dpo", {**_CW, "tv": 0.25, "js": 0.19}),
        Row("SFT-C → DPO", "sftc_dpo", group="beyond the paper"),
    ),
    against="dpo",
    note="The paper's text gives .15 and .10 as CW-DPO's TV and JS.",
)
_TABLE4 = Table(
    "table4",
    "Sensitivity to C and ℓ_floor",
    (
        Row("SFT → DPO", "dpo", _DPO),
        Row("C = 2", "c_2", {"bleu4": 38.9, "cider": 141.5, "spice": 25.5}, "C"),
        Row("C = 4 (default)", "cw_dpo", {"bleu4": 39.6, "cider": 142.6, "spice": 25.8}, "C"),
        Row("C = 5", "c_5", {"bleu4": 39.4, "cider": 142.2, "spice": 25.7}, "C"),
        Row("C = 6", "c_6", {"bleu4": 39.1, "cider": 141.9, "spice": 25.6}, "C"),
        Row("ℓ_floor = -5", "floor_5", {"bleu4": 39.2, "cider": 142.0, "spice": 25.6}, "ℓ_floor"),
        Row("ℓ_floor = -4", "floor_4", {"bleu4": 39.5, "cider": 142.4, "spice": 25.7}, "ℓ_floor"),
        Row("ℓ_floor = -3 (default)", "cw_dpo", {"bleu4": 39.6, "cider": 142.6, "spice": 25.8}, "ℓ_floor"),
        Row("ℓ_floor = -2", "floor_2", {"bleu4": 39.0, "cider": 141.8, "spice": 25.5}, "ℓ_floor"),
    ),
    against="dpo",
)


def _pairs(*sources: str) -> tuple[Row, ...]:
    """DPO and CW-DPO for each source of negatives."""
    rows: list[Row] = []
    for name in sources:
        rows += [
            Row("DPO", f"dpo_{name}", group=NEGATIVES[name][0]),
            Row("CW-DPO", f"cw_dpo_{name}", group=NEGATIVES[name][0]),
        ]
    return tuple(rows)


_EDITED, _BEAM = "of the data: one fact changed", "beam search"
_TABLE5 = Table(
    "table5",
    "Where the negatives come from",
    (
        Row("SFT", "sft", _coco(35.6, 28.6, 136.8, 24.5)),
        Row("DPO", "dpo", _DPO, _EDITED),
        Row("CW-DPO", "cw_dpo", _CW, _EDITED),
        Row("DPO", "dpo_beam", _coco(32.5, 27.8, 135.5, 23.9), _BEAM),
        Row("CW-DPO", "cw_dpo_beam", _coco(38.1, 29.8, 140.8, 25.2), _BEAM),
        *_pairs("beam_filtered", "perturb", "sample", "mixed"),
    ),
    against="sft",
    note="The paper's negatives are edited by GPT-4; on scenes those of the data have exactly one fact changed.",
)
_TABLE6 = Table(
    "table6",
    "Sensitivity to ℓ_floor and τ",
    (
        Row("SFT → DPO", "dpo", _DPO),
        Row("ℓ_floor = -5", "floor_5", _coco(39.2, 30.1, 142.0, 25.6), "ℓ_floor"),
        Row("ℓ_floor = -4", "floor_4", _coco(39.5, 30.3, 142.4, 25.7), "ℓ_floor"),
        Row("ℓ_floor = -3 (default)", "cw_dpo", _CW, "ℓ_floor"),
        Row("ℓ_floor = -2", "floor_2", _coco(39.0, 30.0, 141.8, 25.5), "ℓ_floor"),
        Row("τ = 0.5", "tau_0.5", _coco(39.3, 30.2, 142.1, 25.6), "τ"),
        Row("τ = 1 (default)", "cw_dpo", _CW, "τ"),
        Row("τ = 2", "tau_2", _coco(39.4, 30.3, 142.3, 25.7), "τ"),
        Row("τ = 5", "tau_5", _coco(39.1, 30.1, 141.9, 25.5), "τ"),
    ),
    against="dpo",
)

_CHANGING = Table(
    "changing",
    "Negatives that change while Stage 2 is trained",
    (
        Row("SFT", "sft"),
        Row("DPO", "dpo_beam", group=_BEAM),
        Row("CW-DPO", "cw_dpo_beam", group=_BEAM),
        *_pairs("beam_exact", "fresh", "scheduled", "candidates", "frontier"),
    ),
    against="sft",
    note="Not in the paper as a table; it speaks of freshness, of a controllable mix and of a curriculum.",
)

TABLES: Mapping[str, Table] = {t.name: t for t in (_TABLE1, _TABLE2, _TABLE3, _TABLE4, _TABLE5, _TABLE6, _CHANGING)}
"""Those that compare trained models; Table 7 is one of costs."""

COSTS = "table7"
"""The table of what an update costs."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper, and the entries whose runs it is drawn from."""

    title: str
    entries: tuple[str, ...]


FIGURES: Mapping[str, PaperFigure] = {
    "fig3": PaperFigure("Stage 1: loss, entropy, captions", ("sft_followed", "sft_c_followed")),
    "fig4": PaperFigure("Stage 2: drift, calibration, distributions", ("dpo_followed", "cw_dpo_followed")),
    "fig5": PaperFigure("One-step influence", ("cw_dpo_followed",)),
    "fig6": PaperFigure("Cooling weights by difficulty", ("cw_dpo_followed",)),
}

assert all(e in ARMS or e in STARTS or e == BASE for t in TABLES.values() for e in t.entries)
