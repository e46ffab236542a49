"""`cwdpo benchmark`: questions of a benchmark, asked and scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Force

if TYPE_CHECKING:
    from cwdpo.evaluation.benchmarks import Scored

__all__ = ["benchmark"]


def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            help="amber, hallusionbench, mmbench (1.1), mme, mmmu (validation), mmstar, pope, or yours, "
            "my_file.py:MyBenchmark; with --suite a run directory."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="The official files, a folder or one file; with --suite a folder with one for each.")
    ],
    model: Annotated[str | None, typer.Option(help="Model directory or hub id.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file to write: accuracies, categories, every answer. With --suite RUN/benchmarks."),
    ] = None,
    suite: Annotated[
        Literal["hallucination"] | None,
        typer.Option(help="Ask base, Stage 1 and Stage 2 of a run all benchmarks of a suite."),
    ] = None,
    by: Annotated[
        Literal["generation", "likelihood"],
        typer.Option(help="Parse the option from the model's answer, or take its most likely letter."),
    ] = "generation",
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in questions.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest answer in tokens.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, from the first on.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of MMMU's random choice when an answer cannot be parsed.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the benchmark.")
    ] = None,
    force: Force = False,
) -> None:
    """Ask a model the questions of a benchmark and score its answers. Resumes when stopped.

    [bold]cwdpo benchmark mmmu --model runs/a/stage2/model --data MMMU --out mmmu.json[/]
    [bold]cwdpo benchmark runs/a --suite hallucination --data benchmarks[/]
    """
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.errors import DataError, RecipeError
    from cwdpo.evaluation.ask_questions import ask
    from cwdpo.evaluation.benchmarks import BENCHMARKS
    from cwdpo.files import write_json
    from cwdpo.models.identity import folder_digest
    from cwdpo.outputs import output
    from cwdpo.recipe.load_recipe import load_section
    from cwdpo.scenes import base_path
    from cwdpo.scoring.open_model import open_model
    from cwdpo.scoring.scorer import AutoScorer

    quiet_libraries()
    if suite is not None:
        if model is not None or out is not None or overrides or seed is not None or force:
            raise RecipeError(
                "--suite goes with --data, --by, --batch-size, --max-new-tokens and --limit; leave the rest"
            )
        settings: dict[str, Any] = {"by": by, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
        return _suite(Path(name), suite, data, limit, settings)
    if model is None or out is None:
        raise RecipeError("give --model and --out, or a run directory and --suite")
    asked_for = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
    chosen = load_section(BENCHMARKS.find(name), asked_for, name)
    with output(out, "benchmark", reads=[data], force=force) as draft:
        questions = chosen.read(data)[:limit]
        if not questions:
            raise DataError(f"{data}: holds no question of {chosen.title}; give the official files")
        loaded, encoder = open_model(model)
        answers, logps = ask(
            loaded,
            encoder,
            questions,
            AutoScorer(),
            by=by,
            kept=(draft.keep("answers"), draft.keep("letters")),
            key=folder_digest(base_path() if model == "scenes" else model),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        scored = chosen.score(questions, answers)
        if by == "likelihood":
            how = "likelihood: the option with the largest log-probability; open questions as generated"
            scored = replace(scored, matching=how, rows=[{**row, "logps": logps.get(row["id"])} for row in scored.rows])
        asked: dict[str, Any] = {"model": model, "data": str(data), "by": by, "limit": limit}
        asked |= chosen.model_dump(mode="json") | {"benchmark": chosen.title}
        write_json(draft.file, asked | scored.to_json())
    _print(chosen.title, scored)


def _suite(run: Path, suite: str, data: Path, limit: int | None, how: dict[str, Any]) -> None:
    """Ask the models of a run the benchmarks of a suite."""
    from cwdpo.cli.terminal.console import RichReporter, results, table_of
    from cwdpo.errors import RunError
    from cwdpo.evaluation.benchmark_suite import read_suite, run_suite
    from cwdpo.evaluation.intervals import interval_text
    from cwdpo.outputs import OwnedFolder
    from cwdpo.report.read_run import read_run

    record = read_run(run)
    base = record.manifest.get("model", {}).get("path")
    stages = {s: str(run / s / "model") for s in ("stage1", "stage2") if record.json(f"{s}/done.json")}
    if not isinstance(base, str) or not stages:
        raise RunError(f"{run}: no stage is finished, so there is nothing to compare; resume it with `cwdpo train`")
    with RichReporter() as reporter:
        asked = read_suite(suite, data, limit, reporter.note)
        with OwnedFolder(run / "benchmarks", "benchmark") as owned:
            found = run_suite({"base": base, **stages}, asked, owned.folder, note=reporter.note, **how)
    table = table_of(
        "accuracy, 95 % intervals; differences are paired", "", ">questions", *(f">{m}" for m in found["models"])
    )
    for part in found["benchmarks"].values():
        figures = [f"{_percent(f['accuracy'])} {interval_text(f, '.1f', 100)}" for f in part["models"].values()]
        table.add_row(part["title"], str(part["questions"]), *figures)
    console = results()
    console.print(table)
    for part in found["benchmarks"].values():
        differences = [f"{p} {100 * d['mean']:+.1f} {interval_text(d, '+.1f', 100)}" for p, d in part["paired"].items()]
        unread = ", ".join(f"{m} {_percent(f.get('unreadable'))}" for m, f in part["models"].items())
        console.print(f"{part['title']}: {'; '.join(differences)} points; not readable: {unread}")
    typer.echo(f"benchmarks: {run / 'benchmarks' / 'summary.json'}")


def _print(title: str, scored: Scored) -> None:
    from cwdpo.cli.terminal.console import results, table_of

    main, *others = scored.figures
    table = table_of(f"{title}, {scored.questions} questions", "", ">questions", f">{main}")
    for category, part in scored.categories.items():
        table.add_row(category, str(part["questions"]), _percent(part[main]))
    table.add_row("all", str(scored.questions), _percent(scored.figures[main]), style="bold")
    console = results()
    console.print(table)
    rest = "; ".join(f"{name.replace('_', ' ')}: {_percent(scored.figures[name])}" for name in others)
    console.print(f"{rest}; matching: {scored.matching}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
