"""Run directories with made-up but plausible figures, in the layout that the pipeline writes."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cwdpo.files import write_json, write_jsonl, write_text
from cwdpo.recipe.load_recipe import load_recipe

START = {"chosen": -0.55, "hard": -1.4, "medium": -2.0, "easy": -3.2}
FALL = {"dpo": {"chosen": -0.4, "hard": -1.2, "medium": -2.1, "easy": -3.4}}
FALL["cw_dpo"] = {"chosen": -0.04, "hard": -0.5, "medium": -0.6, "easy": -0.5}
TV = {"dpo": 0.176, "cw_dpo": 0.052}
ECE = {"dpo": 0.119, "cw_dpo": 0.031}


def made_up_run(
    folder: Path,
    objective: str = "dpo",
    *,
    prompts: int = 24,
    steps: int = 100,
    name: str = "cwdpo run",
    evil: str = "",
    seed: int = 0,
) -> Path:
    """Write a finished run directory; `evil` is put into every text that a user may choose."""
    draw = random.Random(f"{objective}/{seed}" if seed else objective)
    one = "sft" if objective == "dpo" else "sft_c"
    base: dict[str, Any] = {"seed": seed, "name": name + evil, "stage1": {"objective": one, "learning_rate": 3e-4}}
    base |= {"stage2": {"objective": objective, "learning_rate": 3e-4}, "data": {"prompt": f"Describe.{evil}"}}
    write_text(folder / "recipe.yaml", load_recipe(base=base).to_yaml())
    machine = {"platform": f"Linux{evil}", "cpus": 2, "threads": 1, "gpus": []}
    manifest = {"cwdpo": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.13.0"}, "machine": machine, "seed": seed}
    write_json(folder / "manifest.json", manifest | {"model": {"path": f"scenes{evil}", "digest": "ab" * 32}})
    write_json(folder / "data" / "done.json", {"counts": {"stage1": 3000, "stage2": 1000, "held_out": prompts}})
    for stage, goal in (("stage1", one), ("stage2", objective)):
        write_json(folder / "negatives" / stage / "counts.json", {"dataset": 900, f"beam{evil}": 100})
        write_jsonl(folder / stage / "probes.jsonl", _probes(goal, steps, draw))
        write_jsonl(folder / stage / "metrics.jsonl", _metrics(goal, steps, draw))
        start = {"stage1": "ab", "stage2": one.encode().hex()}[stage]
        write_json(folder / stage / "done.json", {"updates": steps, "start": start, "model": goal, "seconds": 83.2})
        _watched(folder / stage, goal, evil, draw)
        _negatives(folder / "negatives" / stage, evil)
    _evaluation(folder, objective, prompts, evil, draw)
    return folder


def _probes(goal: str, steps: int, draw: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    fall = FALL.get(goal, {"chosen": 0.02, "hard": -0.05, "medium": -0.1, "easy": -0.15})
    for step in range(0, steps + 1, 5):
        share = 1 - math.exp(-3 * step / steps)
        kinds: dict[str, Any] = {}
        for kind, start in START.items():
            delta = fall[kind] * share + (draw.gauss(0, 0.02) if step else 0.0)
            weight = 1 / (1 + math.exp(-(start + delta + 3)))
            histogram = [0] * 10
            for _ in range(64):
                histogram[min(9, int(10 / (1 + math.exp(-(start + draw.gauss(0, 0.6) + 3)))))] += 1
            kinds[kind] = {"count": 64, "logp_mean": start + delta, "logp_sum": 10 * (start + delta), "entropy": 0.6}
            kinds[kind] |= {"top1": 0.7, "cooling_weight": weight, "cooling_histogram": histogram}
            kinds[kind] |= {"delta_start": delta, "delta_last": 0.0}
        drift = TV.get(goal, 0.03) * share
        ece = 0.022 + (ECE.get(goal, 0.022) - 0.022) * share
        row = {"step": step, "kinds": kinds, "ece": ece, "entropy": 0.62 - drift, "top1": 0.74 + drift / 3}
        row |= {"accuracy": 0.7 - ece, "ranking": 0.9 + drift / 2}
        row["gap"] = kinds["chosen"]["logp_mean"] - kinds["hard"]["logp_mean"]
        rows.append(row | {"tv": drift, "js": drift**1.4 / 2, "reliability": _bins(ece)})
    return rows


def _metrics(goal: str, steps: int, draw: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "probe/tv": 0.0}]
    for step in range(10, steps + 1, 10):
        share = 1 - math.exp(-3 * step / steps)
        row = {
            "step": step,
            "loss": 0.69 * (1 - share / 2),
            "grad_norm": 2 - share,
            "learning_rate": 3e-4 * (1 - share),
        }
        if goal in FALL:
            up, down = 0.4 * share * draw.uniform(0.8, 1), -2.4 * share * draw.uniform(0.8, 1)
            row |= {"rewards/chosen": up, "rewards/rejected": down, "rewards/margins": up - down}
            row |= {"rewards/accuracies": 0.5 + 0.4 * share, "cooling/winner_coefficient": 0.05 * (1 - share / 2)}
            for tag, weight in {"hard": 0.8, "medium": 0.6, "easy": 0.3}.items():
                cooled = weight if goal == "cw_dpo" else 1
                row[f"cooling/loser_coefficient/{tag}"] = 0.05 * (1 - share / 2) * cooled
        rows.append(row)
    return [*rows, {"step": steps, "train_runtime": 83.2, "train_loss": 0.4}]


def _watched(folder: Path, goal: str, evil: str, draw: random.Random) -> None:
    """What the probes keep beside their rows, what was found, how fast it was."""
    rows: list[dict[str, Any]] = []
    for step in (0, 50, 100):
        logps = {k: [v - step / 200 + draw.gauss(0, 0.1) for _ in range(8)] for k, v in START.items()}
        rows.append({"step": step, "logp_mean": logps})
    write_jsonl(folder / "probe_prompts.jsonl", [{**rows[0], "floor": -3.0, "tau": 1.0}, *rows[1:]])
    gold = ["a", "large", f"box{evil}"]
    start = [[["a", 0.9], ["the", 0.1]], [["large", 0.6], ["small", 0.4]], [[f"box{evil}", 0.5], ["disc", 0.4]]]
    last = [start[0], [["small", 0.7], ["large", 0.2]], start[2]]
    places = [{"id": "test-000", "gold": gold, "places": p} for p in (start, last)]
    write_json(folder / "probe_tokens.json", {"step": 100, "start": places[:1], "last": places[1:]})
    squeezed = {"rule": "squeezing", "severity": "serious", "sentence": f"Both fall.{evil}", "remedy": f"Cool.{evil}"}
    squeezed |= {"step": 20, "figures": {"chosen_change": -0.4, "top1_change": 0.1}}
    found = [squeezed] if goal == "dpo" else []
    write_json(folder / "diagnosis.json", {"objective": goal, "readings": 21, "step": 100, "findings": found})
    if goal == "cw_dpo":
        stopped = {"signal": f"ece{evil}", "best_step": 60, "last_step": 100, "stopped": True, "restored": True}
        write_json(folder / "early_stop.json", stopped)
    call = {"device": f"cpu{evil}", "unit": "pairs", "seconds": 80.0, "waiting": 8.0, "probing": 20.0}
    call |= {"examples": 3200.0, "tokens": 160_000.0, "speed/peak_memory_gib": 1.5}
    write_json(folder / "throughput.json", {"calls": [call]})


def _negatives(folder: Path, evil: str) -> None:
    tally = {"proposed": 1000, "identical": 10, "suspects": 50, "exact": 500, "right": 5}
    tally |= {"right_suspects": 4, "dropped": 100, "used": 900}
    write_json(folder / "tallies.json", {"sources": {"dataset": tally | {"length_ratio": 1100.0}}})
    write_jsonl(folder / "dropped.jsonl", [{"id": "x", "text": f"a box{evil}", "reason": f"too like gold{evil} 0.97"}])
    groups: list[dict[str, Any]] = []
    for i in range(10):
        rejected = {"text": f"a small box {i}{evil}", "role": "rejected", "source": f"beam{evil}", "difficulty": "hard"}
        chosen = {"text": f"a large box {i}{evil}", "role": "chosen", "source": "dataset"}
        groups.append({"id": f"train-{i}", "images": ["none.png"], "responses": [chosen, rejected]})
    write_jsonl(folder / "groups.jsonl", groups)


def _bins(ece: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i in range(15):
        middle = (i + 0.5) / 15
        count = 0 if i < 2 else 40 + 20 * i
        values = {"confidence": middle, "accuracy": max(0.0, middle - ece)} if count else {"confidence": None}
        found.append({"lower": i / 15, "upper": (i + 1) / 15, "count": count, "accuracy": None} | values)
    return found


def _evaluation(folder: Path, objective: str, prompts: int, evil: str, draw: random.Random) -> None:
    truth = ["a large yellow square", "left of", "a green rhombus"]
    rows: list[dict[str, Any]] = []
    for i in range(prompts):
        path = folder / "data" / "images" / f"test-{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (64, 64), "#f4f1ea")
        ImageDraw.Draw(image).rectangle((8, 20 + i % 9, 28, 40 + i % 9), fill="#d9b400")
        ImageDraw.Draw(image).ellipse((38, 22, 56, 40), fill=["#2a7", "#a27", "#27a"][i % 3])
        image.save(path)
        row: dict[str, Any] = {"id": f"test-{i:03d}", "image": str(path)}
        row["references"] = [" ".join(truth) + evil, "a yellow box to the left of a green diamond"]
        for when, right in (("base", 0.2), ("before", 0.3), ("after", 0.5 if objective == "cw_dpo" else 0.3)):
            correct = draw.random() < right
            caption = " ".join(truth) if correct else f"a small {draw.choice(['red', 'blue'])} square left of a plus"
            row[when] = {"caption": caption + evil, "cider": 100.0 * correct, "correct": correct}
            if when != "base":
                shift = FALL[objective]["chosen"] if when == "after" else 0
                row[when]["logp"] = {"chosen": START["chosen"] + shift + draw.gauss(0, 0.05)}
        rows.append(row)
    summary: dict[str, Any] = {"prompts": prompts, "base": {"cider": 20.0, "correct": 0.2}}
    for when, scale, ece in (("before", 0, 0.022), ("after", 1, ECE[objective])):
        each = [row[when] for row in rows]
        summary[when] = {"cider": sum(r["cider"] for r in each) / prompts}
        summary[when]["correct"] = sum(r["correct"] for r in each) / prompts
        logp = {k: v + scale * FALL[objective][k] for k, v in START.items()}
        logp["chosen"] = sum(r["logp"]["chosen"] for r in each) / prompts
        summary[when]["grounding"] = {"right": -0.5, "shuffled": -1.4, "gap": 0.9, "low": 0.85, "high": 0.95}
        summary[when] |= {"ece": ece, "entropy": 0.62, "top1": 0.74, "logp": logp, "reliability": _bins(ece)}
    summary["after"] |= {"tv": TV[objective], "js": TV[objective] / 3}
    write_jsonl(folder / "evaluation" / "rows.jsonl", rows)
    write_json(folder / "evaluation" / "summary.json", summary)
    write_json(folder / "evaluation" / "done.json", {"prompts": prompts})
