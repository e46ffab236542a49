"""The contrast that the paper is about, in minutes: SFT → DPO beside SFT-C → CW-DPO on the embedded world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cwdpo.evaluation.intervals import mean_row
from cwdpo.files import read_jsonl, write_json
from cwdpo.outputs import OwnedFolder
from cwdpo.recipe import Recipe
from cwdpo.report import write_report
from cwdpo.run import Reporter, Silent, run_side_by_side, usable_cpus
from cwdpo.scenes.grammar import PROMPT
from cwdpo.scenes.scene_rows import write_rows

__all__ = ["ARMS", "EXTRA_ARMS", "demo_recipe", "paired", "run_demo"]

ARMS = {
    "sft_dpo": ("SFT → DPO", {"objective": "sft"}, {"objective": "dpo"}),
    "cw_dpo": ("SFT-C → CW-DPO", {"objective": "sft_c"}, {"objective": "cw_dpo"}),
}
"""The two recipes: name, Stage 1, Stage 2. Data, updates and learning rates are the same."""

EXTRA_ARMS = {
    "sft_rpo": ("SFT → DPO + NLL", "sft_dpo", {"objective": "rpo"}),
    "sft_shift": ("SFT → DPO, fixed weight .5", "sft_dpo", {"objective": "dpo_shift", "shift_weight": 0.5}),
    "sft_cw": ("SFT → CW-DPO", "sft_dpo", {"objective": "cw_dpo"}),
    "sftc_dpo": ("SFT-C → DPO", "cw_dpo", {"objective": "dpo"}),
}
"""What a fair reader asks for: name, the arm whose Stage 1 it starts from, Stage 2."""

_TRAIN, _HELD_OUT, _PROBES = 4800, 1064, 64
_STAGE = {"learning_rate": 3e-4, "batch_size": 32, "micro_batch_size": 32, "schedule": "constant_with_warmup"}


def demo_recipe(arm: str, data: Path, seed: int, stage1_of: Path | None = None) -> Recipe:
    """Return the recipe of one arm.

    Args:
        arm: Key of `ARMS` or `EXTRA_ARMS`.
        data: Folder with `train.jsonl` and `test.jsonl`.
        seed: Fixes everything.
        stage1_of: Run whose Stage 1 an extra arm starts from.
    """
    if arm in ARMS:
        name, stage1, stage2 = ARMS[arm]
        model: dict[str, Any] = {"path": "scenes"}
    else:
        assert stage1_of is not None
        name, stage1, stage2 = EXTRA_ARMS[arm][0], {"enabled": False}, EXTRA_ARMS[arm][2]
        model = {"path": str(stage1_of / "stage1" / "model")}
    return Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "model": model,
            "data": {
                "path": str(data / "train.jsonl"),
                "held_out_path": str(data / "test.jsonl"),
                "format": "cwdpo",
                "prompt": PROMPT,
                "split_seed": seed,
                "check_images": False,
            },
            "negatives": {"seed": seed},
            "stage1": {**_STAGE, **stage1, "epochs": 1, "save_steps": 50},
            "stage2": {**_STAGE, **stage2, "epochs": 4, "save_steps": 50},
            "probes": {"every": 10, "prompts": _PROBES, "batch_size": 64},
            "evaluation": {"prompts": _HELD_OUT - _PROBES, "batch_size": 250, "max_new_tokens": 24},
        }
    )


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    full: bool = False,
    reporter: Reporter | None = None,
    arms: Mapping[str, Any] = ARMS,
    processes: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Draw the data, train both arms, measure them on the same held-out pictures, write `summary.json` and the report.

    Args:
        out: Folder; a stopped demo resumes in it.
        seed: Fixes data, order and training.
        full: Add `EXTRA_ARMS`.
        reporter: Told of the progress.
        arms: The arms to run first.
        processes: Arms at work at once, on one thread each (the model is so small that a second thread costs more than
            it gives); default: as many as there are processors.
        prepare: Called first in every process that is started.

    Returns:
        What `summary.json` holds: `methods` (one section an arm) and `paired` (differences to `sft_dpo` with their
        95 % intervals over pictures).
    """
    with OwnedFolder(out, "demo"):
        return _run_demo(out, seed, full, reporter or Silent(), arms, processes, prepare)


def _run_demo(
    out: Path,
    seed: int,
    full: bool,
    reporter: Reporter,
    arms: Mapping[str, Any],
    processes: int | None,
    prepare: Callable[[], None] | None,
) -> dict[str, Any]:
    data = out / "data"
    if not (data / "test.jsonl").is_file():
        reporter.step("data", f"drawing {_TRAIN + _HELD_OUT} pictures")
        write_rows(data, _TRAIN, seed, "train")
        write_rows(data, _HELD_OUT, seed, "test")
    methods: dict[str, Any] = {}
    for wave in (arms, EXTRA_ARMS if full else {}):  # an extra arm starts from another arm's Stage 1
        runs: dict[str, tuple[Path, Recipe]] = {}
        for arm in wave:
            start = (out / EXTRA_ARMS[arm][1]).absolute() if arm in EXTRA_ARMS else None
            runs[arm] = out / arm, demo_recipe(arm, data.absolute(), seed, start)
        done = run_side_by_side(runs, processes=processes or usable_cpus(), reporter=reporter, prepare=prepare)
        for arm, summary in done.items():
            after, before = _figures(summary["after"]), _figures(summary["before"])
            methods[arm] = {"name": runs[arm][1].name, **after, "before": before}
    differences = {arm: paired(out / "sft_dpo", out / arm) for arm in methods if arm != "sft_dpo"}
    result = {"seed": seed, "pictures": _HELD_OUT - _PROBES, "methods": methods, "paired": differences}
    write_json(out / "summary.json", result)
    write_report([out / arm for arm in methods], out / "report.html", title="cwdpo demo")
    return result


def _figures(part: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: part[name] for name in ("tv", "js", "ece", "entropy", "top1", "correct", "cider") if name in part}
    return flat | {f"logp_{kind}": value for kind, value in part["logp"].items()}


def paired(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """Return mean differences `other` − `one` over the same pictures, with 95 % intervals."""
    pairs = list(
        zip(
            *((r["after"] for r in read_jsonl(run / "evaluation" / "rows.jsonl")) for run in (one, other)),
            strict=True,
        )
    )
    differences = {
        "correct": [float(b["correct"]) - float(a["correct"]) for a, b in pairs],
        "logp_chosen": [b["logp"]["chosen"] - a["logp"]["chosen"] for a, b in pairs],
        "cider": [b["cider"] - a["cider"] for a, b in pairs],
    }
    return {name: mean_row(values) for name, values in differences.items()}
