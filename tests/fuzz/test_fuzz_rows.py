"""Data files with changed rows and damaged bytes, in every format: rows, rows set aside, or one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import SCALARS, TEXTS, cases, damaged, mutated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cwdpo.data import DataSource, LoadedData, load_groups
from cwdpo.errors import UserError

ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def _said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


ROWS: dict[str, dict[str, Any]] = {
    "cwdpo": {
        "id": "a",
        "images": ["a.png"],
        "prompt": ASK,
        "responses": [{"text": "red", "role": "chosen"}, {"text": "blue", "role": "rejected", "difficulty": "hard"}],
        "references": ["red"],
        "facts": {"colour": "red"},
    },
    "trl": {"images": ["a.png"], "prompt": ASK, "chosen": _said("red"), "rejected": _said("blue")},
    "llamafactory": {
        "conversations": [{"from": "human", "value": "<image>What?"}],
        "chosen": {"from": "gpt", "value": "red"},
        "rejected": {"from": "gpt", "value": "blue"},
        "images": ["a.png"],
    },
    "swift": {
        "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "red"}],
        "rejected_response": "blue",
        "images": ["a.png"],
    },
}
KARPATHY = {
    "images": [
        {"filename": "a.png", "filepath": "", "split": "train", "imgid": i, "sentences": [{"raw": "red"}]}
        for i in range(2)
    ]
}
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "caption": "red"}, {"image_id": 2, "caption": "blue"}],
}
INFO = {"mine": {"file_name": "rows.jsonl", "ranking": True, "formatting": "sharegpt", "columns": {"images": "images"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures."""
    made = tmp_path_factory.mktemp("rows")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (6, 4), (200, 0, 0)).save(made / name)
    return made


def read(path: Path, kind: str = "auto", **settings: Any) -> LoadedData | None:
    """Read a file both ways; what a row sets aside is named, what stops is one line, and no file is touched."""
    before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    found: LoadedData | None = None
    for skip in ("stop", "skip"):
        try:
            found = load_groups(
                DataSource(path=path, format=kind, on_bad_row=skip, max_bad_share=0.9, workers=1, **settings)
            )
        except UserError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 2000
            found = None
            continue
        for group in found.groups:
            json.dumps(group.to_json(), ensure_ascii=False).encode("utf-8")
        for row in found.bad_rows:
            json.dumps(row.to_json(), ensure_ascii=False).encode("utf-8")
    assert {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before
    return found


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ROWS)
@given(data=st.data())
@cases(40)
def test_changed_rows(folder: Path, kind: str, data: st.DataObject) -> None:
    row = data.draw(mutated(ROWS[kind]))
    path = folder / "rows.jsonl"
    path.write_text(_lines([ROWS[kind], row]), encoding="utf-8")
    read(path, data.draw(st.sampled_from(["auto", kind])))


@pytest.mark.parametrize("kind", ["karpathy", "coco"])
@given(data=st.data())
@cases(40)
def test_changed_documents(folder: Path, kind: str, data: st.DataObject) -> None:
    path = folder / "document.json"
    path.write_text(json.dumps(data.draw(mutated({"karpathy": KARPATHY, "coco": COCO}[kind]))), encoding="utf-8")
    read(path, data.draw(st.sampled_from(["auto", kind])), captions=data.draw(st.sampled_from(["first", "each"])))


@given(info=mutated(INFO), name=st.sampled_from(["", ":mine", ":other"]))
@cases(40)
def test_changed_dataset_info(tmp_path_factory: pytest.TempPathFactory, info: Any, name: str) -> None:
    folder = tmp_path_factory.mktemp("info")
    (folder / "rows.jsonl").write_text(_lines([ROWS["llamafactory"]]), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    try:
        load_groups(DataSource(path=f"{folder}/dataset_info.json{name}", format="llamafactory", need_images=False))
    except UserError as error:
        assert "\n" not in str(error)


@given(
    rows=st.lists(st.lists(st.one_of(TEXTS, SCALARS.map(str)), max_size=4), max_size=4),
    delimiter=st.sampled_from(",;\t|"),
)
@cases(60)
def test_captions_of_any_kind(folder: Path, rows: list[list[str]], delimiter: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([["image", "caption"], ["a.png", "red"], *rows])
    path = folder / "captions.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))
    read(path)


FILES = {
    **{f"{kind}.jsonl": _lines([row, {**row, "id": "b"}]).encode() for kind, row in ROWS.items()},
    "karpathy.json": json.dumps(KARPATHY).encode(),
    "coco.json": json.dumps(COCO).encode(),
    "captions.csv": b'image,caption\na.png,red\nb.png,"blue, or not"\n',
}


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@cases(30)
def test_damaged_files(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged(FILES[name])))
    read(path)


@given(data=st.data())
@cases(5, seconds=60)
def test_parquet(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("parquet")
    Image.new("RGB", (6, 4)).save(folder / "a.png")
    kind = data.draw(st.sampled_from(sorted(ROWS)))
    row = data.draw(mutated({**ROWS[kind], "images": [{"bytes": None, "path": "a.png"}]}))
    try:
        table = pyarrow.Table.from_pylist([row] if isinstance(row, dict) else [])
        pyarrow.parquet.write_table(table, folder / "rows.parquet")
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return  # no such table can be written
    path = folder / "rows.parquet"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    read(path)


@pytest.mark.parametrize("deep", [100, 2_000, 100_000])
@pytest.mark.parametrize("kind", ROWS)
def test_deep_nesting(folder: Path, kind: str, deep: int) -> None:
    for key in ROWS[kind]:
        line = json.dumps({**ROWS[kind], key: "HERE"}).replace('"HERE"', "[" * deep + "]" * deep)
        path = folder / "deep.jsonl"
        path.write_text(_lines([ROWS[kind]]) + line + "\n", encoding="utf-8")
        read(path)
