"""The paper's tables remade: recipes, what is run and what is not run twice, arithmetic over seeds, verdicts."""

from __future__ import annotations

import csv
import math
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.errors import RecipeError
from cwdpo.files import read_json, write_json
from cwdpo.paper.arms import ARMS, BASE, STARTS
from cwdpo.paper.claims import CLAIMS
from cwdpo.paper.costs import cost_table
from cwdpo.paper.execute_runs import choose_rates
from cwdpo.paper.judge_claims import evidence, judge, judge_together, ledger
from cwdpo.paper.make_tables import reproduce, still_to_run
from cwdpo.paper.paper_tables import FIGURES, TABLES, Row, Table
from cwdpo.paper.results import differences, table_results
from cwdpo.paper.run_plan import TUNING_SEED, Job, Workshop
from cwdpo.paper.sizes import SCALES
from cwdpo.paper.table_files import markdown, rates_chosen
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.run import Silent


def shop(folder: Path, scale: str = "tiny", **more: Any) -> Workshop:
    return Workshop(folder, SCALES[scale], data="coco.json" if scale == "full" else None, **more)


def finish(made: Workshop, job: Job, **after: float) -> None:
    """Put what a run would have found in its folder."""
    section = {"cider": 100.0, "correct": 0.5, "ece": 0.1, "logp": {"chosen": -1.0}}
    folder = made.run_folder(job)
    summary = {"base": section, "before": section, "after": {**section, **after}}
    write_json(folder / "evaluation" / "summary.json", summary)
    write_json(folder / "evaluation" / "done.json", {})
    write_json(folder / "manifest.json", {"model": {"digest": f"{job.name}-digest"}})


@pytest.mark.parametrize("scale", SCALES)
def test_every_entry_has_a_recipe(tmp_path: Path, scale: str) -> None:
    made, rates = shop(tmp_path, scale), {"dpo": 3e-3}
    for entry in (*STARTS, *ARMS):
        if scale == "full" and entry.endswith("_exact"):
            continue
        recipe = made.recipe(made.job(entry, 3, rates))
        assert recipe.seed == recipe.data.split_seed == recipe.negatives.seed == 3
        assert (recipe.stage1.enabled, recipe.stage2.enabled) == (entry in STARTS, entry in ARMS)
        if entry in ARMS:
            assert recipe.stage2.objective == ARMS[entry].stage2["objective"]
            assert recipe.stage2.learning_rate == rates.get(entry, SCALES[scale].rate)
            start = ARMS[entry].start
            if start == BASE:
                assert recipe.model.path == SCALES[scale].recipe["model"]["path"]
            else:
                assert recipe.model.path == str(tmp_path / "seed-3" / start / "stage1" / "model")


def test_what_is_the_same_is_trained_alike(tmp_path: Path) -> None:
    """Arms differ from DPO in what they name and in nothing else."""
    made = shop(tmp_path)
    plain = made.recipe(made.job("dpo", 0, {})).model_dump()
    other = made.recipe(made.job("rpo", 0, {})).model_dump()
    different = {key for key in plain["stage2"] if plain["stage2"][key] != other["stage2"][key]}
    assert different == {"objective"}
    assert {k: v for k, v in plain.items() if k not in ("name", "stage2")} == {
        k: v for k, v in other.items() if k not in ("name", "stage2")
    }


def test_a_methods_own_settings_are_kept(tmp_path: Path) -> None:
    made = shop(tmp_path)
    assert made.recipe(made.job("simpo", 0, {})).stage2.method.beta == 2.0
    assert made.recipe(made.job("dpop", 0, {})).stage2.method.beta == 0.3
    assert made.recipe(made.job("floor_5", 0, {})).stage2.floor == -5.0
    assert made.recipe(made.job("tau_0.5", 0, {})).stage2.tau == 0.5
    assert made.recipe(Job("sft_c_6", 0)).stage1.method.nll_floor == 6.0


def test_overrides_reach_every_recipe(tmp_path: Path) -> None:
    made = shop(tmp_path, overrides=("stage2.beta=0.2", "evaluation.prompts=7"))
    recipe = made.recipe(made.job("dpo", 0, {}))
    assert (recipe.stage2.method.beta, recipe.evaluation.prompts) == (0.2, 7)


def test_full_needs_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--data"):
        Workshop(tmp_path, SCALES["full"])


def test_tables_and_claims_name_known_entries_and_paper_figures() -> None:
    for table in TABLES.values():
        assert len({row.label + row.group for row in table.rows}) == len(table.rows)
        assert {*table.entries} <= {BASE, *STARTS, *ARMS}
    for claim in CLAIMS:
        for contrast in claim.contrasts:
            asked = [e for name in claim.source for e in TABLES[name].entries]
            wanted = {contrast.one, contrast.other} - set(STARTS)
            assert wanted <= set(asked) | {"cw_dpo", "dpo"}, claim.sentence
            assert not contrast.tuned or claim.source == ("table1",), claim.sentence


def test_starts_come_first_and_each_once(tmp_path: Path) -> None:
    made = shop(tmp_path)
    jobs = still_to_run(made, "table3", range(2))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert {n for n in names if n.startswith("seed-0")} == {
        f"seed-0/{n}" for n in ("sft", "sft_c", "label_smoothing")
    } | {f"seed-0/{n}-0.0001" for n in ("dpo", "ls_dpo", "sftc_focal", "cw_dpo", "sftc_dpo")}
    assert all(job.rate is None for job in jobs[:6])
    finish(made, Job("label_smoothing", 1))
    assert len(still_to_run(made, "table3", range(2))) == len(jobs) - 1
    tuned = still_to_run(made, "table1", [])
    assert {job.seed for job in tuned} == {TUNING_SEED}
    budgets = Counter(job.entry for job in tuned if job.rate is not None)
    assert set(budgets.values()) == {len(made.scale.rates)}  # the same for each
    assert {job.entry for job in still_to_run(made, "fig3", [0])} == set(FIGURES["fig3"].entries)


def test_rates_are_chosen_by_right_captions_then_cider(tmp_path: Path) -> None:
    made = shop(tmp_path)
    for rate, correct, cider in ((3e-5, 0.7, 90.0), (1e-4, 0.7, 95.0), (3e-4, 0.6, 99.0)):
        finish(made, Job("rpo", TUNING_SEED, rate), correct=correct, cider=cider)
    assert choose_rates(made, ["rpo", "dpo", "sft", BASE, "c_2"]) == {"rpo": 1e-4}
    assert "(3e-05: none; 0.0001: dpo, rpo)" in rates_chosen({"rpo": 1e-4, "dpo": 1e-4}, [3e-5, 1e-4])


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """cw - dpo is .1, .2, .3: mean .2, sd .1, half width 4.303 · .1/√3 = .248."""
    made = shop(tmp_path)
    for seed, (dpo, cooled) in enumerate(((0.1, 0.2), (0.4, 0.6), (0.3, 0.6))):
        finish(made, made.job("dpo", seed, {}), correct=dpo)
        finish(made, made.job("cw_dpo", seed, {}), correct=cooled)
    finish(made, made.job("dpo", 3, {}), correct=0.9)  # has no partner
    pair = differences(made, "cw_dpo", "dpo", "correct", range(5), {})
    assert pair is not None
    values, effect = pair
    assert values == pytest.approx([0.1, 0.2, 0.3])
    assert effect["mean"] == pytest.approx(0.2) and effect["seeds"] == 3
    assert effect["high"] - effect["mean"] == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert differences(made, "cw_dpo", "dpo", "tv", range(5), {}) is None
    result = table_results(made, TABLES["table6"], range(5), {})
    rows = {row["label"]: row for row in result["rows"]}
    assert set(rows) == {"SFT → DPO", "ℓ_floor = -3 (default)", "τ = 1 (default)"}
    assert rows["SFT → DPO"]["measures"]["correct"]["mean"] == pytest.approx(1.7 / 4)
    assert rows["τ = 1 (default)"]["minus dpo"]["correct"]["mean"] == pytest.approx(0.2)
    assert rows["τ = 1 (default)"]["start"] == {
        "title": "SFT-C",
        "hashes": {str(seed): f"seed-{seed}/cw_dp"[:12] for seed in range(3)},
    }


@pytest.mark.parametrize(
    ("low", "high", "sign", "verdict"),
    [
        (0.1, 0.3, +1, "holds"),
        (0.1, 0.3, -1, "does not hold"),
        (-0.3, -0.1, -1, "holds"),
        (-0.3, -0.1, +1, "does not hold"),
        (-0.1, 0.3, +1, "not shown"),
        (0.0, 0.3, +1, "not shown"),
    ],
)
def test_verdicts(low: float, high: float, sign: int, verdict: str) -> None:
    assert judge({"mean": (low + high) / 2, "low": low, "high": high}, sign) == verdict
    assert judge({"mean": 0.3}, sign) == "not shown"  # one seed


@pytest.mark.parametrize(
    ("verdicts", "every", "verdict"),
    [
        (["holds", "holds"], True, "holds"),
        (["holds", "does not hold"], False, "holds in part"),
        (["holds", "does not hold"], True, "does not hold"),
        (["holds", "not shown"], True, "holds in part"),
        (["not shown", "does not hold"], False, "does not hold"),
        (["holds", "not run"], False, "not run"),
        ([], False, "not run"),
    ],
)
def test_one_verdict_of_several(verdicts: list[str], every: bool, verdict: str) -> None:
    assert judge_together(verdicts, every=every) == verdict


def test_the_ledger_says_what_is_missing_and_what_was_found(tmp_path: Path) -> None:
    made = shop(tmp_path)
    assert {row["verdict"] for row in ledger(made, range(3))} == {"not run", "not testable here"}
    for seed in range(3):
        finish(made, Job("sft", seed), entropy=0.6 + 0.01 * seed)
        finish(made, Job("sft_c", seed), entropy=0.5 + 0.011 * seed)
    rows = {row["claim"]: row for row in ledger(made, range(3))}
    for seed in range(3):  # at one rate for all: not what a comparison of methods asks for
        finish(made, made.job("dpo", seed, {}), ece=0.2)
        finish(made, made.job("cw_dpo", seed, {}), ece=0.1 + 0.001 * seed)
    calibrated = "CW-DPO is better calibrated than DPO"
    assert {r["claim"]: r for r in ledger(made, range(3))}[calibrated]["verdict"] == "not run"
    for entry in ("dpo", "cw_dpo"):
        finish(made, Job(entry, TUNING_SEED, SCALES["tiny"].rate))
    assert {r["claim"]: r for r in ledger(made, range(3))}[calibrated]["verdict"] == "holds"
    row = rows["SFT-C keeps more predictive entropy than SFT"]
    assert row["verdict"] == "does not hold"
    assert row["evidence"][0]["values"] == pytest.approx([-0.1, -0.099, -0.098])


def test_the_ledger_that_is_published_follows_from_its_numbers() -> None:
    """Every effect and interval of docs/claims.md, from the differences by seed that stand beside it."""
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "claims.md").read_text(encoding="utf-8")
    for row in read_json(docs / "claims.json")["claims"]:
        claim = next(claim for claim in CLAIMS if claim.sentence == row["claim"])
        if claim.contrasts:
            again = [evidence(c, f["values"]) for c, f in zip(claim.contrasts, row["evidence"], strict=True)]
            assert again == row["evidence"] and all(found["text"] in page for found in again)
            assert judge_together([found["verdict"] for found in again], every=claim.every) == row["verdict"]


@pytest.mark.slow
def test_a_table_from_nothing_and_not_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (Row("Base", BASE, {"cider": 128.8}), Row("SFT", "sft"), Row("DPO", "dpo", {"cider": 136.9}))
    monkeypatch.setitem(TABLES, "small", Table("small", "Three rows", rows, against="sft"))
    scale = replace(SCALES["tiny"], train=64, evaluated=6)
    made = Workshop(tmp_path, scale, overrides=("stage1.max_steps=2", "stage2.max_steps=2", "stage2.batch_size=8"))
    made = replace(made, overrides=(*made.overrides, "stage2.micro_batch_size=8"))
    run = {"processes": 1, "reporter": Silent(), "command": "cwdpo paper small"}
    result = reproduce(made, "small", [0], **run)
    assert [row["label"] for row in result["rows"]] == ["Base", "SFT", "DPO"]
    summary = read_json(tmp_path / "seed-0" / "dpo-0.0001" / "evaluation" / "summary.json")
    dpo = result["rows"][2]["measures"]
    assert dpo["cider"] == {"mean": summary["after"]["cider"], "sd": None, "seeds": 1}
    sft = read_json(tmp_path / "seed-0" / "sft" / "evaluation" / "summary.json")
    assert result["rows"][0]["measures"]["cider"]["mean"] == sft["base"]["cider"]
    assert "tv" in dpo and "tv" not in result["rows"][1]["measures"]
    assert summary["before"]["logp"] == sft["after"]["logp"]
    with (tmp_path / "small.csv").open(newline="") as file:
        cells = {(row["label"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(cells["DPO", "tv"]["mean"]) == summary["after"]["tv"]
    assert cells["DPO", "cider"]["paper"] == "136.9"
    text = (tmp_path / "small.md").read_text()
    assert text == markdown(result) and "| Base |" in text and "136.9" in text
    assert r"\begin{tabular}" in (tmp_path / "small.tex").read_text()
    again = reproduce(made, "small", [0], **run)
    assert again["run"]["runs_of_this_call"] == 0 and result["run"]["runs_of_this_call"] == 2
    assert again["rows"] == result["rows"]


def test_the_papers_recipes_are_what_is_made_and_load() -> None:
    root = Path(__file__).parents[2]
    made = runpy.run_path(str(root / "scripts" / "make_paper_recipes.py"))["paper_recipes"]()
    kept = {path.name: path.read_text(encoding="utf-8") for path in (root / "recipes" / "paper").glob("*.yaml")}
    assert kept == made, "run python scripts/make_paper_recipes.py"
    for name in kept:
        recipe = load_recipe(root / "recipes" / "paper" / name)
        assert (recipe.stage1.enabled, recipe.stage2.enabled) == (name != "no_sft.yaml", name[:-5] in ARMS)


def test_costs_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are of turns side by side; no turn is made twice."""
    made, turns = shop(tmp_path), list[str]()
    cost = {"sft": 1.0, "sft_c": 2.0, "dpo": 4.0, "cw_dpo": 5.0}

    def turn(_: Workshop, name: str) -> float:
        if len(turns) == 6:
            turns.append("stopped")
            raise KeyboardInterrupt
        turns.append(name)
        return cost[name]

    monkeypatch.setattr("cwdpo.paper.costs._turn", turn)
    with pytest.raises(KeyboardInterrupt):
        cost_table(made)
    rows = {row["entry"]: row["ratio"]["median"] for row in cost_table(made)["rows"]}
    assert rows == {"sft": 1.0, "sft_c": 2.0, "dpo": 1.0, "cw_dpo": 1.25}
    assert turns.index("stopped") == 6 and len(turns) == 1 + 4 * 7


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["reproduce", "table3", "--dry-run"], ["paper", "table3", "--dry-run"]),
        (["claims", "--from", "none"], ["paper", "claims", "--from", "none"]),
        (["figure", "4", "none", "--out", "x.svg"], ["paper", "fig4", "none", "--out", "x.svg"]),
    ],
)
def test_the_former_names_of_commands_still_work(
    words: list[str], now: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    former, new = (CliRunner().invoke(app, argv) for argv in (words, now))
    assert (former.exit_code, former.stdout, repr(former.exception)) == (new.exit_code, new.stdout, repr(new.exception))
    assert former.stderr == f"note: `cwdpo {words[0]}` is now `cwdpo paper {now[1]}`\n{new.stderr}"
