"""`cwdpo winrate`: two sets of captions, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["winrate"]

_MEASURES = {"cider": "CIDEr-D", "scenes": "exact correctness", "judge": "judge"}


def winrate(
    captions_a: Annotated[
        Path,
        typer.Argument(help="Captions: JSON lines of cwdpo evaluate or caption, COCO results."),
    ],
    captions_b: Annotated[Path, typer.Argument(help="Captions of the same pictures, to compare with.")],
    data: Annotated[str, typer.Option(help="The pictures with their references, any known format.")],
    by: Annotated[
        Literal["cider", "scenes", "judge"],
        typer.Option(help="CIDEr-D; whether a caption is right, on scenes; or a language model, asked in both orders."),
    ] = "cider",
    judge_model: Annotated[str | None, typer.Option(help="The judge, as its endpoint calls it.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Its OpenAI-compatible address, for instance http://localhost:8000/v1.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="More of the judge: images=true, structured=none, price_input=0.1, price_output=0.4, max_cost=2, …",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a file that has several; default test, for Karpathy's JSON.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default winrate/<A>-vs-<B>.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures to take, from the first on.")] = None,
    tokenizer: Annotated[
        Literal["words", "ptb", "auto"], typer.Option(help="For cider; ptb is COCO's (Java), words needs no Java.")
    ] = "words",
    force: Force = False,
) -> None:
    """Compare two sets of captions picture by picture: how often A is better than B, with a 95 % interval.

    A judge's answers are kept in OUT/judge.jsonl as they come: a stopped call resumes and pays for nothing twice.

    [bold]cwdpo winrate a.jsonl b.jsonl --data test.jsonl --by judge --judge-url URL --judge-model NAME[/]
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries
    from cwdpo.cli.terminal.options import folder_name
    from cwdpo.errors import RecipeError
    from cwdpo.evaluation.evaluate_captions import EvaluationData
    from cwdpo.evaluation.win_rates import compare_captions
    from cwdpo.files import write_json, write_jsonl
    from cwdpo.outputs import OwnedFolder, require_replaceable
    from cwdpo.recipe import JudgeSection
    from cwdpo.recipe.load_recipe import load_section

    quiet_libraries()
    asked = [f"{key}={value}" for key, value in (("model", judge_model), ("base_url", judge_url)) if value is not None]
    asked += overrides or []
    if asked and by != "judge":
        raise RecipeError(f"--by {by}: asks no judge; leave out {asked[0].partition('=')[0]}, or give --by judge")
    judge = load_section(JudgeSection, asked, "judge") if by == "judge" else None
    names = [folder_name(str(path.with_suffix(""))) for path in (captions_a, captions_b)]
    folder = out or Path("winrate") / "-vs-".join(names)
    for name in ("winrate.json", "rows.jsonl", *(["judge.jsonl"] if judge is not None else [])):
        require_replaceable(folder / name, "winrate", reads=[captions_a, captions_b, data], force=force)
    with OwnedFolder(folder, "winrate", alone=False, force=force), RichReporter() as reporter:
        pictures = EvaluationData(data, split, images, None, limit)
        rows, facts, found = compare_captions(
            captions_a, captions_b, pictures, folder, by=by, judge=judge, tokenizer=tokenizer, listener=reporter
        )
        write_jsonl(folder / "rows.jsonl", rows)
        settings = {"a": str(captions_a), "b": str(captions_b), "data": data, "split": split, "limit": limit, "by": by}
        write_json(folder / "winrate.json", {**settings, **facts, **found})
    _print(found, facts, _MEASURES[by])
    typer.echo(f"rows: {folder / 'rows.jsonl'}")


def _print(found: Mapping[str, Any], facts: Mapping[str, Any], measure: str) -> None:
    from cwdpo.evaluation.intervals import interval_text

    interval = f"95 % {interval_text(found, '.1%')}"
    typer.echo(
        f"A wins {found['win_rate']:.1%} {interval} by {measure}, {found['pictures']} pictures: "
        f"{found['wins']} wins, {found['ties']} ties (half each), {found['losses']} losses"
    )
    if facts.get("consistent") is not None:
        typer.echo(
            f"{facts['judge']}: the same in both orders {facts['consistent']:.1%} of {facts['pairs_asked']} pairs; "
            f"the first shown {'–' if facts['first_shown'] is None else format(facts['first_shown'], '.1%')}; "
            f"{found['unread']} pairs unread; {facts['spent']:.4g} spent"
        )
