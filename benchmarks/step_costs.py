"""What do the additions cost: SFT-C beside SFT, CW-DPO beside DPO, probes on beside off?

The first two: one step of each, in turns. Probes: one reading of the default probe set (64 prompts) beside one update
of the default batch (32 prompts, micro-batches of 8); by default there is a reading every 50 updates.
`python benchmarks/step_costs.py --out benchmarks/results/step_costs.json`
"""

from __future__ import annotations

from typing import Any

from common import arguments, hardware, in_turns, paired_ratio, report, start, summary
from cwdpo.recipe import Recipe
from sides import ours, probe_set
from workload import SMALL, TINY, make_model, make_processor, make_rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--visual", type=int, default=256)
    parser.add_argument("--response", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--prompts", type=int, default=2, help="Prompts of a step.")
    parser.add_argument("--probe-batch", type=int, default=16, help="Prompts of a forward pass of a probe.")
    options = start(parser, argv)
    if options.tiny:
        options.visual, options.response, options.prompts, options.probe_batch = 16, [6], 1, 2
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(options.visual)
    model = make_model(TINY if options.tiny else SMALL, processor)
    for response in options.response:
        data = make_rows(options.prompts, options.visual, response)
        for lora in (True, False):
            common: dict[str, Any] = {"lora": lora}
            mode = "lora" if lora else "full"
            for question, more, less in (("SFT-C / SFT", "sft_c", "sft"), ("CW-DPO / DPO", "cw_dpo", "dpo")):
                sides = {
                    name: ours(model, processor, data, objective=name, responses=1 if name == "sft" else 2, **common)
                    for name in (more, less)
                }
                seconds = in_turns({name: side.step for name, side in sides.items()}, options.repeats)
                rows.append(
                    {
                        "question": question,
                        "mode": mode,
                        "visual_tokens": options.visual,
                        "response_tokens": response,
                        "seconds_per_prompt": {n: summary(s, options.prompts) for n, s in seconds.items()},
                        "ratio": paired_ratio(seconds[more], seconds[less]),
                    }
                )
    rows += _probes(model, processor, options)
    return report("cost of SFT-C, CW-DPO and probes", options, machine, rows)


def _probes(model: Any, processor: Any, options: Any) -> list[dict[str, Any]]:
    """Time a reading of the probes beside a step, per prompt, and work out their share at the default settings."""
    recipe, rows = Recipe(), list[dict[str, Any]]()
    probes, batch = recipe.probes, recipe.stage2.batch_size
    response = options.response[0]
    for lora in (True, False):
        for cache in (False, True) if lora else (False,):
            data = make_rows(options.prompts, options.visual, response)
            held_out = make_rows(options.probe_batch, options.visual, response)
            side = ours(model, processor, data, lora=lora, objective="cw_dpo", cache=cache)
            read = probe_set(processor, held_out, options.probe_batch)
            seconds = in_turns({"step": side.step, "probe": lambda side=side, read=read: read(side)}, options.repeats)
            # One prompt of a probe in prompts of training, then the defaults: 64 prompts every 50 updates of 32.
            scale = options.prompts / options.probe_batch
            each = paired_ratio([s * scale for s in seconds["probe"]], seconds["step"])
            readings = each["median"] * probes.prompts / (probes.every * batch)
            rows.append(
                {
                    "question": "probes",
                    "mode": "lora" if lora else "full",
                    "cached_features": cache,
                    "visual_tokens": options.visual,
                    "response_tokens": response,
                    "seconds_per_prompt": {
                        "step": summary(seconds["step"], options.prompts),
                        "probe": summary(seconds["probe"], options.probe_batch),
                    },
                    "probed_prompt_in_trained_prompts": each,
                    "defaults": {"prompts": probes.prompts, "every": probes.every, "batch": batch},
                    "share_of_training_time": readings / (1 + readings),
                }
            )
    return rows


if __name__ == "__main__":
    main()
