"""Draw the README's picture from a finished demo.

python scripts/readme_picture.py cwdpo-demo docs/demo.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from cwdpo.files import read_json, read_jsonl

COLOURS = {"sft_dpo": "#c1440e", "cw_dpo": "#0b6e99"}
KINDS = {"chosen": "-", "hard": "--", "easy": ":"}


def main(demo: Path, out: Path) -> None:
    """Draw probes of Stage 2 (left, middle) and the held-out figures (right)."""
    methods = read_json(demo / "summary.json")["methods"]
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.4), width_ratios=(1.3, 1, 1), layout="constrained"
    )
    for arm, colour in COLOURS.items():
        rows = list(read_jsonl(demo / arm / "stage2" / "probes.jsonl"))
        steps = [row["step"] for row in rows]
        for kind, style in KINDS.items():
            label = f"{methods[arm]['name']}: {kind}"
            left.plot(steps, [r["kinds"][kind]["delta_start"] for r in rows], style, color=colour, label=label)
        middle.plot(steps, [r["tv"] for r in rows], color=colour, label=methods[arm]["name"])
    left.axhline(0, color="#888888", linewidth=0.6)
    left.set(title="Δ log p per token since Stage 2 began", xlabel="updates")
    left.legend(fontsize=7, frameon=False, loc="lower left")
    middle.set(title="drift of the token distribution (TV)", xlabel="updates", ylim=(0, None))
    middle.legend(fontsize=8, frameon=False)
    names = ("tv", "ece")
    for place, (arm, colour) in enumerate(COLOURS.items()):
        bars = right.bar(
            [i + 0.38 * place for i in range(len(names))], [methods[arm][n] for n in names], width=0.36, color=colour
        )
        right.bar_label(bars, fmt="%.3f", fontsize=8)
    right.set_xticks([0.19, 1.19], ["TV", "ECE"])
    right.set(title="after Stage 2, held-out pictures")
    figure.savefig(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
