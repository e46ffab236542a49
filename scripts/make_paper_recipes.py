"""Write `recipes/paper/`: every row of the paper's tables as a two-stage recipe for COCO.

python scripts/make_paper_recipes.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cwdpo.files import write_text
from cwdpo.paper.arms import ARMS, BASE, STARTS
from cwdpo.paper.paper_tables import TABLES
from cwdpo.paper.sizes import SCALES

FOLDER = Path(__file__).parents[1] / "recipes" / "paper"


def paper_recipes() -> dict[str, str]:
    """Return the content of every file by its name."""
    return {f"{entry}.yaml": _text(entry) for entry in (*STARTS, *ARMS) if _wanted(entry)}


def _wanted(entry: str) -> bool:
    """Leave out what is followed for the figures, and what needs exact meaning."""
    return not (STARTS.get(entry) or ARMS[entry]).followed and not entry.endswith("_exact")


def _text(entry: str) -> str:
    full, arm = SCALES["full"], ARMS.get(entry)
    shared: dict[str, Any] = {name: dict(section) for name, section in full.recipe.items()}
    start = entry if arm is None else arm.start
    stage1 = {"enabled": False} if start == BASE else {**shared["stage1"], **STARTS[start].stage1}
    stage2 = {"enabled": False} if arm is None else {**shared["stage2"], **arm.stage2}
    own = arm.negatives if arm is not None else {}
    whole = STARTS.get(entry) or ARMS[entry]
    values = {
        "name": whole.title,
        **shared,
        "data": {"path": "dataset_coco.json", "image_root": "coco", **shared["data"]},
        "negatives": {**shared["negatives"], "stage2": {**({} if "dataset" in own else full.given), **own}},
        "stage1": stage1,
        "stage2": stage2,
    }
    tables = [name for name, table in TABLES.items() if entry in table.entries]
    lines = [
        f"# {values['name']}: a row of {', '.join(tables) or 'no table'} (`cwdpo paper`).",
        "# Made by scripts/make_paper_recipes.py. The paper's negatives are edited by GPT-4: for that, set",
        "# negatives.editor, and edit: 1 in place of perturb: 1.",
    ]
    if whole.corrected:
        lines += [
            "# The method begins with the model's own answers, corrected: for that too set negatives.editor, then",
            "# negatives.correction: {by: editor} and dataset: 1 in place of perturb: 1. This is the loss alone.",
        ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def main() -> None:
    """Write the files, and delete those that are no longer made."""
    recipes = paper_recipes()
    for old in FOLDER.glob("*.yaml"):
        if old.name not in recipes:
            old.unlink()
    for name, text in recipes.items():
        write_text(FOLDER / name, text)


if __name__ == "__main__":
    main()
