"""Data that would hang, fill the memory, be misread or be trained under another picture: one line, or bad rows."""

import base64
import io
import json
import os
import socket
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cwdpo.data import DataSource, ImageRef, load_groups, open_image
from cwdpo.errors import DataError

GOOD = {"image": "images/red.png", "prompt": "What is it?", "chosen": "red", "rejected": "blue"}


def reason(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_groups(DataSource(path=path, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def special(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            before = Path.cwd()
            os.chdir(path.parent)  # names of sockets are short
            listener.bind(path.name)
            os.chdir(before)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/dev/stdin")
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tar", "a.parquet", "dataset_info.json"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str, name: str) -> None:
    path = special(tmp_path / "d" / name, kind)
    assert str(path.name) in reason(path)
    if name not in ("a.csv", "dataset_info.json"):
        assert str(path.name) in reason(path.parent)
        reason(f"{path.parent}/*{path.suffix}")
    for format_name in ("cwdpo", "captions", "karpathy", "coco"):
        assert str(path.name) in reason(path, format=format_name)
    reason(path, format="llamafactory")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_one_of_several_files_is_no_file(pictures: Path, jsonl, kind: str) -> None:
    jsonl(pictures / "s-0.jsonl", [GOOD])
    special(pictures / "s-1.jsonl", kind)
    assert "s-1.jsonl" in reason(f"{pictures}/s-*.jsonl")
    assert "s-1.jsonl" in reason(f"{pictures}/s-{{0..1}}.jsonl")


@pytest.mark.parametrize(
    "pattern", ["s-{0..99999}-{0..99999}.jsonl", "s-{0..9999999999}.jsonl", "s-{5..1}.jsonl", f"s-{{0..{'9' * 400}}}.j"]
)
def test_braces_that_name_too_many_shards(tmp_path: Path, pattern: str) -> None:
    assert "s-" in reason(tmp_path / pattern)


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header of a tar with a size in base 256, as large or as far below 0 as it may be."""
    head = bytearray(512)
    head[: len(name)] = name
    head[100:124] = b"0000644\0" + b"0000000\0" * 2
    head[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")
    head[136:148], head[156:157], head[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def pax(**fields: str) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = fields
    return info.tobuf(tarfile.PAX_FORMAT)


TARS = {
    "PAX header of 20 GiB": header(b"x", 20 << 30, b"x"),
    "global header of 20 GiB": header(b"g", 20 << 30, b"g"),
    "long name of 20 GiB": header(b"l", 20 << 30, b"L"),
    "long link of 20 GiB": header(b"k", 20 << 30, b"K"),
    "header below 0": header(b"x", -1024, b"x"),
    "member of 4 EiB": header(b"a.png", 2**62) + bytes(1536),
    "member of 2^87": header(b"a.png", 2**87) + bytes(1536),
    "member below 0": header(b"a.png", -1024) + bytes(1536),
    "member that ends where it begins": header(b"a.png", -512) * 3,
    "text below 0": header(b"a.txt", -1) + bytes(1536),
    "JSON of 4 EiB": header(b"a.json", 2**62) + bytes(1536),
    "unknown type below 0": header(b"a.png", -4096, b"Z") * 3,
    "size in a PAX header": pax(size="-5120") + bytes(1536),
    "size in words": pax(size="many") + bytes(1536),
    "sparse in words": pax(**{"GNU.sparse.major": "x", "GNU.sparse.minor": "y", "GNU.sparse.size": "z"}) + bytes(1536),
    "headers before headers": pax(comment="x")[:1024] * 3000 + header(b"a.png", 0) + bytes(1024),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_lies_is_one_line_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(TARS[name])
    if "GiB" in name:
        os.truncate(path, (20 << 30) + 4096)
    tracemalloc.start()
    assert "a.tar" in reason(path)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_a_sample_with_more_than_memory_holds(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(1001):
            tar.addfile(tarfile.TarInfo(f"one.{i}.png"), io.BytesIO())
    assert "'one'" in reason(tmp_path / "a.tar")


QUOTES = {
    "to the end": ('b.png,"open\n', [3]),
    "closed in a later row": ('b.png,"open\nc.png,x\nd.png,"closed"\n', [3]),
    "closed in the middle of a later row": ('b.png,"open\nc.png,5"" screen\nd.png,a "dog"\n', [3]),
    "in an image's name": ('"b.png,open\nc.png,x\n', [3]),
    "text after a quote": ('b.png,"a dog" runs\nc.png,x\n', [3]),
    "twice": ('b.png,"open\nc.png,x\nd.png,"open\ne.png,x\n', [3, 5]),
    "in numbers without an ending": ('17,"open\n18,x\n19,closed"\n', [3]),
    "a field without an end": (f'b.png,"{"x" * 200_000}"\nc.png,x\n', [3]),
}


@pytest.mark.parametrize("name", QUOTES)
def test_no_row_vanishes_in_a_quote(tmp_path: Path, name: str) -> None:
    text, lines = QUOTES[name]
    (tmp_path / "captions.csv").write_text(f"image,caption\na.png,first\n{text}")
    source = DataSource(path=tmp_path, on_bad_row="skip", max_bad_share=0.9, need_images=False)
    data = load_groups(source)
    assert [bad.row for bad in data.bad_rows] == lines
    assert data.rows == 1 + text.count("\n")
    assert f"row {lines[0]}:" in reason(tmp_path, need_images=False)


def test_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption, Caption\na.png,x,y\n")
    assert "twice" in reason(tmp_path / "captions.csv")


ODD_SAMPLES: dict[str, list[tuple[str, bytes, bytes]]] = {
    "a picture that is a link": [("b.png", b"", tarfile.SYMTYPE), ("b.json", b"{}", tarfile.REGTYPE)],
    "a picture that is a hard link": [("b.png", b"", tarfile.LNKTYPE), ("b.txt", b"x", tarfile.REGTYPE)],
    "a text that is a device": [("b.png", b"x", tarfile.REGTYPE), ("b.txt", b"", tarfile.CHRTYPE)],
    "two rows": [(f"b.{name}.json", b"{}", tarfile.REGTYPE) for name in "xy"],
    "pictures that are not in it": [("b.json", b'{"image": "b.png", "prompt": "x", "chosen": "y"}', tarfile.REGTYPE)],
}


@pytest.mark.parametrize("name", ODD_SAMPLES)
def test_a_sample_is_not_trained_without_what_it_names(tmp_path: Path, name: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    row = json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        good = [("a.png", picture.getvalue(), tarfile.REGTYPE), ("a.json", row, tarfile.REGTYPE)]
        for member, content, kind in (*good, *ODD_SAMPLES[name]):
            info = tarfile.TarInfo(member)
            info.type, info.linkname = kind, "a.png"
            content = row if content == b"{}" else content
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = load_groups(DataSource(path=tmp_path / "a.tar", on_bad_row="skip", max_bad_share=0.9))
    assert data.rows == 2 and len(data.groups) == 1 and [bad.row for bad in data.bad_rows] == [2]


def test_more_pictures_than_a_row_may_have(pictures: Path, jsonl) -> None:
    row = {"images": ["images/red.png"] * 1001, "prompt": "What is it?", "chosen": "red", "rejected": "blue"}
    assert "1,000" in reason(jsonl(pictures / "a.jsonl", [row]), format="cwdpo")


def test_a_caption_of_several_lines_stays_one(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text('image,caption\na.png,"A dog,\nrunning, fast"\nb.png,"5"" wide"\n')
    groups = load_groups(DataSource(path=tmp_path, need_images=False)).groups
    assert [g.chosen.text for g in groups] == ["A dog,\nrunning, fast", '5" wide']


@pytest.mark.parametrize(
    "row",
    [
        GOOD | {"prompt": "a" * 1001},
        GOOD | {"chosen": "a" * 1001},
        GOOD | {"rejected": ["a" * 500, "b" * 501]},
        GOOD | {"references": ["a" * 1001]},
        {"image": "images/red.png", "prompt": [{"role": "user", "content": "a" * 600}] * 2, "chosen": "a"},
    ],
)
def test_a_long_text_is_a_bad_row(pictures: Path, jsonl, row: dict[str, Any]) -> None:
    path = jsonl(pictures / "a.jsonl", [GOOD, row])
    assert "a.jsonl row 2: text too long" in reason(path, text_limit=1000, format="cwdpo")
    (bad,) = load_groups(
        DataSource(path=path, format="cwdpo", text_limit=1000, on_bad_row="skip", max_bad_share=0.9)
    ).bad_rows
    assert len(bad.raw) < 400
    assert len(load_groups(DataSource(path=path, format="cwdpo")).groups) == 2


def test_a_long_line_is_a_bad_row_and_not_held(pictures: Path, jsonl) -> None:
    path = jsonl(pictures / "a.jsonl", [GOOD, json.dumps(GOOD | {"note": "a" * 30_000_000}), GOOD, "b" * 5000])
    tracemalloc.start()
    data = load_groups(DataSource(path=path, format="cwdpo", row_limit=1000, on_bad_row="skip", max_bad_share=0.9))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert (len(data.groups), [(b.row, b.kind) for b in data.bad_rows]) == (
        2,
        [(2, "row too long"), (4, "row too long")],
    )


def test_a_key_twice(pictures: Path, jsonl) -> None:
    twice = json.dumps(GOOD)[:-1] + ', "chosen": "green"}'
    inside = json.dumps(GOOD | {"negatives": [1]}).replace("[1]", '[{"text": "a", "text": "b"}]')
    path = jsonl(pictures / "a.jsonl", [GOOD, twice, inside])
    options: dict[str, Any] = {"on_bad_row": "skip", "max_bad_share": 0.9}
    path.with_suffix(".json").write_text(f"[{json.dumps(GOOD)}, {twice}, {inside}]")
    for file in (path, path.with_suffix(".json")):
        bad = load_groups(DataSource(path=file, **options)).bad_rows
        assert [(b.row, b.kind) for b in bad] == [(2, "key twice"), (3, "key twice")]
    (pictures / "k.json").write_text('{"images": [], "images": []}')
    assert "'images'" in reason(pictures / "k.json", format="karpathy")


def user(image: Any = None) -> dict[str, Any]:
    part = {"type": "image"} if image is None else {"type": "image", "image": image}
    return {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


RED, GREEN = "images/red.png", "images/green.png"
TWO_PICTURES: dict[str, dict[str, Any]] = {
    "implicit prompt": {"chosen": [user(RED), says("a")], "rejected": [user(GREEN), says("b")]},
    "prompt of another": {
        "prompt": [user(RED)],
        "chosen": [user(GREEN), says("a")],
        "rejected": [user(GREEN), says("b")],
    },
    "one of another": {"prompt": [user(RED)], "chosen": [user(RED), says("a")], "rejected": [user(GREEN), says("b")]},
    "images beside messages": {"images": [RED], "prompt": [user(GREEN)], "chosen": "a", "rejected": "b"},
    "ms-swift": {"messages": [user(RED), says("a")], "rejected_messages": [user(GREEN), says("b")]},
    "in a response": {"image": RED, "prompt": "?", "chosen": "a", "negatives": [{"text": "b", "image": GREEN}]},
    **{
        name: {"image": RED, "prompt": "?", "chosen": "a", "rejected": "b", name: GREEN}
        for name in (
            "rejected_images",
            "rejected_image",
            "image_rejected",
            "images_l",
            "img_neg",
            "rejectedImage",
            "worse_picture",
        )
    },
    "each of its own": {"image_chosen": RED, "image_rejected": GREEN, "prompt": "?", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("name", TWO_PICTURES)
def test_answers_about_two_pictures_are_refused(pictures: Path, jsonl, name: str) -> None:
    assert "a.jsonl row 1: " in reason(jsonl(pictures / "a.jsonl", [TWO_PICTURES[name]]))


def test_answers_about_one_picture_named_twice(pictures: Path, jsonl) -> None:
    rows = [
        {"images": [RED], "rejected_images": [RED], "prompt": "?", "chosen": "a", "rejected": "b"},
        {"chosen": [user(RED), says("a")], "rejected": [user(RED), says("b")]},
        {"prompt": [user(RED)], "chosen": [user(), says("a")], "rejected": [user(), says("b")]},
        {"images": [RED], "prompt": [user(RED)], "chosen": "a", "rejected": "b"},
    ]
    for row in rows:
        (group,) = load_groups(DataSource(path=jsonl(pictures / "a.jsonl", [row]))).groups
        assert [Path(image.path or "").name for image in group.images] == ["red.png"]
        assert [r.text for r in group.responses] == ["a", "b"]


TURN = {"role": "assistant", "content": "a"}
UNTRAINED: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"name": "zoom"}]},
    "tools as text": {"tools": '[{"name": "zoom"}]'},
    "documents": {"documents": [{"text": "x"}]},
    "template settings": {"chat_template_kwargs": {"enable_thinking": True}},
    "reasoning": {"chosen": [TURN | {"reasoning_content": "hm"}]},
    "thinking": {"chosen": [TURN | {"thinking": "hm"}]},
    "tool calls": {"chosen": [TURN | {"tool_calls": [{"id": 1}]}]},
    "name": {"prompt": [{"role": "user", "content": "?", "name": "Ann"}]},
    "not trained": {"chosen": [TURN | {"loss": False}]},
    "size of a picture": {
        "image": None,
        "prompt": [{"role": "user", "content": [{"type": "image", "image": RED, "max_pixels": 784}, {"text": "?"}]}],
    },
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_would_not_be_trained_on_is_refused_by_name(pictures: Path, jsonl, name: str) -> None:
    row = {"image": RED, "prompt": "?", "chosen": [TURN], "rejected": "b"} | UNTRAINED[name]
    assert "field that is not trained on" in reason(jsonl(pictures / "a.jsonl", [row]))
    empty = dict.fromkeys(("tools", "documents")) | {"image": RED, "prompt": "?", "rejected": "b"}
    empty["chosen"] = [TURN | {"tool_calls": [], "reasoning_content": "", "loss": True, "id": "x"}]
    assert len(load_groups(DataSource(path=jsonl(pictures / "b.jsonl", [empty]))).groups) == 1


PUBLIC: dict[str, dict[str, Any]] = {
    "RLAIF-V": {"ds_name": "x", "image": RED, "question": "What?", "chosen": "a", "rejected": "b", "idx": 3},
    "RLHF-V": {"image": RED, "image_path": "x.jpg", "text": '{"question": "What?", "chosen": "a", "rejected": "b"}'},
    "MMPR": {"image": RED, "question": "<image>\nWhat?", "chosen": "a", "rejected": "b"},
    "path in a part": {"prompt": [{"role": "user", "content": [{"type": "image", "path": RED}, {"text": "What?"}]}]},
    "OpenAI": {
        "prompt": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "DATA"}}, {"text": "What?"}]}
        ]
    },
    "data: in a list": {"images": ["DATA"], "prompt": "What?"},
    "file:": {"images": ["FILE"], "prompt": "What?"},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_rows_as_they_are_published(pictures: Path, jsonl, name: str) -> None:
    content = (pictures / RED).read_bytes()
    text = json.dumps({"chosen": "a", "rejected": "b"} | PUBLIC[name]) if name != "RLHF-V" else json.dumps(PUBLIC[name])
    text = text.replace("DATA", "data:image/png;base64," + base64.b64encode(content).decode())
    path = jsonl(pictures / "a.jsonl", [text.replace("FILE", (pictures / RED).as_uri())])
    (group,) = load_groups(DataSource(path=path, require="pair")).groups
    assert [p.get("text", "").strip() for m in group.messages for p in m["content"]] == ["", "What?"]
    assert [r.text for r in group.responses] == ["a", "b"]
    assert open_image(group.images[0]).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16"]
)
def test_pictures_in_memory_of_every_mode_show_their_content(mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 4096).reshape(64, 64).astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        picture = grey.convert("L" if mode == "I" else "RGB").convert(mode)
    assert picture.mode == mode
    shown = np.asarray(open_image(ImageRef(picture=picture)).convert("L")).astype(int)
    assert np.abs(shown - np.asarray(grey)).max() <= {"1": 255, "P": 64}.get(mode, 8)
    assert np.abs(shown.mean() - 127.5) < 4
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert ImageRef(picture=picture).digest() == ImageRef(picture=picture.copy()).digest()
    assert ImageRef(picture=picture).digest() != ImageRef(picture=other).digest()


def test_the_orientation_of_a_picture_in_memory_is_part_of_its_digest() -> None:
    picture = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    turned = picture.copy()
    turned.getexif()[0x0112] = 6
    assert open_image(ImageRef(picture=turned)).size == (4, 8)
    assert ImageRef(picture=turned).digest() != ImageRef(picture=picture).digest()
