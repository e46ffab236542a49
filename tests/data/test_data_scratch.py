"""Rows in a scratch file: the same rows, the same split and the same errors as in memory, in memory that stays."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from cwdpo.data import DataSource, load_groups
from cwdpo.data.read_source import read_source
from cwdpo.data.schema import ImageRef
from cwdpo.data.splits import PARTS
from cwdpo.errors import DataError
from cwdpo.files import write_jsonl


def write_rows(folder: Path, count: int, seed: int = 0, **more: Any) -> Path:
    """Write rows about a few pictures, some under two names, some with two of them or none."""
    for i in range(40):
        # 30 different contents: the last ten are the first ten again.
        Image.new("RGB", (4, 4), (i % 30 * 8, 0, 0)).save(folder / f"{i}.png")
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        images = draw.choices(range(40), k=draw.choice([1, 1, 1, 1, 1, 1, 1, 1, 2]))
        images = [] if i % 9 == 0 else images
        row = {"id": f"{draw.random()}-é{i}", "images": [f"{n}.png" for n in images], "prompt": f"What of {i % 7}?"}
        rows.append({**row, "chosen": f"a {i}", "rejected": [f"b {i}"], "facts": {"n": i}, **more})
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def test_parts_are_lines_with_their_roles_counted(tmp_path: Path) -> None:
    source = DataSource(path=write_rows(tmp_path, 90), workers=1)
    groups = {group.id: group for group in load_groups(source).groups}
    with read_source(source, contents=True) as rows:
        rows.store.share_out(stage1_share=0.5, held_out=7, seed=1)
        parts = [list(rows.store.lines(part, tmp_path)) for part in PARTS]
        for part, lines in zip(PARTS, parts, strict=True):
            assert rows.store.roles(part) == Counter(prompts=len(lines), chosen=len(lines), rejected=len(lines))
    found = [line for lines in parts for line in lines]
    assert len(found) == 90
    for line in found:
        assert line == json.dumps(groups[json.loads(line)["id"]].to_json(root=tmp_path), ensure_ascii=False)


def test_rows_come_back_as_they_were_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 20)
    with read_source(DataSource(path=path, workers=1)) as rows:
        assert len(rows) == 20 == rows.count
        once, again = list(rows), list(rows)
    assert once == again
    assert [g.facts["n"] for g in once] == list(range(20))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".rows")]


def test_the_scratch_file_lies_where_it_should_and_goes(tmp_path: Path) -> None:
    path, place = write_rows(tmp_path, 5), tmp_path / "place"
    place.mkdir()
    with read_source(DataSource(path=path, workers=1), scratch=place):
        (folder,) = place.iterdir()
        assert folder.name.startswith(".") and folder.name.endswith(".tmp")  # as a run sweeps what a killed one left
    assert not list(place.iterdir())
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError), read_source(DataSource(path=path, workers=1), scratch=place):
        pass
    assert not list(place.iterdir())


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks: list[int] = []
    for count in (400, 400, 4000):
        path = write_rows(tmp_path, count)
        tracemalloc.start()
        with read_source(DataSource(path=path, workers=1), contents=True) as rows:
            rows.store.share_out(stage1_share=0.5, held_out=0, seed=0)
            assert sum(len(line) for part in PARTS for line in rows.store.lines(part, tmp_path)) > 100 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The first reading fills caches. 3,600 rows more: some dozen bytes each, where their objects would be kilobytes.
    assert peaks[2] - peaks[1] < 3600 * 200


def test_a_picture_that_stands_in_many_cells_becomes_one_file(tmp_path: Path, pictures: Path) -> None:
    content = (pictures / "images" / "red.png").read_bytes()
    row = {"prompt": "?", "chosen": "a", "rejected": "b", "image": {"bytes": content, "path": None}}
    datasets.Dataset.from_list([{"id": f"{i}", **row} for i in range(80)]).to_parquet(tmp_path / "rows.parquet")
    source = DataSource(path=tmp_path / "rows.parquet", workers=1)
    with read_source(source, contents=True, folder=tmp_path / "images") as rows:
        rows.store.share_out(stage1_share=1, held_out=0, seed=0)
        groups, pictured = list(rows.store), list(rows.store.pictures())
    (file,) = (tmp_path / "images").iterdir()
    assert [group.images for group in groups] == [(ImageRef(path=str(file)),)] * 80
    assert pictured == [(ImageRef(path=str(file)), file.name)]
    assert file.read_bytes() == content
