"""Several seeds of one recipe as one run: means, bands, intervals."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_runs import made_up_run

from cwdpo.report.read_run import read_run, read_runs
from cwdpo.report.seeds import pool_seeds
from cwdpo.report.verdict import compare_runs


def test_what_is_pooled(tmp_path: Path) -> None:
    """Seeds of one recipe are; the same seed twice, or another recipe, is not."""
    one, two = (made_up_run(tmp_path / f"dpo{s}", "dpo", seed=s, prompts=2) for s in (0, 1))
    same = made_up_run(tmp_path / "again", "dpo", seed=0, prompts=2)
    other = made_up_run(tmp_path / "cw", "cw_dpo", seed=2, prompts=2)
    found = pool_seeds([read_run(p) for p in (one, other, two)])
    assert [[run.folder.name for run in run.each] for run in found] == [["dpo0", "dpo1"], ["cw"]]
    assert len(pool_seeds([read_run(one), read_run(same)])) == 2


def test_means_and_bands(tmp_path: Path) -> None:
    """Every figure is the mean over seeds at the updates that all have; the band is what they span."""
    folders = [made_up_run(tmp_path / str(s), "dpo", seed=s, prompts=2) for s in (0, 1)]
    lines = (folders[1] / "stage2" / "probes.jsonl").read_text().splitlines()
    (folders[1] / "stage2" / "probes.jsonl").write_text("\n".join(lines[:5]) + "\n")  # updates 0 to 20
    (pooled,) = read_runs(folders, pool=True)
    stage = pooled.stages["stage2"]
    single = [run.stages["stage2"].probe("kinds", "hard", "logp_mean")[:5] for run in pooled.seeds]
    line = stage.probe("kinds", "hard", "logp_mean")
    assert [x for x, _ in line] == [0, 5, 10, 15, 20]
    assert [y for _, y in line] == pytest.approx([(a[1] + b[1]) / 2 for a, b in zip(*single, strict=True)])
    band = stage.band(lambda s: s.probe("kinds", "hard", "logp_mean"))
    assert band[-1] == (20, min(s[-1][1] for s in single), max(s[-1][1] for s in single))
    bins = [run.stages["stage2"].probes[0]["reliability"][5] for run in pooled.seeds]
    assert stage.probes[0]["reliability"][5]["count"] == sum(b["count"] for b in bins)


def test_a_verdict_over_seeds(tmp_path: Path) -> None:
    """ECE after: .1, .2 against .3, .5 of the same seeds: differences −.2, −.3; half-width 12.71 · .0707 / √2."""
    runs = [
        read_run(made_up_run(tmp_path / f"{o}{s}", o, seed=s, prompts=2)) for o in ("dpo", "cw_dpo") for s in (0, 1)
    ]
    for run, ece in zip(runs, (0.3, 0.5, 0.1, 0.2), strict=True):
        run.summary["after"]["ece"] = ece
    base, cooled = pool_seeds(runs)
    found = compare_runs(cooled, base)
    assert found is not None
    (text,) = [s.text for s in found.statements if s.measure.startswith("Calibration")]
    assert text.startswith("0.150 against 0.400: −0.250, 95 % interval [−0.885, 0.385], 2 seeds; it includes 0")
