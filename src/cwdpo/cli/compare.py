"""`cwdpo compare`: two checkpoints on the same responses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["compare"]


def compare(
    checkpoint_a: Annotated[str, typer.Argument(help="Model directory or hub id: the one to compare with.")],
    checkpoint_b: Annotated[str, typer.Argument(help="Model directory or hub id: the one that is compared.")],
    data: Annotated[Path, typer.Option(help="Data file with responses, any known format.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with reliability and top tokens.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Rows of the file to use, from the first on.")] = 256,
    samples: Annotated[int, typer.Option(min=0, help="Prompts whose likeliest tokens are shown.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in prompts.")] = 8,
    force: Force = False,
) -> None:
    """Compare two checkpoints on the same responses: TV, JS, entropy, calibration, log p by kind with intervals.

    [bold]cwdpo compare runs/a/stage1/model runs/a/stage2/model --data test.jsonl --out shift.json[/]
    """
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.data.first_rows import load_first
    from cwdpo.evaluation.compare_models import compare_models
    from cwdpo.files import write_json
    from cwdpo.outputs import output
    from cwdpo.scoring.open_model import open_model
    from cwdpo.scoring.scorer import AutoScorer

    quiet_libraries()
    with output(out, "compare", reads=[data], force=force) if out is not None else nullcontext() as draft:
        groups = load_first(data, "chosen", prompts)
        models = checkpoint_a, checkpoint_b
        found = compare_models(open_model, models, groups, AutoScorer(), batch_size=batch_size, samples=samples)
        _print(found)
        if draft is not None:
            write_json(draft.file, found)


def _print(found: Mapping[str, Any]) -> None:
    from cwdpo.cli.terminal.console import results, table_of
    from cwdpo.evaluation.intervals import interval_text
    from cwdpo.probes.figures import OVERALL

    one, two, console = found["a"], found["b"], results()
    title = f"{found['prompts']} prompts; A = {found['models']['a']}, B = {found['models']['b']}"
    table = table_of(title, "", ">A", ">B", ">B − A", ">95 %")
    for kind, d in found["delta"].items():
        values = (side["kinds"][kind]["logp_mean"] for side in (one, two))
        interval = interval_text(d, "+.3f")
        table.add_row(f"log p per token, {kind}", *(f"{v:.3f}" for v in values), f"{d['mean']:+.3f}", interval)
    for figure in (OVERALL[name] for name in ("entropy", "top1", "accuracy", "ece")):
        a, b = one[figure.name], two[figure.name]
        table.add_row(figure.title, figure.text(a), figure.text(b), figure.text(b - a, signed=True), "")
    console.print(table)
    console.print(f"TV {found['tv']:.4f}   JS {found['js']:.5f} bits, mean over gold tokens")
    for sample in found["samples"]:
        # The five likeliest tokens of both models at the three places that differ most.
        table = table_of(f"likeliest tokens · {sample['id']}", "place", "gold", "A", "B", style="dim")
        gaps = [_gap(dict(map(tuple, x)), dict(map(tuple, y))) for x, y in zip(sample["a"], sample["b"], strict=True)]
        for place in sorted(sorted(range(len(gaps)), key=lambda i: -gaps[i])[:3]):
            sides = ("  ".join(f"{t.strip() or repr(t)} {p:.2f}" for t, p in sample[side][place][:5]) for side in "ab")
            table.add_row(str(place + 1), sample["gold"][place].strip(), *sides)
        console.print(table)


def _gap(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return sum(abs(a.get(token, 0.0) - b.get(token, 0.0)) for token in {*a, *b})
