"""Training traces of small recipes: loss and gradient norm of every update, and a digest of the final weights.

Two checkouts train the same model if their traces agree:

    python benchmarks/traces.py --out before.json          # in the old checkout
    python benchmarks/traces.py --against before.json      # in the new one

On one process they must be equal bit for bit, on two within 1e-6 (relative).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

_STAGE = {"max_steps": 4, "batch_size": 8, "micro_batch_size": 4, "log_steps": 1, "save_steps": 10}
_LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
_OFF = {"enabled": False}
_GIVEN = {"dataset": 1, "other": 1}
_WRITTEN = {"dataset": 1, "beam": 1, "sample": 1, "max_new_tokens": 6, "beam_width": 2, "batch_size": 4}


def _recipe(
    stage1: dict[str, Any],
    stage2: dict[str, Any],
    *,
    lora: bool = False,
    mix: dict[str, Any] = _GIVEN,
    mix2: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "name": "trace",
        "seed": 3,
        "model": {"path": "scenes", **({"lora": _LORA} if lora else {})},
        "data": {"path": "scenes", "size": 64, "held_out": 8, "stage1_share": 0.5},
        "negatives": {"stage1": mix, "stage2": mix2 or mix},
        "stage1": {**_STAGE, "learning_rate": 1e-3, **stage1},
        "stage2": {**_STAGE, "learning_rate": 3e-4, **stage2},
        "probes": {"every": 0, "prompts": 2},
        "evaluation": {"prompts": 2, "max_new_tokens": 4},
    }


RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "cw_dpo": (1, _recipe({}, {"objective": "cw_dpo"}, mix=_WRITTEN)),
    "cw_dpo-lora": (1, _recipe({}, {"objective": "cw_dpo"}, lora=True)),
    "cw_dpo-options": (
        1,
        _recipe(
            {"regularizer": "hard_constraint"},
            {"objective": "cw_dpo", "detach": False, "w_min": 0.1, "renormalise": True, "cooling_span": "differing"},
        ),
    ),
    "cw_dpo-bounded-lora-live": (
        1,
        _recipe(_OFF, {"objective": "cw_dpo", "bound_pull": True, "reference": "live"}, lora=True),
    ),
    "cw_dpo-refreshed": (
        1,
        _recipe(
            _OFF,
            {"objective": "cw_dpo"},
            mix2={**_WRITTEN, "candidates": 2, "curriculum": "frontier", "refresh": {"every": 2}},
        ),
    ),
    "dpo-live": (1, _recipe({"objective": "sft"}, {"objective": "dpo", "reference": "live"})),
    "rpo": (1, _recipe({"regularizer": "entropy"}, {"objective": "rpo", "sft_weight": 0.5})),
    "simpo": (1, _recipe({"regularizer": "nll_ceiling", "nll_floor": 1.0}, {"objective": "simpo"})),
    "ipo-lora": (1, _recipe({"regularizer": "label_smoothing"}, {"objective": "ipo"}, lora=True)),
    "mdpo": (1, _recipe(_OFF, {"objective": "mdpo"})),
    "v_dpo-lora": (1, _recipe(_OFF, {"objective": "v_dpo"}, lora=True)),
    "opa_dpo": (1, _recipe(_OFF, {"objective": "opa_dpo"})),
    "grpo": (1, _recipe(_OFF, {"objective": "grpo", "samples": 2, "max_new_tokens": 8})),
    "ppo": (1, _recipe(_OFF, {"objective": "ppo", "samples": 2, "max_new_tokens": 8, "rollout_updates": 2})),
    **{
        name: (1, _recipe(_OFF, {"objective": name}))
        for name in ("dpo_shift", "cdpo", "focal_dpo", "focalpo", "dpop", "wpo")
    },
    "cw_dpo-two-processes": (2, _recipe({}, {"objective": "cw_dpo"})),
    "mdpo-lora-two-processes": (2, _recipe(_OFF, {"objective": "mdpo"}, lora=True)),
    "ppo-two-processes": (
        2,
        _recipe(_OFF, {"objective": "ppo", "samples": 2, "max_new_tokens": 8, "rollout_updates": 2}),
    ),
}


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


def trace(name: str) -> dict[str, Any]:
    """Train one recipe in a folder of its own and return its trace."""
    ranks, recipe = RECIPES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launch, "-m", "cwdpo", "train", "recipe.yaml", "--out", "run"]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")
        found: dict[str, Any] = {"processes": ranks}
        for stage in ("stage1", "stage2"):
            file = folder / "run" / stage / "metrics.jsonl"
            if file.is_file():
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                found[stage] = [
                    {key: row[key] for key in ("step", "loss", "grad_norm")} for row in rows if "loss" in row
                ]
        found["weights"] = _digest(folder / "run" / "stage2" / "model")
    return found


def differences(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return where two traces differ by more than they may."""
    exact = before["processes"] == 1
    found: list[str] = []
    if exact and before["weights"] != after["weights"]:
        found.append(f"{name}: final weights differ")
    for stage in ("stage1", "stage2"):
        rows, others = before.get(stage, []), after.get(stage, [])
        if len(rows) != len(others):
            found.append(f"{name} {stage}: {len(rows)} updates, then {len(others)}")
        for row, other in zip(rows, others, strict=False):
            for key in ("loss", "grad_norm"):
                error = abs(row[key] - other[key]) / max(1e-12, abs(row[key]))
                if error > (0 if exact else 1e-6):
                    found.append(f"{name} {stage} step {row['step']} {key}: {row[key]} {other[key]} ({error:.1e})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the traces here")
    parser.add_argument("--against", type=Path, help="compare with traces that --out wrote")
    parser.add_argument("names", nargs="*", help="some of the recipes only")
    asked = parser.parse_args()
    names = asked.names or list(RECIPES)
    traces = {}
    for name in names:
        traces[name] = trace(name)
        print(f"{name}: {traces[name]['weights'][:16]}", file=sys.stderr, flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(traces, indent=1))
    if asked.against:
        before = json.loads(asked.against.read_text())
        found = [line for name in names if name in before for line in differences(name, before[name], traces[name])]
        print("\n".join(found) or f"{len(names)} traces agree")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
