"""Is the contrast an artefact of one learning rate? Stage 2 of both arms at several, from the same Stage 1.

python benchmarks/learning_rates.py cwdpo-demo --out benchmarks/results/learning_rates.json
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import torch

from cwdpo.demo_runs import ARMS, demo_recipe
from cwdpo.files import write_json
from cwdpo.recipe import Recipe
from cwdpo.run import Run

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="a finished demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in the demo: a second thread costs more than it gives
    rows = []
    for rate in args.rates:
        for arm in ARMS:
            values = demo_recipe(arm, (args.demo / "data").absolute(), args.seed).model_dump()
            values["model"]["path"] = str((args.demo / arm / "stage1" / "model").absolute())
            values["stage1"]["enabled"] = False
            values["stage2"]["learning_rate"] = rate
            values["probes"]["every"] = 50
            recipe = Recipe.model_validate(values)
            summary = Run(args.demo / "learning_rates" / f"{arm}_{rate:g}", recipe).execute()
            after = summary["after"]
            row = {"rate": rate, "arm": arm, **{k: after[k] for k in ("tv", "js", "ece", "correct", "cider")}}
            row |= {f"logp_{kind}": value for kind, value in after["logp"].items()}
            rows.append(row)
            print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    write_json(args.out, {"date": str(datetime.date.today()), "seed": args.seed, "pictures": 1000, "rows": rows})


if __name__ == "__main__":
    main()
