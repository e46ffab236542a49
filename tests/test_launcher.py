"""The ZeRO stage of a launch, from accelerate's variables and DeepSpeed's own file."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cwdpo.errors import RecipeError
from cwdpo.launcher import launched_stage, zero_section
from cwdpo.processes import join_processes
from sharding_on_cpu import in_processes


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`launched(stage, config)`: set what `accelerate launch` sets, with DeepSpeed."""

    def set_up(stage: str | None, config: str | None) -> None:
        values = {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": stage, "DEEPSPEED_CONFIG_FILE": config}
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(f"ACCELERATE_{name}", raising=False)
            else:
                monkeypatch.setenv(f"ACCELERATE_{name}", value)

    return set_up


def settings(**zero: Any) -> str:
    return json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}})


def test_stages(launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file decides; `auto` in it leaves it to accelerate, whose own default is 2."""
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    assert launched_stage() == 0
    file = tmp_path / "zero.json"
    file.write_text(settings(stage=3), encoding="utf-8")
    in_base64 = base64.urlsafe_b64encode(settings(stage=1).encode()).decode()
    cases = [
        ("3", None, 3),
        (None, None, 2),
        (None, str(file), 3),
        ("2", str(file), 3),
        (None, settings(stage="auto"), 2),
        ("3", settings(stage="auto"), 3),
        (None, settings(), 0),
        (None, in_base64, 1),
    ]
    for stage, config, found in cases:
        launched(stage, config)
        assert launched_stage() == found, (stage, config)


@pytest.mark.parametrize(
    ("content", "line"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "no zero_opt"), ('{"zero_optimization": 3}', "cannot")],
)
def test_what_is_no_configuration(content: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=f"zero.json: .*{line}"):
        zero_section(str(file))
    with pytest.raises(RecipeError, match=r"none\.json"):
        zero_section(str(tmp_path / "none.json"))


def test_processes_keep_in_step(launched: Any, tmp_path: Path) -> None:
    """ZeRO-3 of the file alone; a file that is none is told by one process."""

    def joined(rank: int) -> bool | tuple[str, bool | None]:
        os.environ["WORLD_SIZE"] = "2"
        try:
            return join_processes().in_step
        except RecipeError as error:
            return str(error), error.told

    for config, found in ((settings(stage=3), [True, True]), (settings(stage=2), [False, False])):
        launched(None, config)
        assert in_processes(2, joined, tmp_path / str(found[0])) == found
    launched(None, "{}")
    (line, told), (other, other_told) = in_processes(2, joined, tmp_path / "none")
    assert line == other and "zero_optimization" in line and (told, other_told) == (False, True)
