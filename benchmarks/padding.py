"""Does it pay to lay the prompts of a micro-batch in one row without padding (`model.padding_free`)?

One step of ours on padded rows beside one on a packed row, in turns, under `sdpa` with its dense mask: for pictures of
mixed sizes, and for pictures of one size. Tokens are those that pass through the language model. Places are what the
attention of one head and layer computes; in the blocks of FlexAttention's mask they are counted, nothing is run.
`python benchmarks/padding.py --out benchmarks/results/padding.json`
"""

from __future__ import annotations

from typing import Any

import torch

from common import arguments, count_flops, hardware, in_turns, paired_ratio, peak_bytes, report, start, summary
from cwdpo.scoring.attention_masks import blocks_of, rule_of
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.sequence_layout import Layout
from sides import disagreement, ours
from workload import SMALL, TINY, make_model, make_processor, make_rows

SIDES = ("padded", "packed")
CPU = torch.device("cpu")


def in_blocks(layout: Layout) -> int:
    """Count the places of the blocks in which something is seen."""
    rule = rule_of(layout, torch.full_like(layout.ids, -1), CPU)
    mask: Any = blocks_of(rule, layout, CPU)
    blocks = int((mask.kv_num_blocks + mask.full_kv_num_blocks).sum())
    return blocks * mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1]


def sizes_of(batch: Batch) -> dict[str, dict[str, int]]:
    """Count the tokens and the places of attention of both layouts."""
    layouts = {"padded": Layout.padded(batch), "packed": Layout.packed(batch)}
    places = {name: layout.ids.shape[0] * layout.ids.shape[1] ** 2 for name, layout in layouts.items()}
    places |= {f"{name}_in_blocks": in_blocks(layout) for name, layout in layouts.items()}
    return {"tokens": {name: layout.ids.numel() for name, layout in layouts.items()}, "places": places}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--mixed", type=int, nargs="+", default=[16, 36, 64, 256], help="Visual tokens of a prompt.")
    parser.add_argument("--alike", type=int, nargs="+", default=[100, 100, 100, 100])
    parser.add_argument("--response", type=int, default=20)
    options = start(parser, argv)
    if options.tiny:
        options.mixed, options.alike, options.response = [4, 16], [9, 9], 6
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(max(*options.mixed, *options.alike))
    model = make_model(TINY if options.tiny else SMALL, processor)
    for visual in (options.mixed, options.alike):
        data = [make_rows(n, tokens, options.response)[-1] for n, tokens in enumerate(visual, 1)]
        for cache in (False, True):
            sides = {
                name: ours(model, processor, data, lora=True, cache=cache, packed=name == "packed") for name in SIDES
            }
            seconds = in_turns({name: side.step for name, side in sides.items()}, options.repeats)
            flops = {name: count_flops(side.step) for name, side in sides.items()}
            peak = {name: peak_bytes(side.step) for name, side in sides.items()}
            sizes = sizes_of(sides["packed"].trainer.update_batches[0])
            rows.append(
                {
                    "mode": "lora",
                    "cached_features": cache,
                    "visual_tokens": visual,
                    "response_tokens": options.response,
                    **sizes,
                    "tokens_ratio": sizes["tokens"]["padded"] / sizes["tokens"]["packed"],
                    "flops": flops,
                    "flops_ratio": flops["padded"] / flops["packed"],
                    "seconds_per_step": {name: summary(values) for name, values in seconds.items()},
                    "times_as_fast": paired_ratio(seconds["padded"], seconds["packed"]),
                    "peak_share": peak["packed"] / peak["padded"],
                    "agreement": disagreement(sides["packed"], sides["padded"]),
                }
            )
    return report("one row without padding", options, machine, rows)


if __name__ == "__main__":
    main()
