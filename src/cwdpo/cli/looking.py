"""What `probes`, `compare` and `influence` do, apart from parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cwdpo.cli.commands import inference_model
from cwdpo.data import DataSource, load_groups
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError, RecipeError, one_line
from cwdpo.evaluation.intervals import interval_text
from cwdpo.files import write_json, write_jsonl
from cwdpo.outputs import output
from cwdpo.probes.figures import OVERALL
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.recipe.load_recipe import load_recipe

__all__ = ["build_probes", "compare_checkpoints", "influence_file"]


def _groups(path: Path, require: Literal["chosen", "pair"], count: int) -> list[PromptGroup]:
    found = list(load_groups(DataSource(path=path, require=require, limit=count)).groups[:count])
    if not found:
        raise DataError(f"{path}: no row can be used")
    return found


def build_probes(path: Path, overrides: list[str], folder: Path, out: Path, *, force: bool) -> None:
    """Write a probe set, print its kinds with an example each, and what to put into a recipe."""
    from cwdpo.cli.console import RichReporter
    from cwdpo.data.write_groups import write_groups
    from cwdpo.probes.reading import kind_of, probe_digest
    from cwdpo.run.probe_prompts import make_probe_set
    from cwdpo.run.run_dir import RunDirectory
    from cwdpo.run.stage_callbacks import require_figures

    recipe = load_recipe(path, overrides)
    own = require_figures(recipe)
    reads = [path, *filter(None, (recipe.data.path, recipe.data.held_out_path, recipe.probes.path))]
    with output(out, "probes", reads=reads, force=force) as draft:
        with RichReporter() as reporter:
            groups = make_probe_set(RunDirectory(folder, recipe, reporter))
        write_groups(draft.file, groups, out.with_name(f"{out.stem}_images"))
    digest = probe_digest(load_groups(DataSource(path=out, require="chosen")).groups)
    table = Table(title=f"{len(groups)} prompts", title_justify="left", header_style="bold", box=None)
    for column in ("kind", "prompts", "for instance"):
        table.add_column(column, justify="right" if column == "prompts" else "left")
    kinds = [[kind_of(r) for r in g.responses] for g in groups]
    for kind in dict.fromkeys(k for each in kinds for k in each):
        having = [g.responses[each.index(kind)].text for g, each in zip(groups, kinds, strict=True) if kind in each]
        table.add_row(kind, str(len(having)), escape(one_line(having[0], 90)))
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=140, highlight=False)
    console.print(table)
    if own:
        figures = Table(title="figures of your own", title_justify="left", header_style="bold", box=None)
        for column in ("figure", "title", "unit", "better", "about"):
            figures.add_column(column)
        for f in own:
            figures.add_row(*map(escape, (f.name, f.title, f.unit, f.better, f.about)))
        console.print(figures)
    typer.echo(f"probes: {out}")
    typer.echo(f"pin it: probes.path={out} probes.digest={digest}")


def compare_checkpoints(
    a: str, b: str, data: Path, out: Path | None, *, prompts: int, samples: int, batch_size: int, force: bool
) -> None:
    """Compare two checkpoints, print a table and write the whole comparison."""
    from cwdpo.evaluation.compare_models import compare_models
    from cwdpo.scoring.scorer import AutoScorer

    with output(out, "compare", reads=[data], force=force) if out is not None else nullcontext() as draft:
        groups = _groups(data, "chosen", prompts)
        found = compare_models(inference_model, (a, b), groups, AutoScorer(), batch_size=batch_size, samples=samples)
        _print(found, Console(width=120, highlight=False))
        if draft is not None:
            write_json(draft.file, found)


def _print(found: Mapping[str, Any], console: Console) -> None:
    one, two = found["a"], found["b"]
    title = f"{found['prompts']} prompts; A = {found['models']['a']}, B = {found['models']['b']}"
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("", "A", "B", "B − A", "95 %"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for kind, d in found["delta"].items():
        values = (side["kinds"][kind]["logp_mean"] for side in (one, two))
        interval = interval_text(d["low"], d["high"], "+.3f")
        table.add_row(f"log p per token, {kind}", *(f"{v:.3f}" for v in values), f"{d['mean']:+.3f}", interval)
    for figure in (OVERALL[name] for name in ("entropy", "top1", "accuracy", "ece")):
        a, b = one[figure.name], two[figure.name]
        table.add_row(figure.title, figure.text(a), figure.text(b), figure.text(b - a, signed=True), "")
    console.print(table)
    console.print(f"TV {found['tv']:.4f}   JS {found['js']:.5f} bits, mean over gold tokens")
    for sample in found["samples"]:
        console.print(_tokens_table(sample))


def _tokens_table(sample: Mapping[str, Any]) -> Table:
    """Show the five likeliest tokens of both models at the three places that differ most."""
    table = Table(title=f"likeliest tokens · {sample['id']}", title_justify="left", header_style="dim", box=None)
    for column in ("place", "gold", "A", "B"):
        table.add_column(column, no_wrap=True)
    gaps = [_gap(dict(map(tuple, x)), dict(map(tuple, y))) for x, y in zip(sample["a"], sample["b"], strict=True)]
    for place in sorted(sorted(range(len(gaps)), key=lambda i: -gaps[i])[:3]):
        shown = ("  ".join(f"{t.strip() or repr(t)} {p:.2f}" for t, p in sample[side][place][:5]) for side in "ab")
        table.add_row(str(place + 1), sample["gold"][place].strip(), *shown)
    return table


def _gap(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return sum(abs(a.get(token, 0.0) - b.get(token, 0.0)) for token in {*a, *b})


def _section(objective: str) -> Stage1Section | Stage2Section:
    if objective in ("sft", "sft_c"):
        return Stage1Section.model_validate({"objective": objective})
    return Stage2Section.model_validate({"objective": objective})


def influence_file(
    model: str,
    data: Path,
    out: Path,
    *,
    observe: Path | None,
    reference: str | None,
    objectives: Sequence[str],
    updates: int,
    observed: int,
    etas: Sequence[float],
    projections: int,
    freeze: Sequence[str],
    force: bool,
) -> int:
    """Write one line per objective, step size, update sample and observed response; return how many."""
    if bad := [eta for eta in etas if not eta > 0]:
        raise RecipeError(f"--eta {bad[0]:g}: must be greater than 0; it is the size of a gradient step")
    with output(out, "influence", reads=[data, *([observe] if observe is not None else [])], force=force) as draft:
        rows = _influences(model, data, observe, reference, objectives, updates, observed, etas, projections, freeze)
        write_jsonl(draft.file, rows)
    return len(rows)


def _influences(
    model: str,
    data: Path,
    observe: Path | None,
    reference: str | None,
    objectives: Sequence[str],
    updates: int,
    observed: int,
    etas: Sequence[float],
    projections: int,
    freeze: Sequence[str],
) -> list[dict[str, Any]]:
    import torch

    from cwdpo.models.parts import freeze_parts
    from cwdpo.probes.entk import projected_kernel_norm
    from cwdpo.probes.influence import SampleLoss, measure_influence
    from cwdpo.scoring.batch import Batch
    from cwdpo.scoring.scorer import AutoScorer
    from cwdpo.training.callbacks.track_influence import reference_sums

    sources = _groups(data, "pair", updates)
    others = _groups(observe or data, "chosen", observed)
    policy, encoder = inference_model(model, exact=True)
    policy.requires_grad_(True)
    freeze_parts(policy, freeze)
    scorer = AutoScorer()
    steps = [Batch((encoder.encode(g),)) for g in sources]
    seen = [Batch((encoder.encode(g.with_responses(g.by_role(CHOSEN)[:1])),)) for g in others]
    target = inference_model(reference, exact=True)[0] if reference is not None else policy
    references = [torch.tensor(sums) for sums in reference_sums(target, scorer, steps)]
    kernel: dict[tuple[str, str], tuple[float, float]] = {}
    for u in steps if projections else []:
        for o in seen:
            norm = projected_kernel_norm(policy, scorer, o, u, projections=projections)
            kernel[u.groups[0].id, o.groups[0].id] = norm
    rows: list[dict[str, Any]] = []
    for objective in objectives:
        loss = SampleLoss(_section(objective))
        for eta in etas:
            found = measure_influence(
                policy,
                scorer,
                steps,
                seen,
                loss,
                references=references if loss.needs_reference else None,
                eta=eta,
            )
            for item in found:
                norm = kernel.get((item.update, item.observed))
                more = {"entk_sq": norm[0], "entk_sq_se": norm[1]} if norm else {}
                rows.append({**item.to_json(), **more})
    return rows
