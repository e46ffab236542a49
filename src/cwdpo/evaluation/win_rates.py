"""Two sets of captions of the same pictures: how often the first is better, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwdpo.chat.language_model import LanguageModel
from cwdpo.chat.requests import Conversation, Reply, UnusableAnswer, json_request
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError
from cwdpo.evaluation.caption_files import read_captions
from cwdpo.evaluation.evaluate_captions import EvaluationData, Listener
from cwdpo.evaluation.intervals import share_interval
from cwdpo.evaluation.measure_captions import references_of
from cwdpo.evaluation.metrics.cider import cider_of_tokens
from cwdpo.evaluation.tokenize_captions import Tokenizer, choose_tokenizer, tokenize
from cwdpo.recipe import JudgeSection
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene

__all__ = ["by_cider", "by_judge", "by_scenes", "compare_captions", "read_opinion", "win_rate"]

_EQUAL = 1e-6
"""CIDEr-D (× 100) that differs by less is a tie: rounding."""

Verdict = float | None
"""1: the first caption is better, 0: the second, 0.5: a tie, None: nobody can say."""

Opinion = Literal["1", "2", "tie"]

_TASK = (
    "You compare two captions of a picture. The better one says what is in the picture rightly: objects, their "
    "attributes, their number, where they are and what they do. What is wrong counts more than what is left out, and "
    "what is left out more than style. Length by itself is no merit. The order of the captions means nothing. Answer "
    'with JSON only: {"better": "1"}, {"better": "2"}, or {"better": "tie"} where neither is better.'
)


def compare_captions(
    captions_a: Path,
    captions_b: Path,
    data: EvaluationData,
    folder: Path,
    *,
    by: Literal["cider", "scenes", "judge"],
    judge: JudgeSection | None,
    tokenizer: Literal["auto", "ptb", "words"],
    listener: Listener,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Compare two files of captions.

    Args:
        captions_a: File of the captions whose wins are counted.
        captions_b: File of the others.
        data: Pictures and references.
        folder: Where a judge's answers are kept, and pictures of `scenes` are drawn.
        by: Who decides.
        judge: The judge, where one is asked.
        tokenizer: For CIDEr, as `choose_tokenizer` takes it.
        listener: Told how far it is.

    Returns:
        A row for each picture, facts about the comparison, and what `win_rate` returns.

    Raises:
        UserError: A file, the data or the judge cannot be used.
    """
    groups = data.read(folder, need_images=judge is not None and judge.images)
    a, b = ([texts[0] for texts in read_captions(path, groups)] for path in (captions_a, captions_b))
    references = references_of(groups)
    if judge is not None:
        asked = LanguageModel(
            judge,
            folder / "judge.jsonl",
            note=listener.note,
            progress=lambda done, total: listener.progress("answers", done, total),
        )
        verdicts, columns = by_judge(asked, groups, a, b, references)
        facts = {"judge": judge.model, "images": judge.images, "spent": asked.spent, **_orders(columns)}
    elif by == "scenes":
        verdicts, columns = by_scenes(groups, a, b)
        facts = dict[str, Any]()
    else:
        way = choose_tokenizer(tokenizer, listener.note, "--tokenizer")
        verdicts, columns = by_cider(a, b, references, way)
        facts = {"tokenizer": way}
    rows = [
        {"id": group.id, "a": x, "b": y, "verdict": verdict, **row}
        for group, x, y, verdict, row in zip(groups, a, b, verdicts, columns, strict=True)
    ]
    return rows, facts, win_rate(verdicts)


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


def by_cider(
    ones: Sequence[str], others: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Compare by CIDEr-D against the references, whose document frequencies are those of all pictures here.

    Returns:
        A verdict for each picture, and its two figures.
    """
    flat = iter(tokenize([*ones, *others, *(text for rows in references for text in rows)], tokenizer))
    a, b = ([next(flat) for _ in texts] for texts in (ones, others))
    gold = [[next(flat) for _ in rows] for rows in references]
    pairs = list(zip(cider_of_tokens(a, gold)[1], cider_of_tokens(b, gold)[1], strict=True))
    verdicts: list[Verdict] = [0.5 if abs(x - y) < _EQUAL else float(x > y) for x, y in pairs]
    return verdicts, [{"cider_a": x, "cider_b": y} for x, y in pairs]


def by_scenes(
    groups: Sequence[PromptGroup], ones: Sequence[str], others: Sequence[str]
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Compare by whether a caption is wholly right of a picture of `scenes`; right beats wrong, all else is a tie.

    Raises:
        DataError: A row has no exact scene.
    """
    for group in groups:
        if "scene" not in group.facts:
            raise DataError(f"{group.origin or group.id}: has no scene; --by scenes needs data of the world `scenes`")
    scenes = [Scene.from_json(group.facts["scene"]) for group in groups]
    pairs = [(is_correct(x, s), is_correct(y, s)) for x, y, s in zip(ones, others, scenes, strict=True)]
    return [(1 + x - y) / 2 for x, y in pairs], [{"right_a": x, "right_b": y} for x, y in pairs]


def by_judge(
    judge: LanguageModel[JudgeSection],
    groups: Sequence[PromptGroup],
    ones: Sequence[str],
    others: Sequence[str],
    references: Sequence[Sequence[str]],
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Ask a judge about each pair in both orders. It must name the same caption twice, else the pair is a tie.

    Pairs of equal captions are ties and are not asked.

    Returns:
        A verdict for each picture, None where an answer cannot be read; and both answers.
    """
    asked = [i for i, (x, y) in enumerate(zip(ones, others, strict=True)) if x.strip() != y.strip()]
    some, gold = [groups[i] for i in asked], [references[i] for i in asked]
    straight = [(ones[i], others[i]) for i in asked]
    both = _judge_captions(judge, [*some, *some], [*gold, *gold], [*straight, *((y, x) for x, y in straight)])
    verdicts: list[Verdict] = [0.5] * len(groups)
    rows: list[dict[str, Any]] = [{"a_first": None, "b_first": None} for _ in groups]
    for i, one, two in zip(asked, both[: len(asked)], both[len(asked) :], strict=True):
        verdicts[i] = _agreed(one, two)
        rows[i] = {"a_first": one, "b_first": two}
    return verdicts, rows


def _agreed(a_first: Opinion | None, b_first: Opinion | None) -> Verdict:
    if a_first is None or b_first is None:
        return None
    return {("1", "2"): 1.0, ("2", "1"): 0.0}.get((a_first, b_first), 0.5)


def win_rate(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return wins, ties and losses of the first set, and its win rate (a tie counts half) with a 95 % interval.

    The interval's ends are None where all pairs are ties.

    Args:
        verdicts: One for each picture; those that are None are left out and counted as `unread`.

    Raises:
        DataError: There is none.
    """
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        raise DataError(
            "no pair could be compared: no answer of the judge can be read; try another model or structured"
        )
    low, high = share_interval(known) or (None, None)
    return {
        "pictures": len(verdicts),
        "wins": known.count(1.0),
        "ties": known.count(0.5),
        "losses": known.count(0.0),
        "unread": len(verdicts) - len(known),
        "win_rate": sum(known) / len(known),
        "low": low,
        "high": high,
    }


def _judge_captions(
    model: LanguageModel[JudgeSection],
    groups: Sequence[PromptGroup],
    references: Sequence[Sequence[str]],
    pairs: Sequence[tuple[str, str]],
) -> list[Opinion | None]:
    """Return which caption of each pair is better: the first, the second, neither, or nothing readable.

    Args:
        model: The judge.
        groups: The images.
        references: Gold captions of each.
        pairs: Two captions of each, in the order in which they are shown.

    Raises:
        ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
    """
    asked = zip(groups, references, pairs, strict=True)
    return model.ask("judge", [_compared(model.settings, *each) for each in asked])


def _compared(
    judge: JudgeSection, group: PromptGroup, references: Sequence[str], pair: tuple[str, str]
) -> Conversation[Opinion | None]:
    lines = [f"Caption 1: {pair[0]}", f"Caption 2: {pair[1]}", "What people wrote of the picture:"]
    text = "\n".join([*lines, *(f"- {reference}" for reference in references)])
    properties = {"better": {"type": "string", "enum": ["1", "2", "tie"]}}
    return read_opinion((yield json_request(judge, _TASK, text, properties, group.images, expected=12)))


def read_opinion(reply: Reply) -> Opinion | None:
    """Return which caption an answer says is better, or None if it does not say so in JSON."""
    try:
        better = str(reply.json().get("better")).lower()
    except UnusableAnswer:
        return None
    return better if better in ("1", "2", "tie") else None
