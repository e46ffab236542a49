"""What `benchmark` does, apart from parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from cwdpo.cli.commands import inference_model
from cwdpo.files import text_digest, write_json
from cwdpo.outputs import Draft, output

__all__ = ["run_benchmark"]


def run_benchmark(
    name: str,
    model: str,
    data: Path,
    out: Path,
    *,
    by: Literal["generation", "likelihood"],
    batch_size: int,
    max_new_tokens: int,
    limit: int | None,
    seed: int,
    force: bool,
) -> None:
    """Answer the questions, score, print a table and write everything."""
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
    from cwdpo.evaluation.benchmarks import READERS, Question, score_mmbench, score_mmmu
    from cwdpo.evaluation.captioning import caption_groups
    from cwdpo.evaluation.option_likelihood import likeliest, option_logps
    from cwdpo.models.identity import folder_digest
    from cwdpo.scenes import base_path
    from cwdpo.scoring.scorer import AutoScorer

    questions = READERS[name](data)[:limit]
    loaded, encoder = inference_model(model)
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
    console = Console(highlight=False)
    table = Table(title=f"{found['benchmark']}, {found['questions']} questions", title_justify="left", box=None)
    for column in ("", "questions", "accuracy"):
        table.add_column(column, justify="right" if column else "left")
    for category, part in found["categories"].items():
        table.add_row(category, str(part["questions"]), f"{part['accuracy']:.1%}")
    table.add_row("all", str(found["questions"]), f"{found['accuracy']:.1%}", style="bold")
    console.print(table)
    unreadable = found["unreadable"]
    console.print(f"unreadable: {'–' if unreadable is None else f'{unreadable:.1%}'}; matching: {found['matching']}")
