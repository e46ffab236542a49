"""Groups that stay in their file: the same as read at once, for any index, in any process."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cwdpo.data.jsonl_dataset import MappedGroups, StoredGroups
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import RunError
from cwdpo.files import write_jsonl


def groups(count: int, folder: Path) -> list[PromptGroup]:
    """Return rows of several lengths, with characters of several bytes."""
    image = ImageRef(path=str(folder / "a.png"))
    return [
        PromptGroup(f"g{i}", (image,), (user_message("?"),), (Response("é" * i + f"中 {i}"),), origin=f"f:{i}")
        for i in range(count)
    ]


def stored(count: int, folder: Path) -> StoredGroups:
    """Write rows and open them."""
    write_jsonl(folder / "rows.jsonl", (group.to_json() for group in groups(count, folder)))
    return StoredGroups(folder / "rows.jsonl", folder)


def test_rows_are_those_that_were_written_by_index_slice_and_order(tmp_path: Path) -> None:
    rows, lazy = groups(37, tmp_path), stored(37, tmp_path)
    assert len(lazy) == 37
    assert list(lazy) == rows
    assert [lazy[i] for i in (36, 0, -1, -37, 12)] == [rows[i] for i in (36, 0, -1, -37, 12)]
    assert lazy[5:30:7] == rows[5:30:7]
    assert lazy[-3:] == rows[-3:]
    with pytest.raises(IndexError):
        lazy[37]
    # 37 rows and the end; the table is used by the next who opens the file.
    offsets = np.load(tmp_path / "rows.offsets.npy")
    assert len(offsets) == 38
    assert offsets[-1] == (tmp_path / "rows.jsonl").stat().st_size


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert list(stored(0, tmp_path)) == []


def test_blank_lines_and_a_last_line_without_end_are_no_matter(tmp_path: Path) -> None:
    rows = groups(3, tmp_path)
    lines = [json.dumps(group.to_json(), ensure_ascii=False) for group in rows]
    (tmp_path / "rows.jsonl").write_text(f"\n{lines[0]}\n\n\r\n{lines[1]}\r\n{lines[2]}", encoding="utf-8")
    assert list(StoredGroups(tmp_path / "rows.jsonl", tmp_path)) == rows


def test_another_process_opens_the_file_for_itself(tmp_path: Path) -> None:
    lazy = stored(5, tmp_path)
    assert lazy[4].id == "g4"  # the file is open now
    again = pickle.loads(pickle.dumps(lazy))
    assert list(again) == list(lazy)
    child = os.fork()
    if child == 0:
        os._exit(0 if [g.id for g in lazy] == [f"g{i}" for i in range(5)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lazy[0].id == "g0"


def test_a_table_of_another_file_is_made_anew(tmp_path: Path) -> None:
    first = stored(5, tmp_path)
    stamp, table = first.stamp, tmp_path / "rows.offsets.npy"
    old = table.read_bytes()
    again = stored(9, tmp_path)
    assert [g.id for g in again] == [f"g{i}" for i in range(9)]
    assert again.stamp != stamp
    for broken in (old, b"", b"no table", table.read_bytes()[:-3]):
        table.write_bytes(broken)
        assert len(StoredGroups(tmp_path / "rows.jsonl", tmp_path)) == 9


def test_a_damaged_row_is_one_clear_line(tmp_path: Path) -> None:
    stored(3, tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-2] + "]]", lines[2]]) + "\n", encoding="utf-8")
    lazy = StoredGroups(path, tmp_path)
    assert lazy[2].id == "g2"
    with pytest.raises(RunError, match=r"rows\.jsonl: row 2 is damaged .*put the file back"):
        lazy[1]


def test_a_change_is_made_when_a_row_is_read(tmp_path: Path) -> None:
    lazy = stored(4, tmp_path)
    changed = MappedGroups(lazy, _numbered, "numbered")
    assert [g.id for g in pickle.loads(pickle.dumps(changed))] == ["g0-0", "g1-1", "g2-2", "g3-3"]
    assert changed.stamp == f"{lazy.stamp} numbered"


def _numbered(group: PromptGroup, index: int) -> PromptGroup:
    return PromptGroup(f"{group.id}-{index}", group.images, group.messages, group.responses)


def test_a_file_that_lost_whole_rows_is_told(tmp_path: Path) -> None:
    stored(3, tmp_path)
    assert len(StoredGroups(tmp_path / "rows.jsonl", tmp_path, rows=3)) == 3
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text(lines[0] + lines[1])
    with pytest.raises(RunError, match="has 2 rows, the run wrote 3"):
        StoredGroups(tmp_path / "rows.jsonl", tmp_path, rows=3)


def test_only_rank_0_writes_the_table_of_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run directory is held by rank 0, which refuses a file that another process put there."""
    rows = groups(3, tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", (group.to_json() for group in rows))
    for name, value in (("is_available", True), ("is_initialized", True), ("get_rank", 1)):
        monkeypatch.setattr(f"cwdpo.data.jsonl_dataset.distributed.{name}", lambda value=value: value)
    assert list(StoredGroups(tmp_path / "rows.jsonl", tmp_path)) == rows
    assert not (tmp_path / "rows.offsets.npy").exists()
