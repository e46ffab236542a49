"""Data sets on the Hugging Face hub, by their id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cwdpo.errors import DataError, one_line

__all__ = ["hub_folder", "hub_id"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = re.compile(r"\.(csv|jsonl?|parquet|tar|tsv|txt|ya?ml|zip)$", re.IGNORECASE)


def hub_id(path: str) -> str | None:
    """Return a path if it is an id on the hub, `owner/name`, and nothing on this machine; None otherwise."""
    if not _ID.fullmatch(path) or _FILES.search(path) or os.path.exists(path):  # noqa: PTH110
        return None
    return None if os.path.isdir(path.partition("/")[0]) else path  # noqa: PTH112 (a folder of ours: a slip)


def hub_folder(name: str) -> Path:
    """Return the folder of a data set, fetched into the hub's cache where it is not there yet.

    Raises:
        DataError: It cannot be had.
    """
    import huggingface_hub  # takes a while to import: only where it is needed

    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # the hub's client raises of every kind
        raise DataError(
            f"{name}: no such file or folder, and no data set that can be had from the hub ({one_line(error, 160)})"
        ) from error
