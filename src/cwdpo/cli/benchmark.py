"""`cwdpo benchmark`: questions of a benchmark, asked and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cwdpo.cli.terminal.options import Force

if TYPE_CHECKING:
    from cwdpo.evaluation.benchmarks import Question
    from cwdpo.outputs import Draft

__all__ = ["benchmark"]


def benchmark(
    name: Annotated[Literal["mmmu", "mmbench"], typer.Argument(help="Which: MMMU validation, or MMBench 1.1.")],
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    data: Annotated[Path, typer.Option(help="MMMU's folder of Parquet files, or MMBench's .tsv.")],
    out: Annotated[Path, typer.Option(help="JSON file to write: accuracies, categories, every answer.")],
    by: Annotated[
        Literal["generation", "likelihood"],
        typer.Option(help="Read the option from what the model writes, or take the letter that it finds likeliest."),
    ] = "generation",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, from the first on.")] = None,
    seed: Annotated[int, typer.Option(help="Of MMMU's draw where no option can be read.")] = 0,
    force: Force = False,
) -> None:
    """Ask a model the questions of MMMU or MMBench and score its answers. Resumes when stopped.

    [bold]cwdpo benchmark mmmu --model runs/a/stage2/model --data MMMU --out mmmu.json[/]
    """
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.outputs import output

    quiet_libraries()
    with output(out, "benchmark", reads=[data], force=force) as draft:
        found = _answered(name, model, data, draft, by, batch_size, max_new_tokens, limit, seed)
    _print(found)


def _answered(
    name: str,
    model: str,
    data: Path,
    draft: Draft,
    by: Literal["generation", "likelihood"],
    batch_size: int,
    max_new_tokens: int,
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    from cwdpo.evaluation.benchmarks import READERS, score_mmbench, score_mmmu
    from cwdpo.evaluation.captioning import caption_groups
    from cwdpo.evaluation.option_likelihood import likeliest, option_logps
    from cwdpo.files import text_digest, write_json
    from cwdpo.models.identity import folder_digest
    from cwdpo.scenes import base_path
    from cwdpo.scoring.open_model import open_model
    from cwdpo.scoring.scorer import AutoScorer

    questions = READERS[name](data)[:limit]
    loaded, encoder = open_model(model)
    digest = folder_digest(base_path() if model == "scenes" else model)
    key = text_digest(digest, name, *(str(question.prompt.messages) for question in questions))
    chosen = [q for q in questions if q.options] if by == "likelihood" else []
    asked = [q for q in questions if not q.options] if by == "likelihood" else questions
    answers_kept, letters_kept = draft.keep("answers.jsonl"), draft.keep("letters.jsonl")

    def written(some: Sequence[Question]) -> list[str]:
        groups = [question.prompt for question in some]
        settings: dict[str, Any] = {"key": key, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
        return caption_groups(lambda: loaded, encoder, groups, answers_kept, **settings)

    logps = dict[str, dict[str, float]]()
    if chosen:
        rows = option_logps(lambda: loaded, encoder, chosen, AutoScorer(), letters_kept, key=key, batch_size=batch_size)
        logps = {question.id: row for question, row in zip(chosen, rows, strict=True)}
    answers = {question.id: text for question, text in zip(asked, written(asked), strict=True)}
    answers |= {identity: likeliest(row) for identity, row in logps.items()}
    texts = [answers[question.id] for question in questions]
    found = score_mmmu(questions, texts, seed=seed) if name == "mmmu" else score_mmbench(questions, texts)
    if by == "likelihood":
        found["matching"] = "likelihood: the letter with the largest log-probability; open questions as generated"
        found["rows"] = [{**row, "logps": logps.get(row["id"])} for row in found["rows"]]
    write_json(draft.file, {"model": model, "data": str(data), "by": by, "limit": limit, "seed": seed, **found})
    return found


def _print(found: Mapping[str, Any]) -> None:
    from cwdpo.cli.terminal.console import results, table_of

    table = table_of(f"{found['benchmark']}, {found['questions']} questions", "", ">questions", ">accuracy")
    for category, part in found["categories"].items():
        table.add_row(category, str(part["questions"]), f"{part['accuracy']:.1%}")
    table.add_row("all", str(found["questions"]), f"{found['accuracy']:.1%}", style="bold")
    console, unreadable = results(), found["unreadable"]
    console.print(table)
    console.print(f"unreadable: {'–' if unreadable is None else f'{unreadable:.1%}'}; matching: {found['matching']}")
