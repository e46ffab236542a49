"""`cwdpo evaluate`: captions measured against references."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["evaluate"]


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
        typer.Option(
            help="Names with commas: bleu, cider, correct, distinct, length, meteor, rouge_l, spice, my_file.py:name; "
            "or a YAML list with settings, [cider, {distinct: {longest: 4}}]. Default: all that apply."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question, for formats that hold captions only.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of a beam search; also measures all its captions.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in pictures.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest caption in tokens.")] = 48,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures to take, from the first on.")] = None,
    tokenizer: Annotated[
        Literal["words", "ptb", "auto"],
        typer.Option(
            help="Plain words, as in a run's own evaluation; ptb is COCO's (Java), for figures that compare with "
            "papers'; auto takes ptb where there is Java."
        ),
    ] = "words",
    spice_jars: Annotated[
        Path | None, typer.Option(envvar="CWDPO_SPICE_JARS", help="Folder of Stanford CoreNLP 3.6.0, for SPICE.")
    ] = None,
    force: Force = False,
) -> None:
    """Caption pictures and measure the captions against references: BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE and yours.

    Writes captions.jsonl, rows.jsonl and metrics.json. Resumes when stopped. Domains of NoCaps are also measured one by
    one. What needs Java and does not find it is unavailable, with the reason.

    [bold]cwdpo evaluate --model runs/a/stage2/model --data dataset_coco.json --images coco --split test[/]
    """
    from cwdpo.cli.terminal.console import RichReporter, quiet_libraries
    from cwdpo.cli.terminal.options import folder_name
    from cwdpo.errors import RecipeError
    from cwdpo.evaluation.evaluate_captions import EvaluationData, evaluate_captions
    from cwdpo.models.model_checks import require_model
    from cwdpo.outputs import OwnedFolder, require_replaceable

    quiet_libraries()
    if (model is None) == (captions is None):
        raise RecipeError("give either --model, to caption the pictures, or --captions, a file of captions")
    if spice_jars is not None and not spice_jars.is_dir():
        raise RecipeError(f"--spice-jars {spice_jars}: no such folder; give the one of Stanford CoreNLP 3.6.0")
    if model not in (None, "scenes"):
        require_model(str(model))
    folder = out or Path("evaluation") / folder_name(str(model if captions is None else captions.with_suffix("")))
    for name in ("metrics.json", "rows.jsonl", *(["captions.jsonl"] if captions is None else [])):
        reads = [data, *([captions] if captions is not None else [])]
        require_replaceable(folder / name, "evaluate", reads=reads, force=force)
    with OwnedFolder(folder, "evaluate", alone=False, force=force), RichReporter() as reporter:
        measured = evaluate_captions(
            model,
            captions,
            EvaluationData(data, split, images, prompt, limit),
            folder,
            metrics=metrics,
            tokenizer=tokenizer,
            beams=beams,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            spice_jars=spice_jars,
            listener=reporter,
        )
    _print(measured)
    typer.echo(f"metrics: {folder / 'metrics.json'}")


def _print(measured: Mapping[str, Any]) -> None:
    """Print all pictures with intervals, hypotheses of a beam, domains; then what is unavailable."""
    from cwdpo.cli.terminal.console import results, styled, table_of

    console, beam, domains = results(), measured.get("beam"), measured.get("domains", {})
    console.print(f"{measured['pictures']} pictures, {measured['references']} references; × 100, length in tokens")
    beams = [f">mean of {beam['hypotheses']}", f">best of {beam['hypotheses']}"] if beam else []
    table = table_of("", "", ">all", ">95 %", *beams, *(f">{n} ({part['pictures']})" for n, part in domains.items()))
    for name, score in measured["metrics"].items():
        row = [name, _figure(score), _interval(score)]
        if beam:
            row += [_figure(beam["metrics"].get(name, {}).get(which, {})) for which in ("mean", "best")]
        table.add_row(*row, *(_figure(part["metrics"][name]) for part in domains.values()))
    console.print(table)
    console.print(styled((f"tokens: {measured['tokenizer']}", "dim")))
    for name, score in measured["metrics"].items():
        if "unavailable" in score:
            console.print(styled((f"{name}: unavailable: {score['unavailable']}", "dim")), soft_wrap=True)


def _figure(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.2f}" if "value" in score else "–"


def _interval(score: Mapping[str, Any]) -> str:
    return f"[{score['low']:.2f}, {score['high']:.2f}]" if "low" in score else "–"
