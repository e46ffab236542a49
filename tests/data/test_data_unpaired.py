"""Answers that are each marked good or bad, grouped by prompt."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from published_rows import cell, png

from cwdpo.data import CHOSEN, REJECTED, DataSource, PromptGroup, load_groups, open_image
from cwdpo.errors import DataError


def texts(group: PromptGroup) -> tuple[list[str], list[str]]:
    return [r.text for r in group.by_role(CHOSEN)], [r.text for r in group.by_role(REJECTED)]


def of_trl(image: str, answer: str, label: bool) -> dict[str, Any]:
    return {"prompt": "What?", "images": [image], "completion": answer, "label": label}


def of_swift(image: str, answer: str, label: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [image], "label": label}


def of_factory(image: str, answer: str, label: bool) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "images": [image], "kto_tag": label}


@pytest.mark.parametrize("of", [of_trl, of_swift, of_factory])
def test_answers_of_a_prompt_become_one_row(tmp_path: Path, jsonl: Any, of: Any) -> None:
    """The same question about another image is another prompt; order and distance of the rows do not matter."""
    for name in ("red", "green"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    rows = [
        of("red.png", "blue", False),
        of("green.png", "green", True),
        of("red.png", "red", True),
        of("green.png", "grey", False),
        of("red.png", "crimson", True),
    ]
    path = jsonl(tmp_path / "x.jsonl", rows)
    data = load_groups(DataSource(path=path, pair_unpaired=True, require="pair"))
    assert data.format == "unpaired"
    assert [texts(group) for group in data.groups] == [(["red", "crimson"], ["blue"]), (["green"], ["grey"])]
    assert [open_image(g.images[0]).getpixel((0, 0)) for g in data.groups] == [(255, 0, 0), (0, 128, 0)]
    assert [group.origin for group in data.groups] == ["x.jsonl:1", "x.jsonl:2"]
    with pytest.raises(DataError, match=r"set data\.pair_unpaired: true"):
        load_groups(DataSource(path=path))


def test_a_prompt_with_one_kind_is_a_bad_row(tmp_path: Path, jsonl: Any) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    rows = [of_trl("red.png", "red", True), "{", {"prompt": "x", "completion": "y"}]
    options: dict[str, Any] = {"pair_unpaired": True, "on_bad_row": "skip", "max_bad_share": 0.9}
    path = jsonl(tmp_path / "x.jsonl", [*rows, {**of_trl("red.png", "a", False), "prompt": "Who?"}])
    with pytest.raises(DataError, match="4 of 4 rows are bad"):
        load_groups(DataSource(path=path, **options))
    path = jsonl(
        tmp_path / "x.jsonl", [*rows[1:], rows[0], of_trl("red.png", "blue", False), of_trl("x.png", "a", True)]
    )
    data = load_groups(DataSource(path=path, **options))
    assert [texts(group) for group in data.groups] == [(["red"], ["blue"])]
    assert [(bad.row, bad.kind) for bad in data.bad_rows] == [(1, "not JSON"), (2, "missing column"), (5, "no pair")]


def test_bytes_in_parquet_and_columns_of_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": "What?", "pic": cell("red"), "a": a, "label": a == "red"} for a in ("red", "blue")]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    columns = {"prompt": "q", "image": "pic", "completion": "a"}
    (group,) = load_groups(DataSource(path=tmp_path / "x.parquet", pair_unpaired=True, columns=columns)).groups
    assert texts(group) == (["red"], ["blue"])
    assert open_image(group.images[0]).getpixel((0, 0)) == (255, 0, 0)
