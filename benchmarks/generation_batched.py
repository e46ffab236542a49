"""Batched generation of negatives against one prompt at a time: 64 pictures of `scenes`, the shipped base, CPU or GPU.

    python benchmarks/generation_batched.py

Prints JSON: median seconds of each, their quotient, and how many of the texts are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cwdpo.data import DataSource, load_groups
from cwdpo.models.generation import generate
from cwdpo.models.loading import load_model
from cwdpo.models.processors import load_processor
from cwdpo.recipe import ModelSection
from cwdpo.scenes import base_path
from cwdpo.scenes.rows import write_rows
from cwdpo.scoring.encode import PromptEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(ModelSection(path=str(base_path())), trainable=False)
    model = model.to("cuda") if torch.cuda.is_available() else model
    encoder = PromptEncoder(load_processor(str(base_path())))
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), args.pictures, 0, "train")
        groups = load_groups(DataSource(path=Path(folder) / "train.jsonl", format="cwdpo")).groups

        def write(size: int) -> list[list[str]]:
            found: list[list[str]] = []
            for start in range(0, len(groups), size):
                found += generate(
                    model,
                    encoder.tokenizer,
                    lambda prompts: encoder.prompt_inputs(prompts, padding=True),
                    groups[start : start + size],
                    max_new_tokens=24,
                    num_beams=args.beams,
                    num_return_sequences=args.beams,
                )
            return found

        write(args.pictures)
        seconds: dict[int, list[float]] = {1: [], args.pictures: []}
        texts: dict[int, Any] = {}
        for _ in range(args.repeats):
            for size in seconds:
                began = time.perf_counter()
                texts[size] = write(size)
                seconds[size].append(time.perf_counter() - began)
    one, batched = (statistics.median(seconds[size]) for size in (1, args.pictures))
    same = sum(a == b for a, b in zip(texts[1], texts[args.pictures], strict=True))
    result = {
        "pictures": args.pictures,
        "beams": args.beams,
        "one by one": {"median": one, "all": seconds[1]},
        "batched": {"median": batched, "all": seconds[args.pictures]},
        "times faster": one / batched,
        "prompts with the same texts": same,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "cuda": torch.cuda.is_available(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
