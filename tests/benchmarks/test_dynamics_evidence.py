"""Every rule of diagnosis on the embedded world: a run that provokes it, healthy ones that do not; the evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cwdpo.probes.diagnosis.rules import RULES

FOLDER = Path(__file__).parents[2] / "benchmarks"

HEALTHY = {"healthy_sft", "healthy_sft_c", "healthy_dpo", "healthy_cw_dpo"}
PROVOKED = {
    "squeezing",
    "likelihood_displacement",
    "overconfidence",
    "dead_negatives",
    "over_cooling",
    "penalty_never_active",
    "penalty_always_active",
    "false_negatives",
    "reference_mismatch",
    "divergence",
    "no_learning",
    "length_drift",
}


def script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the diagnosis says of every run, as `severity: rule @update`."""
    out = script("provocations", "--out", tmp_path_factory.mktemp("provoked"))
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {name: found for line in lines for name, found in line.items()}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_rule_is_provoked_and_no_healthy_run_speaks(findings: dict[str, list[str]]) -> None:
    # Two rules say `divergence` and one says both `penalty_…`: as many names as rules.
    assert len(PROVOKED) == len(RULES)
    assert set(findings) == PROVOKED | HEALTHY
    for name in PROVOKED:
        assert any(f.split(": ")[1].split(" @")[0] == name for f in findings[name]), (name, findings[name])
    for name in HEALTHY:
        assert findings[name] == [], name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_evidence_is_gathered_and_taken_up(tmp_path: Path) -> None:
    """One tiny seed: intervals, figures, early stopping; the second call does nothing again."""
    arguments = ["--tiny", "--seeds", "1", "--runs", tmp_path / "runs", "--out", tmp_path / "found.json"]
    script("dynamics_evidence", *arguments)
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert set(found["figures"]) == {"figure 3", "figure 4"} | {
        f"figure {n}, {name}" for n in (5, 6) for name in ("DPO", "CW-DPO")
    }
    (row,) = found["rows"]
    assert set(found["intervals"]["arms"]) == {"sft_dpo", "sftc_cw", "dpo_early"}
    assert found["intervals"]["after Stage 2, CW-DPO minus DPO"]["tv"]["mean"] == pytest.approx(
        row["sftc_cw"]["after"]["tv"] - row["sft_dpo"]["after"]["tv"]
    )
    assert found["intervals"]["steps saved by stopping early"]["mean"] == 1 - row["dpo_early"]["updates"] / 4
    assert found["provoked"]["penalty_never_active"] == ["warning: penalty_never_active @1"]
    model = tmp_path / "runs" / "sft_dpo_0" / "stage2" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    script("dynamics_evidence", *arguments)
    again = json.loads((tmp_path / "found.json").read_text())
    assert (again["rows"], again["intervals"], again["figures"]) == (
        row and [row],
        found["intervals"],
        found["figures"],
    )
    assert model.stat().st_mtime_ns == before
