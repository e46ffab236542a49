"""Trackers (tensorboard, wandb, trackio, …) while a stage is trained: each stage is a run of its own there."""

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
    """Keep what trackers write beside the stage, and end their runs with it.

    transformers would have tensorboard write among the checkpoints, which go when the stage is finished, and would
    have wandb and trackio take both stages for one run, whose updates are then there twice.

    Args:
        report_to: The trackers.
        folder: The stage's folder; tensorboard's files go to `tensorboard` in it, unless the environment says where.
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
