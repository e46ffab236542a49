"""Several benchmarks on several models, the same questions for all: figures with intervals, paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from cwdpo.errors import DataError
from cwdpo.evaluation.ask_questions import ask
from cwdpo.evaluation.benchmarks import BENCHMARKS, Benchmark, Question, Scored
from cwdpo.evaluation.intervals import paired_share_interval, share_interval
from cwdpo.files import write_json, write_lines
from cwdpo.models.identity import folder_digest
from cwdpo.scoring.open_model import open_model
from cwdpo.scoring.scorer import AutoScorer

__all__ = ["read_suite", "run_suite"]

Asked = Sequence[tuple[Benchmark, Sequence[Question]]]


def read_suite(suite: str, data: Path, limit: int | None, note: Callable[[str], None]) -> Asked:
    """Return the benchmarks of a suite whose files are there, each in a folder of its name, with their questions.

    Raises:
        DataError: A file is damaged, or there is none of any benchmark.
    """
    found: list[tuple[Benchmark, Sequence[Question]]] = []
    for name, kind in BENCHMARKS.all().items():
        if suite not in kind.suites:
            continue
        chosen = kind()
        if (data / name).is_dir():
            found.append((chosen, chosen.read(data / name)[:limit]))
        else:
            note(f"{name}: left out: {chosen.missing(data / name)}")
    if not found:
        raise DataError(
            f"{data}: holds no folder of a benchmark of the suite {suite}; the lines above say which there are"
        )
    return found


def run_suite(
    models: Mapping[str, str],
    asked: Asked,
    folder: Path,
    *,
    by: Literal["generation", "likelihood"],
    batch_size: int,
    max_new_tokens: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Ask every model every question and write `summary.json`, `table.csv` and the rows of each.

    Args:
        models: Directories by name, the first what the others are compared with. Two names may have one directory.
        asked: What `read_suite` returns.
        folder: Where; a call that was killed resumes from what lies there.
        by: As `ask`.
        batch_size: Questions at once.
        max_new_tokens: Longest written answer.
        note: Told what is under way.

    Returns:
        What `summary.json` holds: for each benchmark its title, number of questions, figures by model with an interval
        of the accuracy over questions, and paired differences of the accuracy, later minus earlier.
    """
    scored: dict[tuple[str, str], Scored] = {}
    for name, path in models.items():
        same = next((other for other in models if models[other] == path), name)
        model, encoder = open_model(path) if same == name else (None, None)
        for benchmark, questions in asked:
            if model is None or encoder is None:
                scored[benchmark.name, name] = scored[benchmark.name, same]
                continue
            note(f"{benchmark.title}: {name}, {len(questions)} questions")
            kept = tuple(folder / f"{benchmark.name}_{name}_{what}.jsonl" for what in ("answers", "letters"))
            key = folder_digest(path)
            how: dict[str, Any] = {"by": by, "key": key, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
            answers, _ = ask(model, encoder, questions, AutoScorer(), kept=(kept[0], kept[1]), **how)
            scored[benchmark.name, name] = benchmark.score(questions, answers)
            write_json(folder / f"{benchmark.name}_{name}.json", scored[benchmark.name, name].to_json())
    summary = {b.name: _compared(b, {m: scored[b.name, m] for m in models}) for b, _ in asked}
    whole = {"by": by, "models": dict(models), "benchmarks": summary}
    write_json(folder / "summary.json", whole)
    write_lines(folder / "table.csv", _csv(summary))
    return whole


def _compared(benchmark: Benchmark, scored: Mapping[str, Scored]) -> dict[str, Any]:
    right = {name: [float(row["right"]) for row in one.rows] for name, one in scored.items()}
    figures: dict[str, Any] = {}
    for name, one in scored.items():
        ends = share_interval(right[name])
        figures[name] = {**one.figures, **({"low": ends[0], "high": ends[1]} if ends else {})}
    paired: dict[str, Any] = {}
    for before, after in combinations(scored, 2):
        differences = [b - a for a, b in zip(right[before], right[after], strict=True)]
        low, high = paired_share_interval(differences)
        paired[f"{after} - {before}"] = {"mean": sum(differences) / len(differences), "low": low, "high": high}
    first = next(iter(scored.values()))
    about = {"title": benchmark.title, "questions": len(first.rows), "matching": first.matching}
    return {**about, "models": figures, "paired": paired}


def _csv(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "benchmark,model,figure,value,low,high"
    for name, part in summary.items():
        for model, figures in part["models"].items():
            for figure, value in figures.items():
                if figure in ("low", "high") or value is None:
                    continue
                ends = [figures.get(end, "") if figure == "accuracy" else "" for end in ("low", "high")]
                yield f"{name},{model},{figure},{value},{ends[0]},{ends[1]}"
        for pair, row in part["paired"].items():
            yield f"{name},{pair},accuracy,{row['mean']},{row['low']},{row['high']}"
