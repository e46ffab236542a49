"""Every rule: a made-up stream that provokes it, and one that is near and does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cwdpo.probes.diagnosis.rules import RULES, Finding, StageFacts, diagnose, write_diagnosis
from cwdpo.recipe import Stage1Section, Stage2Section

STEPS = (0, 10, 20, 30)
CW = StageFacts(objective="cw_dpo")
SFTC = StageFacts(objective="sft_c", regularizer="nll_floor", learning_rate=1e-5)


def probes(
    chosen: Any = (0, 0, 0, 0),
    negative: Any = (0, 0, 0, 0),
    *,
    top1: Any = (0, 0, 0, 0),
    ece: Any = (0, 0, 0, 0),
    entropy: Any = (0, 0, 0, 0),
    cold: Any = (0, 0, 0, 0),
    surplus: float = 0.1,
    negative_start: float = -2.0,
    **more: Any,
) -> list[dict[str, Any]]:
    """Readings with the given changes from a start of ℓ̄ −0.5 (chosen) and −2 (hard), top-1 .6, entropy 1, ECE .02."""
    rows: list[dict[str, Any]] = []
    for i in range(len(chosen)):
        bars = [10 * cold[i], *[0] * 5, 10 - 10 * cold[i], 0, 0, 0]
        rows.append(
            {
                "step": 10 * i,
                "kinds": {
                    "chosen": {"logp_mean": -0.5 + chosen[i], "top1": 0.6 + top1[i], "entropy": 1 + entropy[i]},
                    "hard": {
                        "logp_mean": negative_start + negative[i],
                        "top1": 0.5 + top1[i],
                        "entropy": 1 + entropy[i],
                        "cooling_weight": 0.6 * (1 - cold[i]),
                        "cooling_histogram": bars,
                    },
                },
                "ece": 0.02 + ece[i],
                "top1": 0.6 + top1[i],
                "entropy": 1 + entropy[i],
                "reliability": [{"count": 10, "confidence": 0.6 + surplus, "accuracy": 0.6}, {"count": 0}],
                "tv": 0.02 * i,
                **{name: values[i] for name, values in more.items()},
            }
        )
    return rows


def longer(chosen: Any, negative: Any) -> list[dict[str, Any]]:
    """More readings than four, in which nothing else changes."""
    still: Any = (0,) * len(chosen)
    return probes(chosen, negative, top1=still, ece=still, entropy=still, cold=still)


def metrics(rows: int = 9, **columns: Any) -> list[dict[str, Any]]:
    """Logged rows at updates 1, 11, 21, …; a column is a number or one number a row."""
    return [
        {"step": 1 + 10 * i, **{k.replace("__", "/"): v[i] if isinstance(v, list) else v for k, v in columns.items()}}
        for i in range(rows)
    ]


def found(name: str, *args: Any) -> Finding | None:
    """What holds at the last reading."""
    return next((f for f in diagnose(*args) if f.rule == name and f.until is None), None)


def test_a_good_reading_does_not_erase() -> None:
    """Serious at updates 20 and 30, gone at 40: a note that keeps figures and start, and says since when it is over."""
    falling = ((0, -0.1, -0.3, -0.4), (0, -1, -2, -3))
    before = found("likelihood_displacement", probes(*falling))
    rows = longer(*((*side, 0.0, 0.0) for side in falling))
    (after,) = (f for f in diagnose(rows) if f.rule == "likelihood_displacement")
    assert before is not None and before.until is None and before.severity == "serious"
    assert (after.severity, after.until, after.step, after.figures) == ("note", 40, before.step, before.figures)
    assert before.sentence in after.sentence and after.to_json()["until"] == 40 and "until" not in before.to_json()
    rows = longer((0, 0, -0.1, -0.3, 0, -0.3, -0.3), (0, 0, -1, -2, 0, -1, -2))
    assert [f.severity for f in diagnose(rows) if f.rule == "likelihood_displacement"] == ["serious"]


def test_displacement() -> None:
    """−0.06 and −0.10 in the last two readings: a warning since update 20. −0.04: nothing. In Stage 1: nothing."""
    falling = probes((0, -0.02, -0.06, -0.10), (0, -0.3, -0.6, -0.9))
    finding = found("likelihood_displacement", falling)
    assert finding is not None
    assert (finding.severity, finding.step) == ("warning", 20)
    assert finding.figures["chosen_change"] == pytest.approx(-0.10)
    assert "-0.10 nats per token" in finding.sentence
    worse = found("likelihood_displacement", probes((0, -0.1, -0.2, -0.3), (0, -1, -2, -3)))
    assert worse is not None
    assert worse.severity == "serious"
    assert found("likelihood_displacement", probes((0, -0.02, -0.04, -0.04))) is None
    assert found("likelihood_displacement", probes((0, -0.3, 0, 0))) is None
    assert found("likelihood_displacement", falling, (), SFTC) is None


def test_displacement_within_the_spread_over_prompts() -> None:
    """−0.10 with a standard error of 0.06 is 1.7 of them; with 0.04 it is 2.5."""
    falling = probes((0, -0.06, -0.08, -0.10))
    for error, expected in ((0.06, False), (0.04, True)):
        falling[-1]["kinds"]["chosen"]["delta_start_se"] = error
        assert (found("likelihood_displacement", falling) is not None) is expected


def test_squeezing() -> None:
    """Both sides fall, the argmax rises, entropy falls. Without a rise of the argmax it is displacement alone."""
    sides: Any = ((0, -0.05, -0.1, -0.15), (0, -0.5, -1, -1.5))
    finding = found("squeezing", probes(*sides, top1=(0, 0.02, 0.04, 0.06), entropy=(0, -0.1, -0.2, -0.3)))
    assert finding is not None
    assert (finding.severity, finding.step) == ("warning", 10)
    assert finding.figures["top1_change"] == pytest.approx(0.06)
    assert found("squeezing", probes(*sides, top1=(0, -0.02, -0.04, -0.06), entropy=(0, 0.1, 0.2, 0.3))) is None
    chosen_rises = probes((0, 0.1, 0.2, 0.3), sides[1], top1=(0, 0.1, 0.1, 0.1), entropy=(0, -0.1, -0.1, -0.1))
    assert found("squeezing", chosen_rises) is None


def test_dead_negatives() -> None:
    """All ten weights below 0.1 from the start: a warning. Nine in ten only at the end: a note. Half: nothing."""
    finding = found("dead_negatives", probes(cold=(1, 1, 1, 1)), (), CW)
    assert finding is not None
    assert (finding.severity, finding.step, finding.figures["cold_share"]) == ("warning", 0, 1.0)
    late = found("dead_negatives", probes(cold=(0, 0.5, 0.9, 1)), (), CW)
    assert late is not None
    assert (late.severity, late.step) == ("note", 20)
    assert found("dead_negatives", probes(cold=(0, 0.5, 0.5, 0.5)), (), CW) is None
    assert found("dead_negatives", probes(cold=(1, 1, 1, 1)), (), StageFacts(objective="dpo")) is None


def test_over_cooling() -> None:
    """The loser's coefficient 2 % of the winner's and no growing gap. With a growing gap there is a signal left."""
    cooled = metrics(cooling__winner_coefficient=0.05, cooling__loser_coefficient=0.001)
    finding = found("over_cooling", probes(), cooled, CW)
    assert finding is not None
    assert finding.figures["loser_to_winner"] == pytest.approx(0.02)
    assert finding.step == 1
    assert found("over_cooling", probes(negative=(0, -0.1, -0.2, -0.3)), cooled, CW) is None
    warm = metrics(cooling__winner_coefficient=0.05, cooling__loser_coefficient=0.03)
    assert found("over_cooling", probes(), warm, CW) is None


def test_penalty() -> None:
    """On in 0 of 9 rows, in 9 of 9, in 4 of 9; and never said of plain preference training."""
    never = found("penalty_never_active", probes(), metrics(sft_c__active=0.0, nll__rejected=18.0), SFTC)
    assert never is not None
    assert never.figures == {"share_active": 0, "nll_rejected": 18.0, "limit": 4.0}
    always = found("penalty_always_active", probes(), metrics(sft_c__active=1.0, nll__rejected=1.5), SFTC)
    assert always is not None
    assert always.severity == "note"
    some = metrics(sft_c__active=[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0], nll__rejected=4.0)
    assert not [f for f in diagnose(probes(), some, SFTC) if f.rule.startswith("penalty")]
    assert not [f for f in diagnose(probes(), metrics(4, sft_c__active=0.0), SFTC) if f.rule.startswith("penalty")]


def test_false_negatives() -> None:
    """Negatives at −0.3 against chosen at −0.5 throughout; or at −2 and rising by 0.2 against the loss."""
    finding = found("false_negatives", probes(negative_start=-0.3))
    assert finding is not None
    assert finding.figures["gap"] == pytest.approx(0.2)
    rising = found("false_negatives", probes(negative=(0, 0.04, 0.1, 0.2)))
    assert rising is not None
    assert rising.step == 20
    assert found("false_negatives", probes(chosen=(0, 0.1, 0.2, 0.3), negative=(0, 0.05, 0.1, 0.2))) is None
    assert found("false_negatives", probes(negative=(0, -0.1, -0.2, -0.3))) is None
    assert found("false_negatives", probes(negative_start=-0.3), (), StageFacts(objective="sft")) is None


def test_overconfidence() -> None:
    """ECE .02 → .07 with confidence above accuracy: a warning; .02 → .12: serious; underconfidence is not it."""
    finding = found("overconfidence", probes(ece=(0, 0.01, 0.04, 0.05)))
    assert finding is not None
    assert (finding.severity, finding.step) == ("warning", 20)
    serious = found("overconfidence", probes(ece=(0, 0.04, 0.08, 0.10)))
    assert serious is not None
    assert serious.severity == "serious"
    assert found("overconfidence", probes(ece=(0, 0.01, 0.04, 0.05), surplus=-0.1)) is None
    assert found("overconfidence", probes(ece=(0, 0.01, 0.02, 0.02))) is None


def test_no_learning() -> None:
    """Five readings within 0.005 nats and TV 0.001; with TV .04 something has moved."""
    still = probes((0, 0.001, 0.002, 0.003, 0.005), *[(0,) * 5], **_five())
    for row in still:
        row["tv"] = 0.001
    finding = found("no_learning", still, (), SFTC)
    assert finding is not None
    assert "stage1.learning_rate 1e-05" in finding.remedy
    still[-1]["tv"] = 0.04
    assert found("no_learning", still, (), SFTC) is None


def _five() -> dict[str, Any]:
    return dict.fromkeys(("top1", "ece", "entropy", "cold"), (0,) * 5)


def test_divergence() -> None:
    """Gold at −1.2 nats; a loss that doubles; a loss that is NaN; a gradient 50 times its usual norm."""
    fallen = found("divergence", probes((0, -0.4, -0.9, -1.2)), (), SFTC)
    assert fallen is not None
    assert fallen.step == 30
    growing = found("divergence", [], metrics(12, loss=[1.0] * 4 + [1.5] * 4 + [2.0] * 4))
    assert growing is not None
    assert (growing.severity, growing.step) == ("serious", 81)
    broken = found("divergence", [], metrics(3, loss=[1.0, float("nan"), 1.0]))
    assert broken is not None
    assert broken.step == 11
    spike = found("divergence", [], metrics(12, loss=1.0, grad_norm=[1.0] * 8 + [50.0] + [1.0] * 3))
    assert spike is not None
    assert (spike.severity, spike.step) == ("warning", 81)
    assert found("divergence", probes((0, -0.1, 0.1, 0.2)), metrics(12, loss=1.0, grad_norm=1.0)) is None


def test_reference_mismatch() -> None:
    """β = .1: a chosen reward of −.3 in update 1 is −3 nats where 0 is expected; ±.01 is a tenth of a nat, rounding."""
    wrong = metrics(3, rewards__chosen=-0.3, rewards__rejected=0.2)
    finding = found("reference_mismatch", probes(), wrong, StageFacts(beta=0.1))
    assert finding is not None
    assert finding.figures == {"chosen_shift": pytest.approx(-3.0), "rejected_shift": pytest.approx(2.0)}
    assert finding.severity == "serious"
    right = metrics(3, rewards__chosen=-0.01, rewards__rejected=0.01)
    assert found("reference_mismatch", probes(), right, StageFacts(beta=0.1)) is None
    late = [{**row, "step": row["step"] + 9} for row in wrong]
    assert found("reference_mismatch", probes(), late, StageFacts(beta=0.1)) is None


def test_length_drift() -> None:
    """10 words → 13: longer by 30 %. 10 → 11: nothing. Not measured: nothing."""
    finding = found("length_drift", probes(answer_words=(10, 11, 12.5, 13)))
    assert finding is not None
    assert (finding.severity, finding.step) == ("warning", 20)
    assert "longer" in finding.sentence and "stage2.learning_rate" in finding.remedy
    first = found("length_drift", probes(answer_words=(10, 11, 12.5, 13)), (), SFTC)
    assert first is not None and "stage1.learning_rate" in first.remedy
    shorter = found("length_drift", probes(answer_words=(10, 8, 6, 5)))
    assert shorter is not None
    assert shorter.severity == "serious"
    assert found("length_drift", probes(answer_words=(10, 11, 11, 11))) is None


def test_a_healthy_run_has_no_findings() -> None:
    """Chosen rise, negatives fall, entropy stays."""
    rows = probes((0, 0.05, 0.08, 0.1), (0, -0.2, -0.4, -0.6))
    logged = metrics(12, loss=[0.69 - 0.01 * i for i in range(12)], rewards__chosen=0.0, rewards__rejected=0.0)
    assert diagnose(rows, logged) == []
    assert diagnose([], []) == []
    assert diagnose(rows[:1], logged[:1]) == []


def test_the_most_serious_comes_first() -> None:
    rows = probes((0, -0.5, -1.0, -1.5), (0, -1, -2, -3), top1=(0, 0.1, 0.2, 0.3), entropy=(0, -1, -1, -1))
    names = [(f.severity, f.rule) for f in diagnose(rows, metrics(12, loss=1.0))]
    assert names == [("serious", "divergence"), ("serious", "squeezing"), ("serious", "likelihood_displacement")]


def test_facts_of_a_recipe() -> None:
    """The regularizer is that of the objective; plain SFT has none."""
    assert StageFacts.of(Stage1Section(objective="sft")).regularizer == "none"
    facts = StageFacts.of(Stage1Section(regularizer="entropy", nll_floor=3.0))
    assert (facts.stage, facts.regularizer, facts.nll_floor) == ("stage1", "entropy", 3.0)
    facts = StageFacts.of(Stage2Section(beta=0.2, floor=-4.0))
    assert (facts.stage, facts.objective, facts.beta, facts.floor) == ("stage2", "cw_dpo", 0.2, -4.0)


def test_file(tmp_path: Path) -> None:
    """Figures that are not numbers are left out of the file; the rest reads back."""
    finding = Finding("r", "note", "s.", "m.", 3, {"a": 1.0, "b": float("nan")})
    write_diagnosis(tmp_path / "diagnosis.json", [finding], facts=CW, readings=4, step=30)
    row = {"rule": "r", "severity": "note", "sentence": "s.", "remedy": "m.", "step": 3, "figures": {"a": 1.0}}
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == {
        "objective": "cw_dpo",
        "readings": 4,
        "step": 30,
        "findings": [row],
    }
    assert len(RULES) == len(set(RULES))
