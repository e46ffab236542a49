"""How much faster are on-policy negatives written in batches than one prompt at a time?

    python benchmarks/generation_batched.py --out benchmarks/results/generation_batched.json

Pictures of `scenes`, the shipped base, a beam search of width 5 and four samples a prompt as the sources `beam` and
`sample` ask for them, CPU or GPU; the sides take turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from common import arguments, hardware, in_turns, paired_ratio, report, start, summary
from cwdpo.data import DataSource, load_groups
from cwdpo.models.generation import generate
from cwdpo.models.loading import load_model
from cwdpo.models.processors import load_processor
from cwdpo.recipe import ModelSection
from cwdpo.scenes import base_path
from cwdpo.scenes.rows import write_rows
from cwdpo.scoring.encode import PromptEncoder

WAYS: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 5, "num_return_sequences": 5},
    "sample": {"num_return_sequences": 4, "temperature": 1.0},
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__ or "")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 64], help="Batch sizes beside 1.")
    options = start(parser, argv)
    if options.tiny:
        options.pictures, options.sizes = 4, [4]
    machine = hardware()
    model = load_model(ModelSection(path=str(base_path())), trainable=False)
    model = model.to("cuda") if torch.cuda.is_available() else model
    encoder = PromptEncoder(load_processor(str(base_path())))
    texts: dict[tuple[str, int], list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.pictures, 0, "train")
        groups = load_groups(DataSource(path=Path(folder) / "train.jsonl", format="cwdpo")).groups

        def write(way: str, size: int) -> None:
            texts[way, size] = []
            for first in range(0, len(groups), size):
                texts[way, size] += generate(
                    model,
                    encoder.tokenizer,
                    lambda prompts: encoder.prompt_inputs(prompts, padding=True),
                    groups[first : first + size],
                    max_new_tokens=24,
                    **WAYS[way],
                )

        keys = [(way, size) for way in WAYS for size in (1, *options.sizes)]
        sides = {f"{way} {size}": (lambda way=way, size=size: write(way, size)) for way, size in keys}
        seconds = in_turns(sides, options.repeats, warmup=0 if options.tiny else 1)
    rows = [
        {
            "way": way,
            "batch": size,
            "seconds": summary(seconds[f"{way} {size}"]),
            "times_as_fast": paired_ratio(seconds[f"{way} 1"], seconds[f"{way} {size}"]),
            "prompts_with_the_same_texts": sum(a == b for a, b in zip(texts[way, 1], texts[way, size], strict=True))
            if way == "beam"
            else None,
        }
        for way, size in keys
    ]
    return report("batched generation against one prompt at a time", options, machine, rows)


if __name__ == "__main__":
    main()
