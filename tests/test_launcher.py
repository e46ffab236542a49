"""Launches that are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwdpo.errors import RecipeError
from cwdpo.processes import join_processes
from cwdpo.training.configs import CWDPOConfig


@pytest.mark.parametrize(("rank", "told"), [(None, None), ("0", False), ("1", True)])
def test_deepspeed_is_refused_and_one_process_says_so(
    rank: str | None, told: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    if rank is not None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(RecipeError, match="FSDP2") as refused:
        join_processes()
    assert refused.value.told is told
    with pytest.raises(RecipeError, match="FSDP2"):
        CWDPOConfig(str(tmp_path), use_cpu=True)


def test_deepspeed_as_an_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="FSDP2"):
        CWDPOConfig(str(tmp_path), use_cpu=True, deepspeed="zero.json")
