"""What `winrate` does, apart from parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from cwdpo.cli.evaluate import EvaluationData, folder_name
from cwdpo.errors import RecipeError
from cwdpo.evaluation.intervals import interval_text
from cwdpo.files import write_json, write_jsonl
from cwdpo.outputs import OwnedFolder, require_replaceable
from cwdpo.recipe import JudgeSection
from cwdpo.recipe.load_recipe import load_section

__all__ = ["run_winrate"]

_MEASURES = {"cider": "CIDEr-D", "scenes": "exact correctness", "judge": "judge"}


def run_winrate(
    one: Path,
    other: Path,
    data: EvaluationData,
    by: Literal["cider", "scenes", "judge"],
    settings: Sequence[str],
    out: Path | None,
    tokenizer: Literal["auto", "ptb", "words"],
    force: bool,
) -> None:
    """Compare two files of captions, print the rate, write `winrate.json` and `rows.jsonl`."""
    from cwdpo.cli.console import RichReporter
    from cwdpo.evaluation.caption_files import read_captions
    from cwdpo.evaluation.judge import CaptionJudge
    from cwdpo.evaluation.measure_captions import references_of
    from cwdpo.evaluation.tokenize_captions import choose_tokenizer
    from cwdpo.evaluation.winrate import by_cider, by_judge, by_scenes, win_rate

    if settings and by != "judge":
        raise RecipeError(f"--by {by}: asks no judge; leave out {settings[0].partition('=')[0]}, or give --by judge")
    judged = load_section(JudgeSection, settings, "judge") if by == "judge" else None
    folder = (
        out or Path("winrate") / f"{folder_name(str(one.with_suffix('')))}-vs-{folder_name(str(other.with_suffix('')))}"
    )
    for name in ("winrate.json", "rows.jsonl", *(["judge.jsonl"] if judged is not None else [])):
        require_replaceable(folder / name, "winrate", reads=[one, other, data.path], force=force)
    with OwnedFolder(folder, "winrate", alone=False, force=force), RichReporter() as reporter:
        groups = data.read(folder, need_images=judged is not None and judged.images)
        a, b = ([texts[0] for texts in read_captions(path, groups)] for path in (one, other))
        references = references_of(groups)
        facts: dict[str, Any] = {}
        if judged is not None:
            kept = folder / "judge.jsonl"
            judge = CaptionJudge(
                judged, kept, note=reporter.note, progress=lambda n, of: reporter.progress("answers", n, of)
            )
            verdicts, rows = by_judge(judge, groups, a, b, references)
            facts = {"judge": judged.model, "images": judged.images, "spent": judge.spent, **_orders(rows)}
        elif by == "scenes":
            verdicts, rows = by_scenes(groups, a, b)
        else:
            way = choose_tokenizer(tokenizer, reporter.note, "--tokenizer")
            verdicts, rows = by_cider(a, b, references, way)
            facts = {"tokenizer": way}
        found = win_rate(verdicts)
        shown = [
            {"id": group.id, "a": x, "b": y, "verdict": verdict, **row}
            for group, x, y, verdict, row in zip(groups, a, b, verdicts, rows, strict=True)
        ]
        write_jsonl(folder / "rows.jsonl", shown)
        settled = {
            "a": str(one),
            "b": str(other),
            "data": data.path,
            "split": data.split,
            "limit": data.limit,
        }
        write_json(folder / "winrate.json", {**settled, "by": by, **facts, **found})
    _print(found, facts, _MEASURES[by])
    typer.echo(f"rows: {folder / 'rows.jsonl'}")


def _orders(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how often the judge said the same in both orders, and how often it took the caption shown first."""
    answers = [(row["a_first"], row["b_first"]) for row in rows if row["a_first"] and row["b_first"]]
    same = {("1", "2"), ("2", "1"), ("tie", "tie")}
    flat = [answer for pair in answers for answer in pair if answer != "tie"]
    return {
        "pairs_asked": len(answers),
        "consistent": sum(pair in same for pair in answers) / len(answers) if answers else None,
        "first_shown": flat.count("1") / len(flat) if flat else None,
    }


def _print(found: Mapping[str, Any], facts: Mapping[str, Any], measure: str) -> None:
    interval = f"95 % {interval_text(found['low'], found['high'], '.1%')}"
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
