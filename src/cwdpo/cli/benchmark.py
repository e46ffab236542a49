"""What `benchmark` does, apart from parsing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cwdpo.cli.commands import inference_model, require_writable
from cwdpo.files import text_digest, write_json

__all__ = ["run_benchmark"]


def run_benchmark(
    name: str,
    model: str,
    data: Path,
    out: Path,
    *,
    batch_size: int,
    max_new_tokens: int,
    limit: int | None,
    seed: int,
) -> None:
    """Answer the questions greedily, score, print a table and write everything."""
    from cwdpo.evaluation.benchmarks import READERS, score_mmbench, score_mmmu
    from cwdpo.evaluation.captioning import caption_groups
    from cwdpo.models.loading import folder_digest
    from cwdpo.scenes import base_path

    require_writable(out)
    questions = READERS[name](data)[:limit]
    loaded, encoder = inference_model(model)
    kept = out.with_name(f".{out.name}.part")
    digest = folder_digest(base_path() if model == "scenes" else model)
    answers = caption_groups(
        lambda: loaded,
        encoder,
        [question.prompt for question in questions],
        kept,
        key=text_digest(digest, name, *(str(question.prompt.messages) for question in questions)),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    found = score_mmmu(questions, answers, seed=seed) if name == "mmmu" else score_mmbench(questions, answers)
    write_json(out, {"model": model, "data": str(data), "limit": limit, "seed": seed, **found})
    kept.unlink()
    _print(found)


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
