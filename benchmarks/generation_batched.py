"""How much faster are on-policy negatives written in batches than one prompt at a time?

    python benchmarks/generation_batched.py --out benchmarks/results/generation_batched.json

Pictures of `scenes`, the shipped base, a beam search of width 5 and four samples a prompt as the sources `beam` and
`sample` ask for them, CPU or GPU; the sides take turns. The loop calls transformers' `generate` for each prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from cwdpo.scenes.scene_rows import write_rows
from cwdpo.scoring.collator import PromptEncoder

WAYS: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 5, "num_return_sequences": 5},
    "sample": {"num_return_sequences": 4, "temperature": 1.0},
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__ or "")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 16, 64], help="Batch sizes.")
    options = start(parser, argv)
    if options.tiny:
        options.pictures, options.sizes = 4, [4]
    machine = hardware()
    model = load_model(ModelSection(path=str(base_path())), trainable=False)
    model = model.to("cuda") if torch.cuda.is_available() else model
    encoder = PromptEncoder(load_processor(str(base_path())))
    texts: dict[tuple[str, int | str], list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.pictures, 0, "train")
        groups = load_groups(DataSource(path=Path(folder) / "train.jsonl", format="cwdpo")).groups

        def loop(way: str) -> None:
            torch.manual_seed(0)
            found = texts[way, "loop"] = list[list[str]]()
            settings: dict[str, Any] = {"do_sample": way == "sample", "max_new_tokens": 24, "use_cache": True}
            settings |= {"top_k": 0} if way == "sample" else {}
            for group in groups:
                inputs = encoder.prompt_inputs([group]).to(model.device)
                tokens = model.generate(**inputs, **settings, **WAYS[way])[:, inputs["input_ids"].shape[1] :]
                found.append([t.strip() for t in encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)])

        def write(way: str, size: int) -> None:
            found = texts[way, size] = list[list[str]]()
            for first in range(0, len(groups), size):
                found += generate(
                    model,
                    encoder.tokenizer,
                    lambda prompts: encoder.prompt_inputs(prompts, padding=True),
                    groups[first : first + size],
                    max_new_tokens=24,
                    **WAYS[way],
                )

        sides: dict[tuple[str, int | str], Callable[[], None]] = {}
        for way in WAYS:
            sides[way, "loop"] = lambda way=way: loop(way)
            for size in options.sizes:
                sides[way, size] = lambda way=way, size=size: write(way, size)
        named = {f"{way} {size}": run for (way, size), run in sides.items()}
        seconds = in_turns(named, options.repeats, warmup=0 if options.tiny else 1)
    rows = [
        {
            "way": way,
            "batch": size,
            "seconds": summary(seconds[f"{way} {size}"]),
            "times_as_fast": paired_ratio(seconds[f"{way} loop"], seconds[f"{way} {size}"]),
            "prompts_with_the_same_texts": sum(
                a == b for a, b in zip(texts[way, "loop"], texts[way, size], strict=True)
            )
            if way == "beam"
            else None,
        }
        for way, size in sides
    ]
    return report("batched generation against one prompt at a time", options, machine, rows)


if __name__ == "__main__":
    main()
