"""For every rule of diagnosis a short run on the embedded world that provokes it, and healthy runs that provoke none.

    python benchmarks/provocations.py --out provoked

Each takes some tens of updates of the shipped base: seconds on one core. The tests run the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers.utils import logging as notices

from cwdpo.files import read_json, write_json, write_jsonl
from cwdpo.recipe import Recipe
from cwdpo.run import Run
from cwdpo.scenes import base_path
from cwdpo.scenes.scene_rows import write_rows

Row = dict[str, Any]
ROWS, HELD_OUT, UPDATES = 320, 48, 40


def swapped(rows: Sequence[Row]) -> list[Row]:
    """Chosen and hard negative change places."""
    return [_with(row, [("chosen", _texts(row)[1]), ("rejected", _texts(row)[0])]) for row in rows]


def doubled(rows: Sequence[Row]) -> list[Row]:
    """Every chosen response says what it says twice."""
    return [_with(row, [("chosen", f"{_texts(row)[0]} and {_texts(row)[0]}")]) for row in rows]


def few(rows: Sequence[Row]) -> list[Row]:
    """Rows enough for two batches, to be learned by heart."""
    return list(rows[:32])


def hard_only(rows: Sequence[Row]) -> list[Row]:
    """Of the negatives only the hard one."""
    return [{**row, "responses": row["responses"][:2]} for row in rows]


def _texts(row: Row) -> list[str]:
    return [r["text"] for r in row["responses"]]


def _with(row: Row, responses: Sequence[tuple[str, str]]) -> Row:
    return {**row, "responses": [{"text": t, "role": role, "source": "dataset"} for role, t in responses]}


@dataclass(frozen=True)
class Provocation:
    """A run.

    Attributes:
        stage: The stage that is run; the other is left out.
        settings: What differs from the common settings of a stage.
        rows: What is done to the training rows.
        config: What differs in the model's text configuration.
        captions: Probe prompts that answers are written to.
        keeps_dropout: Whether Stage 2 trains with dropout, as with layers whose randomness the trainer does not know.
    """

    stage: str
    settings: dict[str, Any]
    rows: Callable[[Sequence[Row]], list[Row]] = list
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    captions: int = 0
    keeps_dropout: bool = False


def one(**settings: Any) -> dict[str, Any]:
    return settings


HEALTHY = {
    "healthy_sft": Provocation("stage1", one(objective="sft", learning_rate=1e-4), captions=16),
    "healthy_sft_c": Provocation("stage1", one(objective="sft_c", nll_floor=2.0, learning_rate=3e-4), captions=16),
    "healthy_dpo": Provocation("stage2", one(objective="dpo", learning_rate=1e-5), hard_only, captions=16),
    "healthy_cw_dpo": Provocation("stage2", one(objective="cw_dpo", learning_rate=3e-5), captions=16),
}
"""Nothing that needs a change may be found in these."""

PROVOKED = {
    "squeezing": Provocation("stage2", one(objective="dpo", learning_rate=1e-3)),
    "likelihood_displacement": Provocation("stage2", one(objective="dpo")),
    "overconfidence": Provocation("stage1", one(objective="sft", learning_rate=1e-3, max_steps=80), few),
    "dead_negatives": Provocation("stage2", one(objective="cw_dpo", floor=5.0)),
    "over_cooling": Provocation("stage2", one(objective="cw_dpo", floor=4.0, learning_rate=1e-5)),
    "penalty_never_active": Provocation("stage1", one(objective="sft_c", nll_reduction="sum", nll_floor=0.5)),
    "penalty_always_active": Provocation("stage1", one(objective="sft_c", nll_floor=50.0)),
    "false_negatives": Provocation("stage2", one(objective="dpo", learning_rate=1e-5), swapped),
    "reference_mismatch": Provocation(
        "stage2", one(objective="dpo"), config={"attention_dropout": 0.5}, keeps_dropout=True
    ),
    "divergence": Provocation("stage2", one(objective="dpo", learning_rate=3e-2)),
    "no_learning": Provocation("stage2", one(objective="dpo", learning_rate=1e-9)),
    "length_drift": Provocation("stage1", one(objective="sft", learning_rate=1e-3), doubled, captions=16),
}
"""What is to be found, and the run in which it is."""


def run_provocation(folder: Path, name: str) -> list[dict[str, Any]]:
    """Make a run and return its findings; what is there already is not done again.

    Args:
        folder: Where data and runs go; several share the data.
        name: A key of `HEALTHY` or `PROVOKED`.
    """
    asked, run = {**HEALTHY, **PROVOKED}[name], folder / name
    rows = write_rows(folder / "data", ROWS, 0, "train")
    write_rows(folder / "data", HELD_OUT, 0, "validation")
    write_jsonl(folder / "data" / f"{name}.jsonl", asked.rows(rows))
    stage = {"learning_rate": 3e-4, "batch_size": 16, "micro_batch_size": 16, "schedule": "constant_with_warmup"}
    stage |= {"max_steps": UPDATES, "log_steps": 4, "save_steps": 1000}
    recipe = Recipe.model_validate(
        {
            "name": name,
            "model": {"path": str(_model(folder, name, asked.config)), "dtype": "float32"},
            "data": {
                "path": str(folder / "data" / f"{name}.jsonl"),
                "held_out_path": str(folder / "data" / "validation.jsonl"),
                "check_images": False,
            },
            **{s: {**stage, "enabled": s == asked.stage} for s in ("stage1", "stage2")},
            asked.stage: {**stage, **asked.settings},
            "probes": {"every": 8, "prompts": HELD_OUT, "batch_size": HELD_OUT, "captions": asked.captions},
            "evaluation": {"prompts": 0, "max_new_tokens": 40},
        }
    )
    with mock.patch("cwdpo.training.trainers.disable_dropout") if asked.keeps_dropout else contextlib.nullcontext():
        Run(run, recipe).execute()
    return read_json(run / asked.stage / "diagnosis.json")["findings"]


def _model(folder: Path, name: str, config: dict[str, Any]) -> Path:
    """Return the shipped base, or a copy of it whose text configuration differs."""
    if not config:
        return base_path()
    place = folder / "models" / name
    shutil.copytree(base_path(), place, dirs_exist_ok=True)
    values = read_json(place / "config.json")
    values["text_config"] |= config
    write_json(place / "config.json", values)
    return place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=[*HEALTHY, *PROVOKED])
    args = parser.parse_args()
    torch.set_num_threads(1)
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    for name in args.names:
        findings = run_provocation(args.out, name)
        print(json.dumps({name: [f"{f['severity']}: {f['rule']} @{f['step']}" for f in findings]}), flush=True)


if __name__ == "__main__":
    main()
