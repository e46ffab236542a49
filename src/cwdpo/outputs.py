"""Where output may go: one rule for all commands.

A command replaces and deletes only what it wrote itself and nobody has changed since; what it reads, and every other
file, needs `--force`. Links, devices, pipes and sockets are refused always.

Each folder that a command wrote to holds a list, `.cwdpo.jsonl`: a line a file, with the command and the SHA-256 of the
content. A line stands there before its file does, so that a kill leaves no file of ours unlisted. Files that only grow,
and those that libraries write, are listed without a digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cwdpo._version import __version__
from cwdpo.errors import RunError
from cwdpo.files import OWNERS, append_jsonl, file_digest, read_jsonl

__all__ = ["LIST", "Draft", "OwnedFolder", "output", "require_replaceable"]

LIST = ".cwdpo.jsonl"

_REMEDY = "choose another --out"
_LONGEST_NAME = 200
"""Bytes of a file's name: file systems end at 255, and the names of drafts are longer."""
_TEMPORARY = re.compile(r"\.(.+?)(\.\d+)?\.tmp")
_LOCKS: set[int] = set()
"""Descriptors that hold the locks of this process."""


def _let_go_of_locks() -> None:
    """Close locks in a forked child: a data loader's worker that outlives a killed run holds none."""
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_let_go_of_locks)


def _absolute(path: Path) -> Path:
    """Return a path without `..`, with its links as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


class _Listed:
    """The files of a folder that one command wrote."""

    def __init__(self, folder: Path, by: str) -> None:
        self.path, self._by = folder / LIST, by
        self.begun = False
        self._digests: dict[str, list[str]] = {}
        self._growing: set[str] = set()
        self._patterns: list[str] = []
        _require_plain(self.path, stat.S_ISREG)
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):  # cut short by a kill
            os.truncate(self.path, content.rfind(b"\n") + 1)
        for row in read_jsonl(self.path):
            if row.get("by") == by:
                self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        self.begun = True
        if "files" in row:
            self._patterns.append(row["files"])
        if "grows" in row:
            self._growing.add(row["grows"])
        if "file" in row:
            self._growing.discard(row["file"])
            # Those before count too: kills may have come before the new content stood there.
            before = [digest for digest in self._digests.get(row["file"], []) if digest != row["sha256"]]
            self._digests[row["file"]] = [*before[-3:], row["sha256"]]

    def add(self, **row: str) -> None:
        """Add a line."""
        append_jsonl(self.path, {**row, "by": self._by})
        self._take(row)

    def digests(self, under: str) -> dict[str, list[str]]:
        """Return the digests of the files of a folder whose content is known."""
        known = {name: digests for name, digests in self._digests.items() if name not in self._growing and digests[-1]}
        return {name: digests for name, digests in known.items() if f"{name}/".startswith(f"{under}/")}

    def growing(self, under: str) -> list[str]:
        """Return the files of a folder that grow."""
        return sorted(name for name in self._growing if f"{name}/".startswith(f"{under}/"))

    def grows(self, name: str) -> bool:
        """Whether any content of a file is ours."""
        return name in self._growing or any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def has(self, name: str) -> bool:
        """Whether a name is listed, whatever its content; also the temporary file of one that is."""
        if name in self._digests or self.grows(name):
            return True
        parts = name.split("/")
        names = (("/".join(parts[:at]), _TEMPORARY.fullmatch(part)) for at, part in enumerate(parts))
        return any(found and self.has(f"{folder}/{found[1]}".lstrip("/")) for folder, found in names)

    def owns(self, name: str, path: Path) -> bool:
        """Whether a file is ours: listed, and as it was written."""
        return self.has(name) and (
            self.grows(name) or name not in self._digests or file_digest(path) in self._digests[name]
        )


class OwnedFolder:
    """A folder that a command fills, held by one process at a time. A context manager.

    While it is held, the writers of `cwdpo.files` list what they write in it, and refuse to replace or delete what is
    not listed.

    Args:
        folder: Made where it is missing.
        by: The command, as the list has it.
        alone: Whether it must be empty or this command's own; else other files may lie in it.
        force: Whether files that are not the command's may be replaced.
    """

    def __init__(self, folder: Path, by: str, *, alone: bool = True, force: bool = False) -> None:
        self.folder = _absolute(folder)
        self._by, self._alone, self._force = by, alone, force

    def __enter__(self) -> OwnedFolder:
        with contextlib.ExitStack() as stack:
            _require_plain(self.folder, stat.S_ISDIR)
            stack.enter_context(_made(self.folder))
            self._is_held = stack.enter_context(_locked(self.folder))
            self._listed = _Listed(self.folder, self._by)
            if self._alone and not self._listed.begun:
                self._require_empty()
                self._listed.add(cwdpo=__version__)
                stack.callback(self._leave_empty)
            for path in list(self.folder.glob("**/.*.tmp" if self._alone else ".*.tmp")):
                self.remove(path)
            OWNERS.append(self)
            stack.callback(OWNERS.remove, self)
            self._held = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def _require_empty(self) -> None:
        there = sorted({path.name for path in self.folder.iterdir()} - {LIST})
        if there:
            older = "; resume a run of an earlier version with that version" if "manifest.json" in there else ""
            raise RunError(
                f"{self.folder}: holds {there[0]}, and no `cwdpo {self._by}` has begun there; {_REMEDY}{older}"
            )

    def _leave_empty(self) -> None:
        """Take the list away again where nothing was written."""
        if {path.name for path in self.folder.iterdir()} == {LIST}:
            self._listed.path.unlink()

    def _name(self, path: Path) -> str | None:
        """Return a path as the list has it; None where a link leads out of the folder."""
        where = path.absolute()
        inside = where.parent.resolve().is_relative_to(self.folder.resolve())
        return where.relative_to(self.folder).as_posix() if inside else None

    def claim(self, path: Path, *, grows: bool) -> None:
        """List a file or folder that is about to be written.

        Raises:
            RunError: It is there, and is not this command's; or the folder is not the one any more that is held.
        """
        if not self._is_held():
            raise RunError(
                f"{self.folder}: was moved or removed, or its {LIST} was, while `cwdpo {self._by}` was at work in it; "
                "put it back, and run the same command again"
            )
        if path.name == LIST:
            return
        name = self._name(path)
        if name is None:
            raise RunError(f"{path.parent}: is a link that leads out of {self.folder}; replace it by a folder")
        if os.path.lexists(path) and not self._force:
            self._require_own(name, path)
        if grows and not self._listed.grows(name):
            self._listed.add(grows=name)
        elif not self._listed.has(name):
            self._listed.add(file=name, sha256="")

    def _require_own(self, name: str, path: Path) -> None:
        if not path.is_dir() or path.is_symlink():
            _require_plain(path, stat.S_ISREG)
            own = self._listed.owns(name, path)
        else:
            own = self._listed.has(name) or not any(path.iterdir())
        if not own:
            why = "was changed since" if self._listed.has(name) else "was not written by it"
            raise RunError(f"{path}: is where `cwdpo {self._by}` writes, and {why}; move it away")

    def claim_names(self, *patterns: str) -> None:
        """List names that libraries write to, as patterns such as `checkpoints/*`, where nothing lies yet."""
        for pattern in patterns:
            if not self._listed.grows(pattern) and not any(self.folder.glob(pattern)):
                self._listed.add(files=pattern)

    def wrote(self, path: Path, content: Path) -> None:
        """List the content that a file is about to have, as it stands in another."""
        name = self._name(path)
        assert name is not None
        if not self._listed.grows(name):
            self._listed.add(file=name, sha256=file_digest(content))

    def seal(self, under: str) -> None:
        """List the content of files of a folder that have grown so far; they may grow again."""
        for name in self._listed.growing(under):
            if (file := self.folder / name).is_file() and file.suffix == ".jsonl":
                self._listed.add(file=name, sha256=file_digest(file))

    def remove(self, path: Path) -> None:
        """Delete a file, or what a folder holds, as far as it is ours; folders that become empty go too."""
        name = self._name(path)
        if name is None or not os.path.lexists(path):
            return
        if path.is_dir() and not path.is_symlink():
            inside = list(path.iterdir())
            for one in inside:
                self.remove(one)
            if (inside or self._listed.has(name)) and not any(path.iterdir()):
                path.rmdir()
        elif self._listed.owns(name, path):
            path.unlink()

    def changed(self, under: str) -> Path | None:
        """Return a file, of a folder or this one, that is there and is not as it was written; None where all are."""
        for name, digests in self._listed.digests(under).items():
            file = self.folder / name
            if file.is_file() and file_digest(file) not in digests:
                return file
        return None


class Draft:
    """An output that is being made.

    Attributes:
        file: Where to write it; it has the output's own name.
    """

    def __init__(self, path: Path, by: str) -> None:
        self._path, self._by = path, by
        self.folder = path.with_name(f".{path.name}.draft")
        self.file = self.folder / path.name
        self.rows: list[Path] = []

    def keep(self, name: str = "") -> Path:
        """Return a file for what a killed command resumes from, `.OUTPUT.part`; it goes when the output stands.

        Args:
            name: Tells several of them apart: `.OUTPUT.NAME.part`.

        Raises:
            RunError: There is such a file, and an earlier call of the command did not write it.
        """
        rows = self._path.with_name(".".join(["", self._path.name, *([name] if name else []), "part"]))
        _require_plain(rows, stat.S_ISREG)
        listed = _Listed(self.folder, self._by)
        if rows.exists() and not listed.grows(rows.name):
            raise RunError(f"{rows}: is there, and `cwdpo {self._by}` did not write it; move it away")
        listed.add(grows=rows.name)
        self.rows.append(rows)
        return rows

    def clear(self, *, done: bool) -> None:
        """Delete what is not needed any more: rows too where the output is done, or where there are none."""
        self.file.unlink(missing_ok=True)
        for rows in self.rows:
            if done or (rows.is_file() and not rows.stat().st_size):
                rows.unlink(missing_ok=True)
        if not any(rows.exists() for rows in self.rows):
            (self.folder / LIST).unlink(missing_ok=True)


@contextlib.contextmanager
def output(path: Path, by: str, *, reads: Iterable[str | Path] = (), force: bool = False) -> Generator[Draft]:
    """Let a command write a file, which appears under its name when the block has ended well.

    Args:
        path: The file.
        by: The command.
        reads: The command's own input.
        force: Whether a file that is read, or was not written by the command, may be replaced.

    Raises:
        RunError: It may not be written there, or another command is writing it.
    """
    path = _absolute(path)
    reads = list(reads)
    require_replaceable(path, by, reads=reads, force=force)
    draft = Draft(path, by)
    _require_plain(draft.folder, stat.S_ISDIR)
    with _made(draft.folder), _locked(draft.folder):
        done = False
        try:
            yield draft
            require_replaceable(path, by, reads=reads, force=force)
            _Listed(path.parent, by).add(file=path.name, sha256=file_digest(draft.file))
            draft.file.replace(path)
            done = True
        finally:
            draft.clear(done=done)
            with contextlib.suppress(OSError):
                draft.folder.rmdir()


def require_replaceable(path: Path, by: str, *, reads: Iterable[str | Path] = (), force: bool | None = False) -> None:
    """Find out before any work whether a command may write a file.

    Args:
        path: The file.
        by: The command.
        reads: The command's own input.
        force: As `output`; None where the command has no `--force`.

    Raises:
        RunError: It may not.
    """
    _require_plain(path, stat.S_ISREG)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise RunError(f"{path}: its name has more than {_LONGEST_NAME} bytes, too long for drafts; {_REMEDY}")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise RunError(f"{path}: cannot be written, {folder} is no folder that you can write to; {_REMEDY}")
    if not path.exists() or force:
        return
    remedy = "move it away" if force is None else "write to another file, or pass --force to replace it"
    for read in map(Path, reads):
        if read.exists() and read.samefile(path):
            raise RunError(f"{path}: is read by this command; {remedy}")
    if not _Listed(path.absolute().parent, by).owns(path.name, path):
        raise RunError(f"{path}: is there, and not as `cwdpo {by}` wrote it; {remedy}")


def _require_plain(path: Path, is_wanted: Callable[[int], bool]) -> None:
    """Refuse what is neither absent nor of the wanted kind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be written: {getattr(error, 'strerror', error)}; {_REMEDY}") from None
    if is_wanted(mode):
        return
    kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISREG: "a file"}
    kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device, pipe or socket")
    raise RunError(f"{path}: is {kind}, and {kinds[is_wanted]} is to be written there; {_REMEDY}")


@contextlib.contextmanager
def _made(folder: Path) -> Generator[None]:
    """Make a folder and those above it; of those that were made, the empty ones go again in the end."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written to: {error.strerror}; {_REMEDY}") from None
    try:
        yield
    finally:
        for part in missing:
            with contextlib.suppress(OSError):
                part.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[Callable[[], bool]]:
    """Hold a folder by a lock on the folder itself; where a file system (NFS) cannot lock folders, on its list.

    Without the list nobody has begun in a folder, so that removing it lets nobody in.

    Yields:
        Whether what is locked still lies there.
    """
    with contextlib.ExitStack() as stack:

        def lock(path: Path, flags: int) -> Callable[[], bool]:
            descriptor = os.open(path, flags, 0o666)
            _LOCKS.add(descriptor)
            stack.callback(_close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if not _is_file(held, path):
                raise BlockingIOError  # it was replaced just now
            return lambda: _is_file(held, path)

        try:
            try:
                is_held = lock(folder, os.O_RDONLY | os.O_DIRECTORY)
            except BlockingIOError:
                raise
            except OSError:  # NFS locks only what is open for writing
                is_held = lock(folder / LIST, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
                stack.callback(_remove_empty, folder / LIST)
        except BlockingIOError:
            raise RunError(f"{folder}: another command is at work in it; wait for it, or {_REMEDY}") from None
        except OSError as error:
            raise RunError(f"{folder}: cannot be locked: {error.strerror}; {_REMEDY}") from None
        yield is_held


def _is_file(facts: os.stat_result, path: Path) -> bool:
    """Whether it is this file that lies there, and no other."""
    try:
        return os.path.samestat(facts, path.stat())
    except OSError:
        return False


def _remove_empty(path: Path) -> None:
    if path.is_file() and not path.stat().st_size:
        path.unlink()


def _close(descriptor: int) -> None:
    if descriptor in _LOCKS:
        _LOCKS.remove(descriptor)
        os.close(descriptor)
