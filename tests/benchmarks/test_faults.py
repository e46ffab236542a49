"""Every fault of `benchmarks/faults.py` ends as docs/faults.md says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tiny_runs import CliServer

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "benchmarks" / "faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


faults = _script()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> Any:
    return faults.Bench(cli_server, tmp_path_factory.mktemp("faults"), tiny_folder("qwen2_5_vl"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(faults.FAULTS))
def test_fault(fault: str, bench: Any) -> None:
    row = faults.FAULTS[fault](bench)
    assert row.green
    assert f"| {row.fault} |" in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
