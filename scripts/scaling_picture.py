"""Draw docs/scaling.svg from what the benchmarks measured.

python scripts/scaling_picture.py docs/scaling.svg
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from cwdpo.files import read_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PHASES = {"prepare": "#c1440e", "negatives": "#7a6a53", "first update": "#0b6e99", "resume": "#3f8f5b"}
STYLES = {1: ("-", 5.0, "#cfd8dc"), 2: ("--", 1.6, "#0b6e99"), 4: (":", 1.6, "#c1440e")}


def _rows(name: str) -> list[dict[str, Any]]:
    return read_json(RESULTS / f"{name}.json")["rows"]


def memory_against_rows(place: Any) -> None:
    """The most memory of each phase of a run, from a thousand rows to a million."""
    rows = [row for row in _rows("rows") if "phase" in row]
    for phase, colour in PHASES.items():
        points = [(row["rows"], row["peak_mib"]) for row in rows if row["phase"] == phase]
        place.plot(*zip(*points, strict=True), "o-", color=colour, label=phase, markersize=3)
    place.set(title="peak memory against rows", xlabel="rows", ylabel="MiB", xscale="log", ylim=(0, 650))
    place.legend(fontsize=8, frameon=False, loc="lower left")


def curves_of_processes(place: Any) -> None:
    """Stage 1's loss of one run, by several processes: thick below, thin above."""
    rows = [row for row in _rows("processes") if row["objective"] == "cw_dpo"]
    for row in rows:
        if row["sharding"] not in ("none", "ddp"):
            continue
        style, width, colour = STYLES[row["processes"]]
        label = f"{row['processes']} process{'es' if row['processes'] > 1 else ''}"
        place.plot(
            range(1, len(row["stage1_loss"]) + 1), row["stage1_loss"], style, lw=width, color=colour, label=label
        )
    far = max(row["largest_difference"] for row in rows)
    place.set(title=f"1, 2, 4 processes: within {far:.1e}", xlabel="updates", ylabel="SFT-C loss")
    place.legend(fontsize=8, frameon=False)


def plan_against_measured(place: Any) -> None:
    """Planned against measured memory of a step."""
    rows = _rows("plan_against_measured")
    measured, planned = ([row[name] / 2**20 for row in rows] for name in ("measured_bytes", "planned_bytes"))
    place.plot([0, 1.1 * max(measured)], [0, 1.1 * max(measured)], color="#888888", linewidth=0.6)
    place.plot(measured, planned, "o", color="#0b6e99", markersize=4)
    place.set(title="memory of a step", xlabel="measured, MiB", ylabel="planned, MiB")


def main(out: Path) -> None:
    """Draw the three beside one another."""
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "cwdpo"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, places = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for draw, place in zip((memory_against_rows, curves_of_processes, plan_against_measured), places, strict=True):
        draw(place)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
