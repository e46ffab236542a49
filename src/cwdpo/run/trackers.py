"""Trackers (tensorboard, wandb, trackio, …): each stage is a run of its own there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path

__all__ = ["tracked"]

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


@contextlib.contextmanager
def tracked(report_to: list[str], folder: Path) -> Generator[None]:
    """Let trackers write beside the stage, and end their runs with it.

    By default transformers lets tensorboard write among the checkpoints, which are deleted when the stage is done, and
    wandb and trackio log both stages into one run.

    Args:
        report_to: The trackers.
        folder: The stage's folder; tensorboard's files go to `tensorboard` in it, unless the environment names another.
    """
    known = os.environ.get(_TENSORBOARD)
    os.environ[_TENSORBOARD] = known or str(folder / "tensorboard")
    try:
        yield
    finally:
        if known is None:
            del os.environ[_TENSORBOARD]
        for name in {"wandb", "trackio"} & set(report_to) & set(sys.modules):
            sys.modules[name].finish()
