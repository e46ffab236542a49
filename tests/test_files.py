"""Files that are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cwdpo.errors import RunError
from cwdpo.files import (
    append_jsonl,
    atomic_directory,
    file_digest,
    read_json,
    read_jsonl,
    text_digest,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"é": [1, None, 0.1]})
    assert read_json(tmp_path / "deep" / "a.json") == {"é": [1, None, 0.1]}
    write_text(tmp_path / "t", "é\r\n")
    assert (tmp_path / "t").read_bytes() == "é\r\n".encode()
    rows = [{"text": "a\nb\u2028c"}, {"n": None}]
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert list(read_jsonl(tmp_path / "r.jsonl")) == rows
    append_jsonl(tmp_path / "r.jsonl", {"more": 1})
    assert list(read_jsonl(tmp_path / "r.jsonl")) == [*rows, {"more": 1}]
    append_jsonl(tmp_path / "new" / "r.jsonl", {"n": 1})
    assert list(read_jsonl(tmp_path / "new" / "r.jsonl")) == [{"n": 1}]
    assert not [n for n in names(tmp_path) if ".tmp" in n]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_bytes(path, b"new")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_rows_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", [{"n": 1}])
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "a", [{"n": 1}, object()])
    assert list(read_jsonl(tmp_path / "a")) == [{"n": 1}] and names(tmp_path) == ["a"]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_cut_short_is_left_out(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}, {"b": 2}])
    content = path.read_bytes()
    assert len(content) == 18  # two lines of nine bytes
    path.write_bytes(content[: 18 - cut])
    assert list(read_jsonl(path)) == [{"a": 1}]


def test_directory_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == []
    with atomic_directory(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a").write_text("1")
        assert not target.exists()
    assert names(tmp_path) == ["model", "model/deep", "model/deep/a"]
    with atomic_directory(target) as temporary:
        (temporary / "b").write_text("2")
    assert names(tmp_path) == ["model", "model/b"]


def test_directory_takes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "rest").write_text("x")
    with atomic_directory(tmp_path / "model") as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["model", "model/a"]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # SHA-256 of "abc": FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert text_digest("ab", "c") != text_digest("a", "bc")
    assert text_digest("é") == text_digest("é".encode())
    assert len(text_digest()) == 64
    assert json.loads(json.dumps(text_digest("a"))) == text_digest(b"a")


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", '"x"', "[" * 100_000])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"n": 1}}\n{content}\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"a.jsonl: is damaged \(line 2"):
        list(read_jsonl(tmp_path / "a.jsonl"))
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"a.json: is damaged") as caught:
        read_json(tmp_path / "a.json", n=int)
    assert "\n" not in str(caught.value)
