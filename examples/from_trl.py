"""Move a preference run from TRL to cwdpo: another import, the same arguments, the same data.

    python examples/from_trl.py --trainer trl   --model MODEL --data DATA --out runs/dpo
    python examples/from_trl.py --trainer cwdpo --model MODEL --data DATA --out runs/cw-dpo

MODEL is a vision-language model (a directory or a hub id). DATA is a dataset with TRL's columns `images`, `prompt`,
`chosen`, `rejected`: a folder written by `save_to_disk`, a Parquet or JSON file, or a hub id.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset, load_from_disk


def main(arguments: list[str] | None = None) -> Any:
    """Train, save and return the trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=["trl", "cwdpo"], default="cwdpo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=-1, help="updates; default: one epoch")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    given = parser.parse_args(arguments)

    if given.trainer == "trl":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    else:
        from cwdpo import CWDPOConfig as Config
        from cwdpo import CWDPOTrainer as Trainer

    args = Config(
        output_dir=given.out,
        beta=0.1,
        learning_rate=given.learning_rate,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        max_steps=given.steps,
        logging_steps=1,
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = Trainer(given.model, args=args, train_dataset=read(given.data))
    trainer.train()
    trainer.save_model(given.out)
    return trainer


def read(data: str) -> Any:
    """Return the training split of a dataset on disk or on the hub."""
    path = Path(data)
    if path.is_dir():
        return load_from_disk(data)
    if path.is_file():
        return load_dataset("parquet" if path.suffix == ".parquet" else "json", data_files=data, split="train")
    return load_dataset(data, split="train")


if __name__ == "__main__":
    main()
