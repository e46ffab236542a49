"""Shards, image tars and data behind addresses: the same rows and pictures, nothing unpacked."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data import DataSource, ImageLimits, PromptGroup, detect_format, load_groups, open_image
from cwdpo.data.jsonl_dataset import StoredGroups
from cwdpo.data.tables.image_tar import TarMember
from cwdpo.errors import DataError
from cwdpo.files import write_jsonl

COLOURS = ("red", "green", "blue", "yellow")
PAIR = {"prompt": "What?", "chosen": "A square.", "rejected": "A circle.", "references": ["A box."]}


def png(colour: str) -> bytes:
    """Return a small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a plain tar."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, colour: str, **row: Any) -> list[tuple[str, bytes]]:
    """Return the members of a sample."""
    return [(f"{key}.png", png(colour)), (f"{key}.json", json.dumps({**PAIR, **row}).encode())]


def colour_of(group: PromptGroup) -> tuple[int, int, int]:
    """Return the colour of a group's first picture."""
    found: Any = open_image(group.images[0]).getpixel((0, 0))
    return found


def read(path: Any, **options: Any) -> tuple[PromptGroup, ...]:
    """Read a source."""
    return load_groups(DataSource(path=path, workers=1, **options)).groups


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)


def test_samples_of_tars_are_rows_and_their_images_stay_where_they_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000.tar", [*sample("a/000", "red"), *sample("a/001", "green", id="mine")])
    write_tar(tmp_path / "train-001.tar", sample("a/000", "blue", rejected=["x", "y"]))
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path, f"{tmp_path}/train-*.tar", f"{tmp_path}/train-{{000..001}}.tar"):
        groups = read(path, require="pair")
        assert [g.id for g in groups] == ["train-000/a/000", "mine", "train-001/a/000"]
        assert [colour_of(g) for g in groups] == [RED, GREEN, BLUE]
        assert [len(g.responses) for g in groups] == [2, 2, 3]
    assert sorted(tmp_path.rglob("*")) == before
    assert detect_format(tmp_path / "train-000.tar") == "cwdpo" == detect_format(f"{tmp_path}/train-*.tar")


def test_captions_and_several_images_of_a_sample(tmp_path: Path) -> None:
    texts = [("0.jpg", png("red")), ("0.txt", b"A red square."), ("1.jpg", png("blue")), ("1.txt", b"A blue one.")]
    (one, two) = read(write_tar(tmp_path / "t.tar", texts))
    assert (one.chosen.text, two.chosen.text, one.references) == ("A red square.", "A blue one.", ("A red square.",))
    assert (colour_of(one), colour_of(two)) == (RED, BLUE)
    several = [("0.1.png", png("red")), ("0.2.png", png("blue")), ("0.json", json.dumps(PAIR).encode())]
    (group,) = read(write_tar(tmp_path / "several.tar", several))
    assert [open_image(ref).getpixel((0, 0)) for ref in group.images] == [RED, BLUE]


def test_an_image_in_a_tar_goes_through_rows_of_a_run_and_other_processes(tmp_path: Path) -> None:
    groups = read(write_tar(tmp_path / "t.tar", [*sample("0", "red"), *sample("1", "green")]))
    write_jsonl(tmp_path / "rows.jsonl", (g.to_json() for g in groups))
    stored = StoredGroups(tmp_path / "rows.jsonl", tmp_path)
    assert list(stored) == list(groups)
    assert [colour_of(g) for g in pickle.loads(pickle.dumps(stored))] == [RED, GREEN]
    assert stored[0].images[0].digest() == groups[0].images[0].digest()


def test_names_in_a_tar_are_labels_and_nothing_is_written_under_them(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    names = ("../../outside", "/etc/outside", "a/../../outside")
    members = [member for i, name in enumerate(names) for member in sample(name, COLOURS[i])]
    with tarfile.open(inside / "t.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    groups = read(inside / "t.tar")
    assert [colour_of(g) for g in groups] == [RED, GREEN, BLUE]
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "t.tar"]


def test_a_large_picture_in_a_tar_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", sample("0", "red"))
    with pytest.raises(DataError, match=r"t\.tar row 1: image too large: .*t\.tar::0\.png"):
        read(path, limits=ImageLimits(max_pixels=63))


def damaged(tmp_path: Path) -> Iterator[tuple[str, bytes, str]]:
    """Yield tars that cannot be read whole, and what is said."""
    whole = write_tar(tmp_path / "whole.tar", [*sample("0", "red"), *sample("1", "green")]).read_bytes()
    yield "cut.tar", whole[: 3 * 512 + 100], r"cut\.tar: the tar is cut short or damaged after '0\.json'.*copy it again"
    yield "header.tar", whole[: 4 * 512 + 100], r"header\.tar: the tar is cut short or damaged after"
    yield "garbage.tar", whole[: 4 * 512] + b"x" * 2048, r"garbage\.tar: the tar is cut short or damaged after"
    yield "packed.tar", gzip.compress(whole), r"packed\.tar: not a tar that can be read \(compressed or empty"
    yield "empty.tar", b"", r"empty\.tar: not a tar that can be read"
    yield "text.tar", b"hello " * 200, r"text\.tar: not a tar that can be read"
    yield "nothing.tar", b"\0" * 10240, r"nothing\.tar: no samples in this tar"


def test_a_tar_that_is_damaged_is_one_clear_line(tmp_path: Path) -> None:
    for name, content, words in damaged(tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / name, format="cwdpo")
        assert "\n" not in str(caught.value)


def test_bad_samples_are_set_aside(tmp_path: Path) -> None:
    members = [*sample("0", "red"), ("1.png", b"no picture"), ("1.json", json.dumps(PAIR).encode())]
    members += [("2.png", png("red")), ("2.json", b"{"), *sample("3", "blue")]
    data = load_groups(
        DataSource(path=write_tar(tmp_path / "t.tar", members), on_bad_row="skip", max_bad_share=0.6, workers=1)
    )
    assert [g.id for g in data.groups] == ["t/0", "t/3"]
    assert [(bad.file, bad.row, bad.kind) for bad in data.bad_rows] == [
        ("t.tar", 2, "not an image"),
        ("t.tar", 3, "not JSON"),
    ]


def test_a_tar_that_has_changed_says_so(tmp_path: Path) -> None:
    (group,) = read(write_tar(tmp_path / "t.tar", sample("0", "red")))
    (tmp_path / "t.tar").write_bytes(b"short")
    with pytest.raises(DataError, match=r"t\.tar::0\.png: 0 bytes where \d+ should be: the file has changed"):
        open_image(group.images[0])


def test_shards_of_json_lines_and_parquet(tmp_path: Path) -> None:
    import datasets

    rows = [{**PAIR, "image": {"bytes": png(colour), "path": None}} for colour in COLOURS]
    for i in range(2):
        datasets.Dataset.from_list(rows[2 * i : 2 * i + 2]).to_parquet(tmp_path / f"data-{i}.parquet")
        write_jsonl(tmp_path / f"text-{i}.jsonl", [PAIR, PAIR])
    groups = read(f"{tmp_path}/data-{{0..1}}.parquet")
    assert [colour_of(g) for g in groups] == [RED, GREEN, BLUE, YELLOW]
    assert [g.id for g in read(f"{tmp_path}/text-?.jsonl")] == ["text-0-1", "text-0-2", "text-1-1", "text-1-2"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none-*.tar", r"none-\*\.tar: no file fits this pattern"),
        ("a-{3..1}.tar", r"must count upwards"),
        ("mixed.*", r"shards must all be \.jsonl, \.parquet or \.tar files, not \.csv, \.jsonl"),
    ],
)
def test_patterns_that_cannot_be(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "mixed.csv").write_text("image,caption\n")
    write_jsonl(tmp_path / "mixed.jsonl", [PAIR])
    with pytest.raises(DataError, match=words):
        read(f"{tmp_path}/{path}")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    import fsspec

    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def put(system: Any, name: str, content: bytes) -> str:
    system.pipe_file(name, content)
    return f"memory://{name}"


def test_tars_and_tables_behind_addresses(tmp_path: Path, memory: Any) -> None:
    import datasets

    for i, colour in enumerate(("red", "green")):
        put(memory, f"/b/t-{i}.tar", write_tar(tmp_path / "t.tar", sample("0", colour)).read_bytes())
        put(memory, f"/b/r-{i}.jsonl", json.dumps(PAIR).encode())
    for path in ("memory://b/t-*.tar", "memory://b/t-{0..1}.tar"):
        groups = read(path)
        assert [(g.id, colour_of(g)) for g in groups] == [("t-0/0", RED), ("t-1/0", GREEN)]
    member = groups[0].images[0].stored
    assert isinstance(member, TarMember) and member.tar.startswith("memory://")
    write_jsonl(tmp_path / "rows.jsonl", (g.to_json() for g in groups))
    assert [colour_of(g) for g in StoredGroups(tmp_path / "rows.jsonl", tmp_path)] == [RED, GREEN]
    assert [g.id for g in read("memory://b/r-0.jsonl")] == ["r-0-1"]
    assert [g.id for g in read("memory://b/r-*.jsonl")] == ["r-0-1", "r-1-1"]
    assert detect_format("memory://b/r-*.jsonl") == "cwdpo" == detect_format("memory://b/t-0.tar")
    datasets.Dataset.from_list([{**PAIR, "image": {"bytes": png("blue"), "path": None}}]).to_parquet(tmp_path / "p")
    put(memory, "/b/p.parquet", (tmp_path / "p").read_bytes())
    kept = sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*"))  # pyright: ignore[reportAttributeAccessIssue]
    assert [colour_of(g) for g in read("memory://b/*.parquet")] == [BLUE]
    assert sorted(Path(datasets.config.HF_DATASETS_CACHE).rglob("*")) == kept  # pyright: ignore[reportAttributeAccessIssue]
    child = os.fork()
    if child == 0:
        os._exit(0 if colour_of(groups[1]) == GREEN else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("memory://none.jsonl", "memory://none.jsonl: no such file or folder"),
        ("memory://none.tar", "memory://none.tar: no such file or folder"),
        ("zork://a/b.jsonl", "zork://a/b.jsonl: Protocol not known: zork"),
        ("memory://b", "is a folder; give its files as a pattern"),
    ],
)
def test_addresses_that_cannot_be(memory: Any, path: str, words: str) -> None:
    put(memory, "/b/r.jsonl", json.dumps(PAIR).encode())
    with pytest.raises(DataError, match=words) as caught:
        read(path, format="cwdpo")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def without(path: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(DataError, match=r"s3://b/r\.jsonl: Install s3fs to access S3; pip install it, or copy"):
        read("s3://b/r.jsonl", format="cwdpo")


def test_only_a_run_may_name_a_tar_behind_an_address(tmp_path: Path, memory: Any) -> None:
    address = put(memory, "/b/t.tar", write_tar(tmp_path / "t.tar", sample("0", "red")).read_bytes())
    (group,) = read(address)
    write_jsonl(tmp_path / "rows.jsonl", [group.to_json()])
    with pytest.raises(DataError, match="image is an address"):
        read(tmp_path / "rows.jsonl")
    assert colour_of(StoredGroups(tmp_path / "rows.jsonl", tmp_path)[0]) == RED
