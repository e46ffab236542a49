"""Does `cwdpo plan` say what a step takes? Planned memory and FLOPs against measured ones, on models of 20 to 100 M.

Memory is the most that is allocated at once above the weights: by the profiler of torch's allocator on a CPU, by the
GPU's own count on a GPU. Gradients count, AdamW's moments do not (a constant that needs no measuring). FLOPs are those
of `torch.utils.flop_counter`. Losses are those that training takes, with the trainer's own step.
`python benchmarks/plan_against_measured.py --out benchmarks/results/plan_against_measured.json`
"""

from __future__ import annotations

import time
from typing import Any

from common import arguments, count_flops, hardware, peak_bytes, report, start
from cwdpo.models.parts import base_model
from cwdpo.planning.step_cost import Work, take
from cwdpo.recipe import LoraSection, ModelSection
from sides import ours
from workload import SMALL, TINY, Size, _text, _vision, make_model, make_processor, make_rows

MIDDLE = Size("middle", _text(384, 6, 6, 2, 1024), _vision(192, 6, 6, 512, [2, 5]), 24_000)
TALL = Size("tall", _text(320, 16, 5, 5, 896), _vision(160, 12, 4, 448, [5, 11]), 16_000)
PROJECTIONS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"

CASES: list[dict[str, Any]] = [
    {"size": SMALL, "objective": "cw_dpo", "lora": False},
    {"size": SMALL, "objective": "cw_dpo", "lora": True},
    {"size": SMALL, "objective": "cw_dpo", "lora": True, "checkpointing": True},
    {"size": SMALL, "objective": "cw_dpo", "lora": True, "scorer": "separate"},
    {"size": MIDDLE, "objective": "sft_c", "lora": False},
    {"size": MIDDLE, "objective": "sft_c", "lora": False, "checkpointing": True},
    {"size": MIDDLE, "objective": "sft_c", "lora": True, "scorer": "separate"},
    {"size": MIDDLE, "objective": "sft", "lora": False, "responses": 1},
    {"size": TALL, "objective": "cw_dpo", "lora": True},
    {"size": TALL, "objective": "cw_dpo", "lora": False, "checkpointing": True},
    {"size": TALL, "objective": "cw_dpo", "lora": False, "scorer": "separate"},
]


def compare(case: dict[str, Any], visual: int, response: int, pairs: int) -> dict[str, Any]:
    """One row: planned, measured and their ratio."""
    case = dict(case)
    size, lora = case.pop("size"), case["lora"]
    checkpointing, scorer = case.get("checkpointing", False), case.get("scorer", "auto")
    responses = case.get("responses", 2)
    processor = make_processor(visual)
    model = make_model(size, processor)
    weights, config = sum(p.numel() for p in model.parameters()), model.config
    side = ours(model, processor, make_rows(pairs, visual, response), copied=False, **case)
    groups = side.trainer.update_batches[0].groups
    section = ModelSection(
        path=size.name,
        scorer=scorer,
        freeze=["vision", "projector"] if lora else [],
        lora=LoraSection(r=16, target_modules=PROJECTIONS) if lora else None,
    )
    if checkpointing:
        base_model(side.model).activation_checkpointing_enable()  # which the trainer does when training begins
    measured, flops = peak_bytes(side.step), count_flops(side.step)
    began = time.process_time()
    planned = take(config, Work(section, groups, checkpointing=checkpointing))
    return {
        "model": size.name,
        "weights": weights,
        "objective": case["objective"],
        "mode": "lora" if lora else "full",
        "checkpointing": checkpointing,
        "scorer": "separate" if scorer == "separate" else "shared",
        "pairs": pairs,
        "responses": responses,
        "visual_tokens": visual,
        "response_tokens": response,
        "planned_bytes": planned.held.total(),
        "measured_bytes": measured,
        "memory_ratio": planned.held.total() / measured,
        "planned_flops": planned.flops.total(),
        "counted_flops": flops,
        "flops_ratio": planned.flops.total() / flops,
        "planning_seconds": time.process_time() - began,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--visual", type=int, default=144)
    parser.add_argument("--response", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=2, help="Prompts of a step.")
    options = start(parser, argv)
    machine, cases = hardware(), CASES
    if options.tiny:
        options.visual, options.response = 16, 6
        cases = [case | {"size": TINY} for case in CASES[:2]]
    rows = [compare(case, options.visual, options.response, options.pairs) for case in cases]
    return report("planned against measured memory and FLOPs of a step", options, machine, rows)


if __name__ == "__main__":
    main()
