"""What is wrong with a file is told in one line that names the file and the row."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data import DataSource, ImageLimits, load_groups, write_rejected
from cwdpo.errors import DataError

GOOD = {"images": ["images/red.png"], "prompt": "What is it?", "chosen": "red", "rejected": "blue"}
TURN = {"role": "user", "content": "What is it?"}
SWIFT = {"messages": [TURN, {"role": "assistant", "content": "red"}], "rejected_response": "blue"}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "What?"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


BAD_ROWS: dict[str, tuple[str, Any, str]] = {
    "missing image": ("trl", GOOD | {"images": ["images/none.png"]}, r"image missing: .*none\.png: no such file"),
    "truncated image": ("trl", GOOD | {"images": ["images/cut.png"]}, r"image truncated or damaged: .*cut\.png"),
    "image is text": ("trl", GOOD | {"images": ["images/text.png"]}, r"not an image: .*text\.png"),
    "image is empty": ("trl", GOOD | {"images": ["images/empty.png"]}, r"image is empty: .*empty\.png"),
    "image bomb": ("trl", GOOD | {"images": ["images/bomb.png"]}, r"image too large: .*600 x 600 = 360,000 pixels"),
    "image is a folder": ("trl", GOOD | {"images": ["images"]}, "image is not a file"),
    "image is an address": ("trl", GOOD | {"images": ["s3://x/a.png"]}, "only files, http and https are read"),
    "image path climbs out": ("trl", GOOD | {"images": ["../../etc/a.png"]}, "climbs out of .* set image_root"),
    "image path with a zero byte": ("trl", GOOD | {"images": ["a\0b.png"]}, "bad image path"),
    "image is a number": ("trl", GOOD | {"images": [3]}, r"an image must be a path or \{bytes, path\}, not a number"),
    "image without bytes": ("trl", GOOD | {"image": {"bytes": None, "path": None}, "images": None}, "neither bytes"),
    "empty chosen": ("trl", GOOD | {"chosen": " \n"}, "empty response: the chosen response"),
    "empty rejected": ("trl", GOOD | {"rejected": ""}, "empty response: the rejected response"),
    "chosen equals rejected": ("trl", GOOD | {"rejected": " red\n"}, "chosen equals rejected: .*whitespace"),
    "missing column": ("trl", without(GOOD, "rejected"), "missing column: 'rejected' is not in the row"),
    "null column": ("trl", GOOD | {"chosen": None}, "missing column: 'chosen' is null"),
    "no prompt": ("trl", without(GOOD, "prompt"), "'prompt' is not in the row"),
    "empty prompt": ("trl", without(GOOD, "images") | {"prompt": " "}, "empty prompt"),
    "wrong type of prompt": ("trl", GOOD | {"prompt": 5}, "prompt must be a list, not a number"),
    "wrong type of answer": ("cwdpo", GOOD | {"chosen": 5}, "chosen must be text, not a number"),
    "row is a list": ("trl", [1, 2], "a row must be an object, not a list"),
    "not JSON": ("trl", '{"prompt": "What', r"not JSON: Unterminated string.* at column 12"),
    "nested too deep": ("trl", "[" * 100_000, "not JSON"),
    "half a surrogate pair": ("trl", '{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}', "half of a surrogate"),
    "one tag, two images": (
        "trl",
        GOOD | {"prompt": "<image> What?", "images": ["images/red.png", "images/green.png"]},
        "image count mismatch: 1 image tags or parts in the prompt, 2 images in the row",
    ),
    "two tags, one image": ("cwdpo", GOOD | {"prompt": "<image><image>"}, "image count mismatch: 2 .*, 1 images"),
    "tag without an image": (
        "swift",
        SWIFT | {"messages": [TURN | {"content": "<image>?"}, SWIFT["messages"][1]]},
        "1 image",
    ),
    "unknown role": ("trl", GOOD | {"prompt": [{"role": "owl", "content": "hoo"}]}, "unknown role: .*'owl'"),
    "unknown part": (
        "trl",
        GOOD | {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        "'video'; known: text",
    ),
    "content is an object": (
        "trl",
        GOOD | {"prompt": [{"role": "user", "content": {}}]},
        "must be text or a list of parts",
    ),
    "prompt ends with an answer": (
        "trl",
        GOOD | {"prompt": [TURN, {"role": "assistant", "content": "red"}]},
        "must be user",
    ),
    "no user turn": ("trl", GOOD | {"prompt": [{"role": "system", "content": "Be kind"}]}, "no user turn"),
    "answer of two turns": (
        "trl",
        GOOD | {"prompt": [TURN], "chosen": [{"role": "assistant", "content": "a"}, TURN], "rejected": "b"},
        "chosen has assistant, user after the prompt",
    ),
    "image in an answer": ("swift", SWIFT | {"rejected_response": "<image> blue"}, "only prompts may hold images"),
    "tool calls": ("trl", GOOD | {"prompt": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "tool_calls"),
    "unknown difficulty": (
        "cwdpo",
        GOOD | {"negatives": [{"text": "x", "difficulty": "cruel"}]},
        "'cruel'; known: hard",
    ),
    "negative is text": ("cwdpo", GOOD | {"negatives": ["x"]}, r"negatives\[0\] must be an object, not text"),
    "facts are a list": ("cwdpo", GOOD | {"facts": [1]}, "facts must be an object, not a list"),
    "facts are no JSON": ("cwdpo", GOOD | {"facts": "{"}, "facts must be an object or JSON"),
    "empty reference": ("cwdpo", GOOD | {"references": ["a", ""]}, "empty reference"),
    "id is a list": ("cwdpo", GOOD | {"id": [1]}, "id must be text or a whole number"),
    "id is empty": ("cwdpo", GOOD | {"id": ""}, "id must be text or a whole number, not empty"),
    "id twice": ("cwdpo", GOOD | {"id": "first"}, "duplicate id: 'first' is also the id of row 1"),
    "nothing rejected": ("cwdpo", without(GOOD, "rejected"), "no rejected response"),
    "swift without an answer": (
        "swift",
        SWIFT | {"messages": [TURN]},
        "the last turn of messages must be the assistant's",
    ),
    "swift with two prompts": (
        "swift",
        without(SWIFT, "rejected_response")
        | {"rejected_messages": [{"role": "user", "content": "Else?"}, {"role": "assistant", "content": "x"}]},
        "two prompts: rejected_messages",
    ),
    "swift with two images": (
        "swift",
        without(SWIFT, "rejected_response")
        | {
            "images": ["images/red.png"],
            "rejected_images": ["images/green.png"],
            "rejected_messages": SWIFT["messages"],
        },
        "two pictures: rejected_images",
    ),
    "swift with other images for another answer": (
        "swift",
        SWIFT | {"images": ["images/red.png"], "rejected_images": ["images/green.png"]},
        "two pictures: rejected_images",
    ),
    "swift with other images alone": (
        "swift",
        without(SWIFT, "rejected_response") | {"images": ["images/red.png"], "rejected_images": ["images/green.png"]},
        "two pictures: rejected_images",
    ),
    "swift with a video": ("swift", SWIFT | {"videos": ["a.mp4"]}, "video or sound: videos"),
    "trl with sound": ("trl", GOOD | {"audio": "a.wav"}, "video or sound: audio"),
    "swift marked as bad": (
        "swift",
        without(SWIFT, "rejected_response") | {"label": False},
        "bad answer: label is false",
    ),
    "llamafactory marked as bad": (
        "llamafactory",
        without(SHAREGPT, "chosen", "rejected") | {"kto_tag": False},
        "bad answer: kto_tag is false",
    ),
    "llamafactory role": (
        "llamafactory",
        SHAREGPT | {"chosen": {"from": "me", "value": "a"}},
        "chosen.from = 'me'; known",
    ),
    "llamafactory call": (
        "llamafactory",
        SHAREGPT | {"conversations": [{"from": "function_call", "value": "f"}]},
        "a function",
    ),
    "llamafactory answer": (
        "llamafactory",
        SHAREGPT | {"rejected": 3},
        "rejected must be text or one turn, not a number",
    ),
    "llamafactory half": ("llamafactory", without(SHAREGPT, "chosen"), "'chosen' is not in the row"),
    "alpaca history": (
        "llamafactory",
        {"instruction": "a", "chosen": "b", "rejected": "c", "history": [["x"]]},
        r"history\[0\] must be a question and an answer",
    ),
}

FIRST = {
    "trl": GOOD,
    "cwdpo": GOOD | {"id": "first"},
    "swift": SWIFT,
    "llamafactory": SHAREGPT,
}


@pytest.fixture
def damaged(pictures: Path) -> Path:
    folder = pictures / "images"
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").touch()
    Image.new("RGB", (600, 600)).save(folder / "bomb.png")
    return pictures


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_one_line_with_file_row_and_reason(damaged: Path, jsonl, name: str) -> None:
    format_name, row, words = BAD_ROWS[name]
    path = jsonl(damaged / "train.jsonl", [FIRST[format_name], row])
    limits = ImageLimits(max_pixels=300_000)
    source = DataSource(path=path, format=format_name, require="pair", limits=limits)
    with pytest.raises(DataError) as caught:
        load_groups(source)
    message = str(caught.value)
    assert message.startswith("train.jsonl row 2: ")
    assert re.search(words, message)
    assert message.endswith("; fix the row or set data.on_bad_row: skip")
    assert "\n" not in message
    kept = load_groups(
        DataSource(path=path, format=format_name, require="pair", limits=limits, on_bad_row="skip", max_bad_share=0.5)
    )
    assert (len(kept.groups), kept.rows, [bad.row for bad in kept.bad_rows]) == (1, 2, [2])
    assert re.search(words, kept.bad_rows[0].reason)
    write_rejected(damaged / "rejected_rows.jsonl", kept.bad_rows)
    (line,) = [json.loads(text) for text in (damaged / "rejected_rows.jsonl").read_text().splitlines()]
    assert line.keys() == {"file", "row", "reason", "raw"}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p / "none.jsonl", "none.jsonl: no such file or folder"),
    "no path": (lambda p: "", "data.path is empty"),
    "name too long": (lambda p: p / ("x" * 300 + ".jsonl"), "cannot be read"),
    "empty JSONL": (lambda p: write(p / "a.jsonl", ""), "a.jsonl: the file is empty"),
    "blank JSONL": (lambda p: write(p / "a.jsonl", "\n \n"), "a.jsonl: no rows"),
    "empty JSON": (lambda p: write(p / "a.json", ""), "a.json: the file is empty"),
    "empty list": (lambda p: write(p / "a.json", "[]"), "a.json: no rows"),
    "a number": (lambda p: write(p / "a.json", "3"), "must hold a list of rows"),
    "half a list": (lambda p: write(p / "a.json", '[{"a": 1},\n{'), "a.json: not JSON .* at line 2 column 2"),
    "binary JSONL": (lambda p: write(p / "a.jsonl", bytes(range(256)) * 4), "a.jsonl: not JSON lines but binary"),
    "UTF-16": (lambda p: write(p / "a.jsonl", '{"prompt": "a"}'.encode("utf-16")), "UTF-16; it must be UTF-8"),
    "prose": (lambda p: write(p / "a.jsonl", "Once upon a time\n" * 3), "a.jsonl: not JSON lines; row 1: not JSON"),
    "latin-1 JSON": (lambda p: write(p / "a.json", '["é"]'.encode("latin-1")), "not UTF-8 text"),
    "empty folder": (lambda p: write(p / "d/x.bin", "x").parent, "no data in this folder"),
    "two data files": (
        lambda p: (write(p / "d/a.jsonl", "{}"), write(p / "d/b.jsonl", "{}").parent)[1],
        "several data files",
    ),
    "unknown suffix": (
        lambda p: write(p / "a.xlsx", "x"),
        "its suffix '.xlsx'; set data.format",
    ),
    "unknown columns": (
        lambda p: write(p / "a.jsonl", '{"q": 1, "a": 2}\n'),
        "columns a, q: set data.columns",
    ),
    "broken Parquet": (lambda p: write(p / "a.parquet", b"PAR1 and so on"), "a.parquet: not a Parquet file"),
    "broken dataset": (lambda p: write(p / "d/state.json", "{}").parent, "d: not a saved dataset"),
    "CSV without captions": (lambda p: write(p / "a.csv", "x,y\n1,2\n"), "needs an image column"),
    "CSV without rows": (lambda p: write(p / "a.csv", "image,caption\n"), "a.csv: no rows below the header"),
    "binary CSV": (lambda p: write(p / "a.csv", b"\xff\xfe\x00"), "a.csv: not UTF-8"),
    "Karpathy without images": (
        lambda p: write(p / "a.json", '{"images": [{"sentences": 1}]}'),
        "no image of split 'train'",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    make, words = BAD_FILES[name]
    with pytest.raises(DataError) as caught:
        load_groups(DataSource(path=make(tmp_path)))  # pyright: ignore[reportArgumentType]
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "excel"}, "data.format: excel: no such format of rows; known: align_anything"),
        ({"on_bad_row": "ask"}, "data.on_bad_row = 'ask'"),
        ({"max_bad_share": 5}, "data.max_bad_share = 5"),
        ({"require": "all"}, "require = 'all'"),
        ({"limit": 0}, "data.limit = 0"),
        ({"workers": 0}, "data.workers = 0"),
        ({"captions": "best"}, "captions = 'best'"),
        ({"image_root": "/no/such/folder"}, "data.image_root = '/no/such/folder': no such folder"),
    ],
)
def test_an_option_that_cannot_be(pictures: Path, jsonl, options: dict[str, Any], words: str) -> None:
    path = jsonl(pictures / "a.jsonl", [GOOD])
    with pytest.raises(DataError, match=re.escape(words)):
        load_groups(DataSource(path=path, **options))


def test_captions_lines_that_are_bad_are_told_by_their_line(pictures: Path) -> None:
    text = "image,caption\nred.png,one\nred.png,two, three\ngreen.png,\nblue.jpg\nnone.png,four\n"
    (pictures / "captions.csv").write_text(text)
    data = load_groups(DataSource(path=pictures, on_bad_row="skip", max_bad_share=0.9))
    assert [g.id for g in data.groups] == ["red.png"]
    reasons = [(bad.row, bad.kind) for bad in data.bad_rows]
    assert reasons == [
        (3, "wrong number of fields"),  # an unquoted comma
        (4, "empty caption"),
        (5, "wrong number of fields"),
        (6, "image missing"),
    ]


def test_karpathy_rows_that_are_bad(pictures: Path) -> None:
    def image(filename: Any, *captions: Any) -> dict[str, Any]:
        return {"filename": filename, "split": "train", "sentences": [{"raw": c} for c in captions]}

    images = [
        image("red.png", "a"),
        image("none.png", "a"),
        image("green.png"),
        image("blue.jpg", 3),
        image(7, "a"),
        "x",
    ]
    images.insert(0, image("long" * 100, "a"))  # no file can have this name
    path = pictures / "k.json"
    path.write_text(json.dumps({"images": images}))
    data = load_groups(DataSource(path=path, on_bad_row="skip", max_bad_share=0.9))
    assert [(bad.row, bad.kind) for bad in data.bad_rows] == [
        (1, "image cannot be read"),
        (3, "image missing"),
        (4, "no caption"),
        (5, "wrong type"),
        (6, "wrong type"),
        (7, "wrong type"),
    ]
    assert len(data.groups) == 1


def test_too_many_bad_rows_name_the_share_the_limit_and_the_three_most_common_reasons(pictures: Path, jsonl) -> None:
    # 20 rows: 4 equal, 3 empty, 2 without an image, 1 without a prompt: 10 of 20 = 50.0 %.
    bad = [GOOD | {"rejected": "red"}] * 4 + [GOOD | {"chosen": ""}] * 3
    bad += [GOOD | {"images": ["none.png"]}] * 2 + [without(GOOD, "prompt")]
    path = jsonl(pictures / "t.jsonl", [*[GOOD] * 10, *bad])
    with pytest.raises(DataError) as caught:
        load_groups(DataSource(path=path, on_bad_row="skip", max_bad_share=0.25))
    assert "10 of 20 rows are bad, 50.0%, more than data.max_bad_share = 25.0%" in str(caught.value)
    assert "chosen equals rejected (4), empty response (3), image missing (2);" in str(caught.value)
    assert "the first is row 11: chosen equals rejected" in str(caught.value)
    data = load_groups(DataSource(path=path, on_bad_row="skip", max_bad_share=0.5))
    assert [row.row for row in data.bad_rows] == list(range(11, 21))


def test_all_rows_bad_is_refused_whatever_the_limit(pictures: Path, jsonl) -> None:
    path = jsonl(pictures / "t.jsonl", [GOOD | {"rejected": "red"}])
    with pytest.raises(DataError, match=r"1 of 1 rows are bad, 100\.0%"):
        load_groups(DataSource(path=path, on_bad_row="skip", max_bad_share=1))


def test_without_image_checks_only_missing_files_are_found(damaged: Path, jsonl) -> None:
    rows = [GOOD | {"images": [f"images/{n}.png"]} for n in ("red", "cut", "none")]
    data = load_groups(
        DataSource(path=jsonl(damaged / "t.jsonl", rows), check_images=False, on_bad_row="skip", max_bad_share=0.9)
    )
    assert [bad.row for bad in data.bad_rows] == [3]


def test_limit_workers_and_progress(pictures: Path, jsonl) -> None:
    path = jsonl(pictures / "t.jsonl", [GOOD, GOOD | {"images": ["images/green.png"]}, "not JSON"])
    calls: list[tuple[int, int]] = []
    data = load_groups(DataSource(path=path, limit=2, workers=1), progress=lambda done, of: calls.append((done, of)))
    assert (len(data.groups), data.rows, calls) == (2, 2, [(1, 2), (2, 2)])


def test_parquet_with_text_that_is_not_utf_8(pictures: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"\x80", b"what"]).view(pyarrow.string())
    table = pyarrow.table({"images": ["red.png"] * 2, "prompt": texts, "chosen": ["a"] * 2, "rejected": ["b"] * 2})
    pyarrow.parquet.write_table(table, pictures / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet.*can be read .*utf-8"):
        load_groups(DataSource(path=pictures / "rows.parquet"))
    with pytest.raises(DataError, match=r"row 1 cannot be read .*utf-8"):
        load_groups(DataSource(path=pictures / "rows.parquet", format="cwdpo"))
