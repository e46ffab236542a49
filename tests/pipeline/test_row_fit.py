"""Rows that only the model's processor refuses are found before Stage 1; pictures replaced under a run are found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data import load_groups
from cwdpo.data.schema import Response
from cwdpo.errors import DataError, RecipeError, RunError
from cwdpo.files import read_json, read_jsonl
from cwdpo.recipe import Recipe
from cwdpo.run import Run
from cwdpo.run.prepare_data import prepare_data, source_of
from cwdpo.run.row_fit import negative_fit, row_fit
from cwdpo.run.run_dir import resolved


def _rows(folder: Path, *, changes: dict[int, dict[str, Any]] | None = None) -> Path:
    """Write 24 rows, each with a picture of its own, as JSON lines."""
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for i in range(24):
        Image.new("RGB", (56, 56), (10 * i, 255 - 10 * i, 90)).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "prompt": "What is it?", "chosen": f"A dog {i}.", "rejected": f"A cat {i}."}
        lines.append(json.dumps(row | (changes or {}).get(i, {})))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def _run(folder: Path, data: Path, **settings: Any) -> Run:
    recipe = {
        "model": {"path": "scenes", **settings.pop("model", {})},
        "data": {"path": str(data), "held_out": 4, "format": "cwdpo"},
    }
    recipe["data"] |= settings
    return Run(folder, Recipe.model_validate({"name": "fit", **recipe}))


def _prepare(run: Run) -> None:
    with run.locked():
        run.settle()
        prepare_data(run)


UNFIT: tuple[dict[str, Any], ...] = (
    {"chosen": "word " * 3000},
    {"rejected": ["a cat", "word " * 3000]},
    {"prompt": "word " * 3000},
    {"chosen": "a <|image_pad|> b"},
    {"rejected": "<|image_pad|>"},
    {"prompt": "what does <|image_pad|> mean?"},
    {"prompt": "what does <|video_pad|> mean?"},
    {"image": "thin.png"},
)


def test_rows_that_only_encoding_refuses(tmp_path: Path) -> None:
    """Rows 8 to 15: too long, placeholders of pictures in the text, a picture too thin to be cut into patches."""
    data = _rows(tmp_path / "d", changes={7 + i: change for i, change in enumerate(UNFIT)})
    Image.new("RGB", (1000, 2)).save(tmp_path / "d" / "thin.png")
    with pytest.raises(DataError, match=r"rows\.jsonl row 8: ") as caught:
        _prepare(_run(tmp_path / "stop", data))
    assert "\n" not in str(caught.value)
    run = _run(tmp_path / "skip", data, on_bad_row="skip", max_bad_share=0.5)
    _prepare(run)
    bad = list(read_jsonl(run.folder / "rejected_rows.jsonl"))
    assert [row["row"] for row in bad] == list(range(8, 16))
    assert len({row["reason"].split(":")[0] for row in bad}) == 1
    parts = [list(read_jsonl(run.folder / "data" / f"{p}.jsonl")) for p in ("stage1", "stage2", "held_out")]
    assert sum(map(len, parts)) == 24 - 8


def test_rows_about_one_picture_are_measured_without_reading_it_again(tmp_path: Path) -> None:
    """What is counted from the text alone is what encoding finds, at the limit and one below it."""
    same = {i: {"image": "0.png", "prompt": "What is it?" * (i + 1)} for i in range(24)}
    data = _rows(tmp_path / "d", changes=same)
    run = _run(tmp_path / "run", data, held_out=1)
    encoder = run.encoder(run.model_path)
    groups = load_groups(source_of(run.recipe, data)).groups
    lengths = [
        len(e.prefix_ids) + max(len(r.ids) for r in e.responses) for e in (encoder.encode(group) for group in groups)
    ]
    for limit in (lengths[12], lengths[12] - 1):
        fit = row_fit(_run(tmp_path / "run", data, model={"max_length": limit}))
        assert [fit(group) is None for group in groups] == [length <= limit for length in lengths]


@pytest.mark.parametrize("settled", [True, False], ids=["room known", "room unknown"])
def test_negatives_are_measured_as_rows_are(tmp_path: Path, settled: bool) -> None:
    """At the limit, and one token above it, whether the data's step has noted what room its rows leave or not."""
    data = _rows(tmp_path / "d")
    encoder = _run(tmp_path / "measure", data).encoder(resolved("scenes"))
    group = load_groups(source_of(Recipe(), data, format="cwdpo")).groups[-1]
    answers = [Response(" ".join(["word"] * n), "rejected") for n in (50, 51)]
    encoded = encoder.encode(group.with_responses(answers))
    fits, over = (len(encoded.prefix_ids) + len(response.ids) for response in encoded.responses)
    assert over > fits
    run = _run(tmp_path / "run", data, model={"max_length": fits})
    _prepare(run)
    if not settled:
        done = run.folder / "data" / "done.json"
        done.write_text(json.dumps({k: v for k, v in read_json(done).items() if k != "room"}))
    unfit = negative_fit(run, run.model_path)
    assert unfit(group, answers[0].text) is None and unfit(group, "a cat") is None
    assert f"the limit is {fits}" in str(unfit(group, answers[1].text))
    assert "placeholder" in str(unfit(group, "a <|image_pad|>")) and unfit(group, "a [small] cat") is None


def test_a_changed_limit_reads_the_data_again(tmp_path: Path) -> None:
    data = _rows(tmp_path / "d", changes={7: {"chosen": "word " * 300}})
    with pytest.raises(DataError, match="max_length"):
        _prepare(_run(tmp_path / "run", data, model={"max_length": 200}))
    _prepare(_run(tmp_path / "run", data))
    with pytest.raises((RunError, RecipeError), match=r"model\.max_length"):
        _prepare(_run(tmp_path / "run", data, model={"max_length": 200}))


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_picture_replaced_under_a_run(tmp_path: Path, keeps_times: bool) -> None:
    data = _rows(tmp_path / "d")
    _prepare(_run(tmp_path / "run", data))
    picture, before = tmp_path / "d" / "3.png", (tmp_path / "d" / "3.png").stat()
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    if keeps_times:
        os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RunError, match=r"3\.png: the picture has changed"):
        _prepare(_run(tmp_path / "run", data))
    picture.write_bytes(whole)  # put back: other times, the same content
    _prepare(_run(tmp_path / "run", data))
