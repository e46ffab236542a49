"""`scripts/audit.py` calls nothing clean that was not asked about. A stand-in for pip-audit answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
CLEAN = {"name": "pillow", "version": "1", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}
FLAWED = {"name": "rich", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([CLEAN, CLEAN], 0, "no known vulnerability in 2 packages"),
        ([CLEAN, UNKNOWN], 3, "NOT DONE for 1 of 2 packages (torch"),
        ([FLAWED, UNKNOWN], 1, "rich 2: CVE-1, mended in 3"),
        ([], 3, "NOT DONE for 0 of 0"),
        (None, 3, "NOT DONE, pip-audit has no answer: away"),
    ],
)
def test_audit(packages: list[dict[str, Any]] | None, code: int, said: str, tmp_path: Path) -> None:
    answer = "not JSON" if packages is None else json.dumps({"dependencies": packages})
    program = tmp_path / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint({answer!r})\nprint('away', file=sys.stderr)\n")
    program.chmod(0o755)
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--pip-audit", str(program)], capture_output=True, text=True, check=False
    )
    assert (found.returncode, said in found.stdout) == (code, True), found.stdout + found.stderr


def test_no_program(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--pip-audit", str(tmp_path / "none")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.startswith("audit: NOT DONE")) == (3, True)
