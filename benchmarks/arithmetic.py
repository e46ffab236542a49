"""How much arithmetic does a step take, against the least that it could take and against TRL's way?

All three are counted, nothing is timed: `torch.utils.flop_counter` over forward and backward. The least: every distinct
token (image, prompt, each response but its last token) through every matrix once, attention over what each token may
see, the head at the positions that predict a response token, and the backward pass of what is trained.
`python benchmarks/arithmetic.py --out benchmarks/results/arithmetic.json`
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from common import arguments, count_flops, hardware, report, start
from cwdpo.models.parts import part_of
from sides import ours, trl
from workload import MERGE, PATCH, SMALL, TINY, Size, make_model, make_processor, make_rows

FIRST = re.compile(r"language_model\.layers\.0\.self_attn\.[qkv]_proj\.(base_layer|lora_A)")
"""What takes the embeddings in: its input needs no gradient where they are not trained."""


def least(model: Any, size: Size, prefix: int, visual: int, lengths: list[int], *, lora: bool, vision: bool) -> float:
    """Return the FLOPs of a step that does nothing twice and nothing that the mask hides.

    Args:
        model: Any side's model.
        size: Its size.
        prefix: Tokens of image and prompt.
        visual: Those of the image.
        lengths: Tokens of each response.
        lora: Train adapters on the language model alone; otherwise everything.
        vision: Count the encoder's forward pass.
    """
    own = sum(n - 1 for n in lengths)
    patches = visual * MERGE**2
    positions = {"text": prefix + own, "head": 1 + own, "vision": patches, "merger": visual}
    total = 0.0
    for name, module in model.named_modules():
        weights = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear | nn.Conv3d) or weights is None:
            continue
        part = "vision" if part_of(name) != "language" else "head" if "lm_head" in name else "text"
        if part == "vision" and not vision:
            continue
        rows = positions["merger" if "merger" in name else part]
        passes = 2 + float(weights.requires_grad) if part != "vision" or not lora else 1
        if "patch_embed" in name or (lora and FIRST.search(name)):
            passes = 1 + float(weights.requires_grad)  # pixels and frozen embeddings need no gradient
        total += 2.0 * rows * weights.numel() * passes
    width = size.text["hidden_size"]
    pairs = prefix * (prefix + 1) / 2 + sum(n * prefix + n * (n + 1) / 2 for n in (m - 1 for m in lengths))
    total += 3 * 4 * pairs * width * size.text["num_hidden_layers"]  # two products forward, four backward
    if vision:
        full, depth = len(size.vision["fullatt_block_indexes"]), size.vision["depth"]
        window = min((4 * MERGE) ** 2, patches)
        seen = patches * (full * patches + (depth - full) * window)
        total += (1 if lora else 3) * 4 * seen * size.vision["hidden_size"]
    return total


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--visual", type=int, nargs="+", default=[64, 256, 484])
    parser.add_argument("--response", type=int, nargs="+", default=[20, 100])
    options = start(parser, argv)
    if options.tiny:
        options.visual, options.response = [16], [6]
    size = TINY if options.tiny else SMALL
    machine, rows = hardware(), list[dict[str, Any]]()
    processor = make_processor(max(options.visual))
    model = make_model(size, processor)
    for visual in options.visual:
        for response in options.response:
            data = make_rows(1, visual, response)
            for lora in (True, False):
                sides = {
                    "trl": trl(model, processor, data, lora=lora),
                    "separate": ours(model, processor, data, lora=lora, scorer="separate"),
                    "ours": ours(model, processor, data, lora=lora),
                }
                if lora:
                    sides["ours_cached_features"] = ours(model, processor, data, lora=True, cache=True)
                flops = {name: count_flops(side.step) for name, side in sides.items()}
                (group,) = sides["ours"].trainer.update_batches[0].groups
                lengths = [len(r.ids) for r in group.responses]
                bound = {
                    name: least(
                        sides["ours"].model, size, len(group.prefix_ids), visual, lengths, lora=lora, vision=vision
                    )
                    for name, vision in (("ours", True), ("ours_cached_features", False))
                    if name in sides
                }
                rows.append(
                    {
                        "mode": "lora" if lora else "full",
                        "visual_tokens": visual,
                        "response_tokens": response,
                        "flops": flops,
                        "least": bound,
                        "ours_over_least": {name: flops[name] / bound[name] for name in bound},
                        "trl_over_ours": {name: flops["trl"] / flops[name] for name in flops if name != "trl"},
                    }
                )
    return report("arithmetic of a step", options, machine, [r | {"patch": PATCH} for r in rows])


if __name__ == "__main__":
    main()
