"""A command replaces and deletes what it wrote itself, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwdpo.errors import RunError
from cwdpo.files import append_jsonl, atomic_directory, claim, read_jsonl, remove, write_json, write_text
from cwdpo.outputs import LIST, OwnedFolder, output, require_replaceable


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the list."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != LIST)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def made(folder: Path) -> Path:
    """A folder that a command wrote some files in."""
    with OwnedFolder(folder, "train"):
        write_json(folder / "data" / "done.json", {"n": 1})
        append_jsonl(folder / "data" / "rows.jsonl", {"n": 1})
        with atomic_directory(folder / "model") as model:
            (model / "weights").write_text("1")
    return folder


# -- folders that a command fills -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", "data/rows.jsonl", "manifest.json", ".x.tmp/deep/a", "empty/"]
)
def test_a_folder_that_holds_anything_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("mine")
    before = content(folder)
    with pytest.raises(RunError, match="project"), OwnedFolder(folder, "train"):
        pass
    assert content(folder) == before and not (folder / LIST).exists()


def test_another_commands_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run"), OwnedFolder(made(tmp_path / "run"), "demo"):
        pass


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), OwnedFolder(tmp_path / "a" / "b", "train"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_only_what_is_listed_is_deleted(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    mine = ["data/notes.txt", "data/deep/rows.jsonl", "model/notes.txt", ".notes.tmp", "data/.rows.jsonl.swp.tmp"]
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "data" / "link").symlink_to(tmp_path)
    (folder / ".done.json.77.tmp").write_text("not beside its file")
    (folder / "data" / ".done.json.77.tmp").write_text("what a killed write left")
    with OwnedFolder(folder, "train"):
        remove(folder / "data")
        with pytest.raises(RunError, match="model"), atomic_directory(folder / "model") as model:
            (model / "weights").write_text("2")
    assert content(folder) == dict.fromkeys(mine, b"mine") | {".done.json.77.tmp": b"not beside its file"}
    assert (folder / "data" / "link").is_symlink()


@pytest.mark.parametrize(
    "write", [write_text, lambda path, text: append_jsonl(path, text), lambda path, _: claim(path)]
)
def test_what_is_not_listed_is_not_written_to(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    (folder / "summary.json").write_text("mine")
    (folder / "stage1").symlink_to(tmp_path)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with OwnedFolder(folder, "train"):
        for name in ("summary.json", "link", "stage1/a"):
            with pytest.raises(RunError, match=name.removesuffix("/a")):
                write(folder / name, "ours")
        write(folder / "free", "ours")
    assert (folder / "summary.json").read_text() == "mine" and not (tmp_path / "elsewhere").exists()


def test_a_file_that_was_edited_is_not_written_to(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with OwnedFolder(folder, "train") as owned:
        write_json(folder / "data" / "done.json", {"n": 2})
        assert owned.changed("data") is owned.changed("model") is None
        (folder / "data" / "done.json").write_text("edited")
        (folder / "model" / "weights").write_text("x")
        append_jsonl(folder / "data" / "rows.jsonl", {"n": 2})
        assert owned.changed("data") == folder / "data" / "done.json"
        assert owned.changed("model") == folder / "model" / "weights"
        with pytest.raises(RunError, match=r"done\.json"):
            write_json(folder / "data" / "done.json", {"n": 3})
        remove(folder / "data")
    assert content(folder) == {"data/done.json": b"edited", "model/weights": b"x"}


def test_a_kill_between_list_and_file_leaves_both_contents_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "run")
    with OwnedFolder(folder, "train"), monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: os._exit)  # the new content is listed, the old one stands
        for n in (2, 3, 2, 2):
            write_json(folder / "data" / "done.json", {"n": n})
    with (folder / LIST).open("a") as handle:
        handle.write('{"file": "cut sh')
    with OwnedFolder(folder, "train"):
        write_json(folder / "data" / "done.json", {"n": 3})
    assert [row for row in read_jsonl(folder / LIST) if row.get("file") == "cut sh"] == []


def test_a_file_that_grew_is_known_until_it_grows_again(tmp_path: Path) -> None:
    folder, rows = made(tmp_path / "run"), tmp_path / "run" / "data" / "rows.jsonl"
    with OwnedFolder(folder, "train") as owned:
        owned.seal("data")
    with OwnedFolder(folder, "train") as owned:
        assert owned.changed("data") is None
        whole = rows.read_text()
        rows.write_text(whole.replace("1", "2"))
        assert owned.changed("data") == rows
        with pytest.raises(RunError, match=r"rows\.jsonl"):
            append_jsonl(rows, {"n": 2})
        rows.write_text(whole)
        append_jsonl(rows, {"n": 2})
        assert owned.changed("data") is None


def test_names_that_libraries_write(tmp_path: Path) -> None:
    with OwnedFolder(tmp_path / "run", "train") as owned:
        owned.claim_names("checkpoints/checkpoint-*")
        deep = tmp_path / "run" / "checkpoints" / "checkpoint-3" / "deep"
        deep.mkdir(parents=True)
        (deep / "a").write_text("ours")
        (tmp_path / "run" / "checkpoints" / "notes").write_text("mine")
        remove(tmp_path / "run" / "checkpoints")
    assert content(tmp_path / "run") == {"checkpoints/notes": b"mine"}


# -- locks ------------------------------------------------------------------------------------------------------------


def test_one_at_a_time_whatever_is_deleted(tmp_path: Path) -> None:
    with OwnedFolder(tmp_path / "run", "train"):
        for file in (tmp_path / "run").iterdir():
            file.unlink()
        with pytest.raises(RunError, match="run"), OwnedFolder(tmp_path / "run", "train"):
            pass
    made(tmp_path / "run")


@pytest.fixture
def no_folder_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: a lock needs a file that is open for writing."""
    original = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.fstat(descriptor).st_mode & 0o040000:
            raise OSError(errno.EBADF, "Bad file descriptor")
        original(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_folder_locks")
def test_a_file_system_that_locks_no_folders(tmp_path: Path) -> None:
    with made_again(tmp_path / "run"), pytest.raises(RunError, match="run"), OwnedFolder(tmp_path / "run", "train"):
        pass
    with made_again(tmp_path / "run"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(RunError, match="holds notes"), OwnedFolder(tmp_path / "mine", "train"):
        pass
    assert content(tmp_path / "mine") == {"notes": b"mine"}


@pytest.mark.usefixtures("no_folder_locks")
def test_what_is_locked_cannot_be_removed_to_get_in(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with OwnedFolder(folder, "train"):
        (folder / LIST).rename(tmp_path / "list")
        with pytest.raises(RunError, match="no `cwdpo train` has begun there"), OwnedFolder(folder, "train"):
            pass
        with pytest.raises(RunError, match="was moved or removed"):
            write_json(folder / "data" / "done.json", {"n": 3})
        (tmp_path / "list").rename(folder / LIST)
        write_json(folder / "data" / "done.json", {"n": 3})


def test_a_folder_that_is_moved_away_is_not_begun_anew(tmp_path: Path) -> None:
    """The command that held it stops; another may begin where it was."""
    folder = made(tmp_path / "run")
    with OwnedFolder(folder, "train"):
        folder.rename(tmp_path / "moved")
        with pytest.raises(RunError, match="was moved or removed"):
            write_json(folder / "data" / "done.json", {"n": 3})
        assert not folder.exists()
        folder.mkdir()  # another command's
        with pytest.raises(RunError, match="was moved or removed"):
            write_json(folder / "data" / "done.json", {"n": 3})


def made_again(folder: Path) -> OwnedFolder:
    return OwnedFolder(made(folder), "train")


# -- single files -----------------------------------------------------------------------------------------------------


def score(path: Path, text: str, **how: Any) -> None:
    with output(path, "score", **how) as draft:
        draft.file.write_text(text)


def test_a_command_replaces_what_it_wrote_and_nobody_changed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.jsonl"
    score(path, "1")
    score(path, "2")
    assert path.read_text() == "2"
    assert [p.name for p in path.parent.iterdir() if p != path] == [LIST]
    path.write_text("2, annotated")
    with pytest.raises(RunError, match=r"scores\.jsonl.*--force"):
        score(path, "3")
    assert path.read_text() == "2, annotated"
    score(path, "3", force=True)
    score(path, "4")
    assert path.read_text() == "4"


def test_a_command_replaces_no_other_file(tmp_path: Path) -> None:
    score(tmp_path / "a", "1")
    with pytest.raises(RunError, match="--force"), output(tmp_path / "a", "caption") as draft:
        draft.file.write_text("2")
    with pytest.raises(RunError):
        score(tmp_path / "a", "2", reads=["scenes", Path(os.path.relpath(tmp_path / "a"))])
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    with pytest.raises(RunError):
        score(tmp_path / "a", "2", reads=[tmp_path / "hard"])
    assert (tmp_path / "a").read_text() == "1"


def test_special_files_are_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for name in (
        "folder",
        "link",
        "dangling",
        "pipe",
        "socket",
        "/dev/null",
        "target/below",
        "x" * 300,
        "x" * 250,
        "a\0b",
    ):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(RunError) as caught:
            score(tmp_path / name, "ours", force=True)
        assert "\n" not in str(caught.value) and sorted(tmp_path.iterdir()) == before, name
    assert (tmp_path / "target").read_text() == "mine" and Path("/dev/null").is_char_device()


def test_a_failure_leaves_nothing_but_rows_to_go_on_from(tmp_path: Path) -> None:
    for rows in ([], [{"n": 1}]):
        with pytest.raises(ZeroDivisionError), output(tmp_path / "deep" / "a", "caption") as draft:
            kept = draft.keep()
            append_jsonl(kept, *rows)
            draft.file.write_text("half")
            _ = 1 / 0
        assert list(content(tmp_path)) == ["deep/.a.part"] * len(rows)
        assert rows or not list(tmp_path.iterdir())
    with output(tmp_path / "deep" / "a", "caption") as draft:
        assert list(read_jsonl(draft.keep())) == [{"n": 1}]
        draft.file.write_text("whole")
    assert content(tmp_path) == {"deep/a": b"whole"} and not (tmp_path / "deep" / ".a.draft").exists()
    (tmp_path / ".b.part").write_text("{}\n")
    with pytest.raises(RunError, match=r"\.b\.part"), output(tmp_path / "b", "caption") as draft:
        draft.keep()
    assert (tmp_path / ".b.part").read_text() == "{}\n"


def test_two_commands_on_one_output(tmp_path: Path) -> None:
    with output(tmp_path / "a", "caption") as draft:
        with pytest.raises(RunError), output(tmp_path / "a", "caption"):
            pass
        score(tmp_path / "b", "another file in the same folder")
        draft.file.write_text("first")
    assert content(tmp_path) == {"a": b"first", "b": b"another file in the same folder"}


def test_what_came_to_stand_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(RunError), output(tmp_path / "a", "score") as draft:
        draft.file.write_text("ours")
        (tmp_path / "a").write_text("mine")
    assert content(tmp_path) == {"a": b"mine"}


def test_known_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"rows\.jsonl"):
        require_replaceable(tmp_path / "rows.jsonl", "evaluate", force=None)
