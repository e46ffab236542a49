"""`cwdpo probes`: a probe set of fixed prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Force, Overrides

__all__ = ["probes"]


def probes(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its section probes says which kinds of response.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, for probes.path.")],
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory to build it in; default runs/<name of the recipe file>-probes.")
    ] = None,
    force: Force = False,
) -> None:
    """Build a probe set from held-out rows: fixed prompts, each with many kinds of response, pinned by a hash.

    [bold]cwdpo probes recipe.yaml --set probes.kinds=[own,chosen_paraphrase,random] --out probes.jsonl[/]
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries, results, table_of
    from cwdpo.data import DataSource, load_groups, write_groups
    from cwdpo.errors import one_line
    from cwdpo.outputs import output
    from cwdpo.probes.reading import kind_of, probe_digest
    from cwdpo.recipe.load_recipe import load_recipe
    from cwdpo.run.probe_prompts import make_probe_set
    from cwdpo.run.run_dir import RunDirectory
    from cwdpo.run.stage_callbacks import require_figures

    quiet_libraries()
    asked = load_recipe(recipe, overrides or [])
    own = require_figures(asked)
    folder = run or Path("runs") / f"{recipe.stem}-probes"
    reads = [recipe, *asked.files()]
    with output(out, "probes", reads=reads, force=force) as draft:
        with RichReporter() as reporter:
            groups = make_probe_set(RunDirectory(folder, asked, reporter))
        write_groups(draft.file, groups, out.with_name(f"{out.stem}_images"))
    digest = probe_digest(load_groups(DataSource(path=out, require="chosen")).groups)
    examples: dict[str, list[str]] = {}
    for response in (response for group in groups for response in group.responses):
        examples.setdefault(kind_of(response), []).append(response.text)
    console = results()
    table = table_of(f"{len(groups)} prompts", "kind", ">prompts", "for instance")
    for kind, texts in examples.items():
        table.add_row(kind, str(len(texts)), one_line(texts[0], 90))
    console.print(table)
    if own:
        table = table_of("figures of your own", "figure", "title", "unit", "better", "about")
        for f in own:
            table.add_row(f.name, f.title, f.unit, f.better, f.about)
        console.print(table)
    typer.echo(f"probes: {out}")
    typer.echo(f"pin it: probes.path={out} probes.digest={digest}")
