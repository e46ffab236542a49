"""Commands that say how good captions are: evaluate, winrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cwdpo.cli.options import Command, Force

__all__ = ["register"]


def evaluate(
    data: Annotated[str, typer.Option(help="Pictures with reference captions, any known format; or `scenes`.")],
    model: Annotated[str | None, typer.Option(help="Model directory or hub id, to caption the pictures.")] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="In place of --model: a file of captions (JSON lines, or COCO's results)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a file that has several; default test, for Karpathy's JSON.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default evaluation/<name of the model>.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names with commas: bleu, cider, correct, distinct, length, meteor, rouge_l, spice, my_file.py:name; "
            "or a YAML list with settings, [cider, {distinct: {longest: 4}}]. Default: all that apply."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question, for formats that hold captions only.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of a beam search; also measures all its captions.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption in tokens.")] = 48,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures to take, from the first on.")] = None,
    tokenizer: Annotated[
        Literal["words", "ptb", "auto"],
        typer.Option(
            help="Plain words, as in a run's own evaluation; ptb is COCO's (Java), for figures that compare with "
            "papers'; auto takes ptb where there is Java."
        ),
    ] = "words",
    spice_jars: Annotated[
        Path | None,
        typer.Option(envvar="CWDPO_SPICE_JARS", help="Folder of Stanford CoreNLP 3.6.0, for SPICE."),
    ] = None,
    force: Force = False,
) -> None:
    """Caption pictures and measure the captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE and yours.

    Writes captions.jsonl, rows.jsonl and metrics.json. A killed call goes on where it was. Domains of NoCaps are also
    measured one by one. What needs Java and does not find it is unavailable, with the reason.

    [bold]cwdpo evaluate --model runs/a/stage2/model --data dataset_coco.json --images coco --split test[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.evaluate import EvaluationData, run_evaluation

    quiet_libraries()
    run_evaluation(
        model,
        captions,
        EvaluationData(data, split, images, prompt, limit),
        out,
        metrics=metrics,
        tokenizer=tokenizer,
        beams=beams,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        spice_jars=spice_jars,
        force=force,
    )


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

    A judge's answers are kept in OUT/judge.jsonl as they come: a killed call goes on and pays nothing twice.

    [bold]cwdpo winrate a.jsonl b.jsonl --data test.jsonl --by judge --judge-url URL --judge-model NAME[/]
    """
    from cwdpo.cli.console import quiet_libraries
    from cwdpo.cli.evaluate import EvaluationData
    from cwdpo.cli.winrate import run_winrate

    quiet_libraries()
    chosen = EvaluationData(data, split, images, None, limit)
    judge = [f"{key}={value}" for key, value in (("model", judge_model), ("base_url", judge_url)) if value is not None]
    run_winrate(captions_a, captions_b, chosen, by, [*judge, *(overrides or [])], out, tokenizer, force)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(cls=Command)(evaluate)
    app.command(cls=Command)(winrate)
