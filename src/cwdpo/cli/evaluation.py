"""Commands that say how good captions are: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["register"]


def evaluate(
    data: Annotated[str, typer.Option(help="Pictures with reference captions, any known format; or `scenes`.")],
    model: Annotated[str | None, typer.Option(help="Model directory or hub id, to caption the pictures.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="In place of --model: a file of captions (JSON lines, or COCO's results).")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a file that has several; default test, for Karpathy's JSON.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default evaluation/<name of the model>.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="With commas: bleu, meteor, rouge_l, cider, spice, scene_graph_f, distinct, length. All."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question, for formats that hold captions only.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of a beam search; also measures all its captions.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption in tokens.")] = 48,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures to take, from the first on.")] = None,
    tokenizer: Annotated[
        Literal["auto", "ptb", "words"],
        typer.Option(
            help="ptb is COCO's (Java); words needs no Java; auto takes ptb where there is Java, and says so."
        ),
    ] = "auto",
    spice_jars: Annotated[
        Path | None, typer.Option(envvar="CWDPO_SPICE_JARS", help="Folder of Stanford CoreNLP 3.6.0, for SPICE.")
    ] = None,
) -> None:
    """Caption pictures and measure the captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE and more.

    Writes captions.jsonl, rows.jsonl and metrics.json. A killed call goes on where it was. Domains of NoCaps are also
    measured one by one. What needs Java or spaCy and does not find it is unavailable, with the reason.

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
    )


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(evaluate)
