"""`cwdpo negatives`: the table, the page, the exports, and what happens when it is called again."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_server import BadServer, edited, serving
from cwdpo.data import DataSource, load_groups
from cwdpo.data.schema import REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import RunError
from cwdpo.negatives.filters import CandidateFilter
from cwdpo.negatives.source_statistics import SourceStatistics, collect_statistics
from cwdpo.negatives.write_pairs import export_negatives
from cwdpo.recipe import FilterSection
from cwdpo.report.negatives_section import write_negatives_page
from tiny_models import sample_groups
from tiny_runs import CliServer, rows_of, tiny_recipe, write_yaml

MIX = {"dataset": 1, "other": 1, "perturb": 2, "shuffle": 1, "beam": 1, "sample": 1}
SETTINGS = {"per_prompt": 2, "max_new_tokens": 4, "beam_width": 2, "batch_size": 4}


def recipe(folder: Path, model: Path, server: BadServer | None = None, **changes: Any) -> Path:
    mix: dict[str, Any] = MIX | SETTINGS | changes
    section: dict[str, Any] = {"stage2": mix}
    if server is not None:
        mix["edit"] = 2
        section["editor"] = {"base_url": server.url, "model": "editor", "attempts": 2}
    values = tiny_recipe(model, data={"size": 32, "held_out": 4})
    return write_yaml(folder / "recipe.yaml", {**values, "negatives": section})


def plan(caption: str, count: int) -> Any:
    first, *rest = caption.split()
    return 200, edited(" ".join([first, "wooden", *rest]), "attribute"), {}


def test_the_command(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    with serving(plan) as server:
        path = recipe(tmp_path, tiny_folder("qwen2_5_vl"), server)
        options = ("--out", tmp_path / "run", "--export", tmp_path / "n.jsonl", "--scored", "4")
        code, call = cli_server.run("negatives", path, *options)
        assert code == 0, call.stderr
        lines = {line.split()[0]: line for line in call.stdout.splitlines() if line.strip()}
        assert {*MIX, "edit"} <= set(lines) and "precision" in call.stdout and "ℓ̄" in call.stdout
        folder = tmp_path / "run" / "negatives" / "stage2"
        counts = json.loads((folder / "counts.json").read_text())
        assert sum(counts.values()) == 2 * len(rows_of(folder / "groups.jsonl")) == 16  # a quarter of 32 rows
        used = {name: int(re.split(r"\s+", line)[1]) for name, line in lines.items() if name in counts}
        assert used == counts
        html = (tmp_path / "run" / "negatives" / "stage2.html").read_text(encoding="utf-8")
        assert html.count('class="picture"') == 8 and "data:image/png;base64," in html and "http:" not in html
        read = load_groups(DataSource(path=tmp_path / "n.jsonl", require="pair")).groups
        assert sum(len(g.by_role(REJECTED)) for g in read) == 16
        asked = server.asked.total()
        assert asked > 0
        # again, and with another mix: nothing is asked or generated twice
        made = {name: (folder / name).read_bytes() for name in ("edit.jsonl", "beam.jsonl", "groups.jsonl")}
        code, call = cli_server.run("negatives", path, *options)
        assert code == 0 and made == {name: (folder / name).read_bytes() for name in made}, call.stderr
        change = ("--set", "negatives.stage2.shuffle=0", "--set", "negatives.stage2.filter.longest=1.0")
        code, call = cli_server.run("negatives", path, *options, *change)
        assert code == 0 and made["groups.jsonl"] != (folder / "groups.jsonl").read_bytes(), call.stderr
        assert "shuffle" not in json.loads((folder / "counts.json").read_text())
        dropped = rows_of(folder / "dropped.jsonl")
        assert any("longest 1" in row["reason"] and row["source"] == "edit" for row in dropped)


def test_killed_while_generating(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    path = recipe(tmp_path, tiny_folder("qwen2_5_vl"), dataset=0, other=0, perturb=0, shuffle=0, batch_size=1)
    options = ("--scored", "0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, call = cli_server.run("negatives", path, "--out", whole, *options, watch=whole)
    assert code == 0, call.stderr
    for at in (call.events // 2,):
        code, call = cli_server.run("negatives", path, "--out", killed, *options, kill_at=at, watch=killed)
        assert code == -signal.SIGKILL
    code, call = cli_server.run("negatives", path, "--out", killed, *options)
    assert code == 0, call.stderr
    for name in ("beam.jsonl", "sample.jsonl", "groups.jsonl", "counts.json", "tallies.json", "dropped.jsonl"):
        one, other = (run / "negatives" / "stage2" / name for run in (whole, killed))
        assert one.read_bytes() == other.read_bytes(), name  # nothing was generated twice


def test_a_server_that_fails_for_good_is_one_line(
    tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    with serving(lambda caption, count: (401, {"error": {"message": "no key"}}, {})) as server:
        path = recipe(tmp_path, tiny_folder("qwen2_5_vl"), server)
        code, call = cli_server.run("negatives", path, "--out", tmp_path / "run")
        assert code == 2 and "Traceback" not in call.stderr
        last = call.stderr.strip().splitlines()[-1]
        assert last.startswith("error: editor http://127.0.0.1") and "OPENAI_API_KEY" in last
    code, call = cli_server.run("negatives", path, "--out", tmp_path / "run", "--export", tmp_path / "n.csv")
    assert code == 2 and "--export must end in" in call.stderr


def negatives(tmp_path: Path) -> list[PromptGroup]:
    groups = sample_groups(4, tmp_path / "images", responses=3, images=(1, 2))
    return [
        g.with_responses([g.responses[0], *(Response(r.text, REJECTED, "beam", "hard") for r in g.responses[1:])])
        for g in groups
    ]


def test_exports_read_back(tmp_path: Path) -> None:
    groups = negatives(tmp_path)
    pairs = [(g.chosen.text, r.text) for g in groups for r in g.by_role(REJECTED)]
    for name, rows in (("n.jsonl", 4), ("n.trl.jsonl", 8), ("n.parquet", 8)):
        assert export_negatives(groups, tmp_path / name) == rows
        read = load_groups(DataSource(path=tmp_path / name, require="pair")).groups
        assert [(g.chosen.text, r.text) for g in read for r in g.by_role(REJECTED)] == pairs
        assert [len(g.images) for g in read] == ([1, 2, 1, 2] if rows == 4 else [1, 1, 2, 2, 1, 1, 2, 2])
        assert read[0].images[0].digest() == groups[0].images[0].digest()
    with pytest.raises(RunError, match=r"must end in \.jsonl"):
        export_negatives(groups, tmp_path / "n.csv")


def test_parquet_has_the_columns_of_trl(tmp_path: Path) -> None:
    from datasets import load_dataset

    export_negatives(negatives(tmp_path), tmp_path / "n.parquet")
    data = load_dataset("parquet", data_files=str(tmp_path / "n.parquet"), split="train", cache_dir=str(tmp_path / "c"))
    row = data[0]
    assert row["images"][0].size > (0, 0)
    assert row["chosen"][0]["role"] == "assistant" and row["prompt"][0]["content"][0]["type"] == "image"
    assert row["source"] == "beam" and row["difficulty"] == "hard"


def test_the_page_escapes(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & \"'"
    row = PromptGroup(
        evil, (ImageRef(path=f"/no/{evil}"),), (user_message(evil),),
        (Response(f"a {evil}"), Response(f"b {evil}", REJECTED, evil, evil)), (evil,),
    )  # fmt: skip
    tally = {"used": 1, "proposed": 1, "dropped": 1, "identical": 0, "suspects": 0, "exact": 0, "length_ratio": 1.0}
    found = collect_statistics([row], {evil: tally}, judge=CandidateFilter(FilterSection()), without=2)
    reasons = [f"similarity to gold 0.91 (negatives filter: {evil})"]
    reasons += [f"unusable edit: {n} words were changed, at most 6 may be" for n in (7, 12)]
    dropped = [{"id": evil, "source": evil, "text": evil, "reason": reason} for reason in reasons]
    page = write_negatives_page(found, dropped, tmp_path / "n.html", title=evil, facts=[evil], folder=tmp_path)
    html = page.read_text(encoding="utf-8")
    assert html.count("<script") == 1 and "&lt;script&gt;" in html and "2 prompts got no negative" in html
    for reason, count in (("similarity to gold", 1), ("unusable edit: … words were changed, at most … may be", 2)):
        assert f'>{reason}</th><td class="">{count}</td>' in html


def test_statistics_by_hand() -> None:
    row = PromptGroup("row", (), (), (Response("a red car"), Response("a car", REJECTED, "beam")))
    tally = {
        "used": 1, "proposed": 8, "dropped": 3, "identical": 2, "suspects": 4, "exact": 8, "right": 5,
        "right_suspects": 3, "length_ratio": 6.0,
    }  # fmt: skip
    found = collect_statistics([row] * 1, {"beam": tally}, judge=CandidateFilter(FilterSection()))
    # 2 of 8 identical, 4 of 8 suspects; 3 of the 4 suspects are right, of 5 right ones 3 are suspects
    expected = SourceStatistics("beam", 1, 8, 3, 0.25, 0.5, 0.625, 0.75, 0.6, 0.75)
    assert found.figures == [expected] and found.scored == 0 and found.chosen_logp is None
    assert found.samples[0].negatives[0].suspect  # a car: nothing that the gold response does not say


def test_every_source_is_among_the_samples() -> None:
    rows = [
        PromptGroup(
            f"r{i}", (), (), (Response("a red car"), Response(f"x {i}", REJECTED, "rare" if i == 7 else "often"))
        )
        for i in range(40)
    ]
    tally = {"used": 1, "proposed": 1, "dropped": 0, "identical": 0, "suspects": 0, "exact": 0, "length_ratio": 1.0}
    found = collect_statistics(rows, {"often": tally, "rare": tally}, judge=CandidateFilter(FilterSection()), samples=4)
    assert len(found.samples) == 4 and "r7" in {s.group.id for s in found.samples}
