"""Which checkpoints are whole: one counts from the moment its list of digests stands beside its files."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from cwdpo.errors import RunError, UserError, one_line
from cwdpo.files import file_digest, read_json, write_json
from cwdpo.processes import is_lost_peer

__all__ = [
    "MARKER",
    "damaged_file",
    "last_checkpoint",
    "reading",
    "require_alike",
    "require_whole",
    "seal_checkpoint",
    "writing",
]

MARKER = "complete.json"
"""File written last into a checkpoint: the name and SHA-256 of every other file."""

_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal_checkpoint(folder: Path) -> None:
    """Flush every file of a checkpoint to disk, then mark it complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    write_json(folder / MARKER, {str(p.relative_to(folder)): file_digest(p) for p in files})


def damaged_file(folder: Path) -> Path | None:
    """Return a file of a checkpoint that is missing or not as it was written; None of a whole checkpoint."""
    marker = folder / MARKER
    return _damaged_file(folder, marker.stat().st_mtime_ns) if marker.is_file() else marker


@functools.cache
def _damaged_file(folder: Path, written: int) -> Path | None:
    """Read a checkpoint once in the life of a process, however many ask."""
    try:
        digests: Any = read_json(folder / MARKER)
    except ValueError:
        return folder / MARKER
    if not isinstance(digests, dict):
        return folder / MARKER
    files = ((folder / name, digest) for name, digest in digests.items())
    return next((file for file, digest in files if not file.is_file() or file_digest(file) != digest), None)


def require_whole(folder: Path) -> None:
    """Compare a checkpoint with its list of digests; one without a list (of another trainer) is taken as it is.

    Raises:
        RunError: A file is missing, or was changed or damaged.
    """
    if (folder / MARKER).is_file() and (file := damaged_file(folder)) is not None:
        raise RunError(
            f"{file}: was changed or damaged since it was written; put it back, or delete {folder} to resume from an "
            "earlier checkpoint"
        )


def require_alike(folder: Path, *, sharded: bool) -> None:
    """Refuse a checkpoint that holds shards where a run has whole weights, or the reverse.

    Raises:
        RunError: It does.
    """
    if any(folder.glob("pytorch_model_fsdp*")) != sharded:
        raise RunError(
            f"{folder}: was saved {'without' if sharded else 'with'} sharded weights; resume with the configuration of "
            "accelerate that it was saved with, or delete the folder of checkpoints"
        )


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a folder, and the names of newer ones that are damaged or cut short."""
    if not folder.is_dir():
        return None, []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    broken: list[str] = []
    for _, path in sorted(found, reverse=True):
        if damaged_file(path) is None:
            return path, broken
        broken.append(path.name)
    return None, broken


@contextlib.contextmanager
def writing(folder: Path) -> Generator[None]:
    """Say in one line that a checkpoint or a model cannot be written; what is there of it goes.

    Raises:
        RunError: A disk is full, or fails: torch and safetensors have errors of their own for that.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = one_line(error, 120)
        if "inline_container" in reason and folder.is_dir() and shutil.disk_usage(folder).free < 2**20:
            reason = "no space left on device"
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(
            f"{folder}: cannot be written ({reason}). What was finished before is kept; when there is room, run the "
            "same command again"
        ) from error


_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    CheckpointException,  # of shards, in any process; not even an Exception
)


@contextlib.contextmanager
def reading(checkpoint: Path) -> Generator[None]:
    """Say in one line that a checkpoint cannot be read, or holds a pickle of more than tensors, which is never run.

    Raises:
        RunError: It cannot.
    """
    try:
        yield
    except (torch.OutOfMemoryError, UserError):
        raise
    except _UNREADABLE as error:
        if isinstance(error, RuntimeError) and is_lost_peer(error):
            raise
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise RunError(
            f"{checkpoint}: the checkpoint cannot be read ({one_line(reason, 120)}); "
            "put it back, or delete that folder to resume from the one before"
        ) from error
