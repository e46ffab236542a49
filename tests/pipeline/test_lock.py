"""A run directory is held by one run at a time, and by nothing that outlives it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cwdpo.recipe import Recipe
from cwdpo.run.run_dir import RunDirectory


def test_a_child_that_outlives_the_run_holds_nothing(tmp_path: Path) -> None:
    """Workers of a data loader are forked, and after `kill -9` of the run they live on for some seconds."""
    ready, tell = os.pipe()
    with RunDirectory(tmp_path / "run", Recipe()).locked():
        child = os.fork()
        if child == 0:
            os.write(tell, b"here")
            signal.pause()
            os._exit(0)
        os.read(ready, 4)
    try:
        with RunDirectory(tmp_path / "run", Recipe()).locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
