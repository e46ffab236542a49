"""The page as a whole: self-contained, well-formed, escaped, there for runs that are whole, partial or broken."""

from __future__ import annotations

import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_runs import made_up_run

from cwdpo.errors import RunError
from cwdpo.report import write_report
from tiny_runs import rows_of

EVIL = "<script>alert(1)</script>\"'>&`{{7*7}}"
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "line", "rect", "circle"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what is asked about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append(" " if tag in ("td", "th") else "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs. Read them, never write to them."""
    root = tmp_path_factory.mktemp("runs")
    return made_up_run(root / "sft_dpo", "dpo"), made_up_run(root / "cw_dpo", "cw_dpo")


def test_the_page_needs_nothing_but_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = write_report(pair, tmp_path / "deep" / "report.html")
    assert out == tmp_path / "deep" / "report.html"
    page, raw = read(out), out.read_text(encoding="utf-8")
    assert len(raw.encode()) < 5_000_000
    assert "http:" not in raw and "https:" not in raw and "url(" not in raw and "@import" not in raw
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), value
    assert page.all("link") == [] and page.all("iframe") == [] and len(page.all("script")) == 1
    anchors = {a["href"] for a in page.all("a")}
    assert anchors == {f"#{s['id']}" for s in page.all("section")}
    policies = [m.get("content") or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert list(out.parent.iterdir()) == [out]  # nothing temporary is left


def test_the_same_files_give_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = (write_report(pair, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert one == two


def test_every_drawing_says_what_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = read(write_report(pair, tmp_path / "r.html"))
    charts = [i for i, (tag, a) in enumerate(page.tags) if tag == "svg" and a.get("class") == "chart"]
    # Stage 2: 2 Δ, 2 log p, 8 scalars, 2 weights, 3 training, 2 rewards, 2 coefficients, 2 histograms = 23;
    # Stage 1: 2 Δ, 2 log p, 8 scalars, 2 weights, 2 training = 16; 3 bars; 2 reliability; 1 of tokens.
    assert len(charts) == 23 + 16 + 3 + 2 + 1
    for i in charts:
        assert [tag for tag, _ in page.tags[i + 1 : i + 3]] == ["title", "desc"]
    for image in page.all("img"):
        assert image["alt"] and (image["src"] or "").startswith("data:image/png;base64,")
    assert len(page.all("img")) == 12


def test_what_the_user_wrote_is_escaped(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run<b>x", "cw_dpo", name="mine", evil=EVIL, prompts=4)
    other = made_up_run(tmp_path / "other", "dpo", name="mine", evil=EVIL, prompts=4)
    out = write_report([run, other], tmp_path / "r.html", title=EVIL, table={EVIL: {"tv": 0.5}})
    page, raw = read(out), out.read_text(encoding="utf-8")
    assert "<script>alert" not in raw and "<b>x" not in raw
    assert len(page.all("script")) == 1 and page.all("b") == []
    assert page.text.count("<script>alert(1)</script>") > 20  # as text, in captions, names, recipe, counts
    assert "{{7*7}}" in page.text
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_a_closing_script_in_a_hover_value_stays_data(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", "dpo", prompts=2)
    rows = rows_of(run / "stage2" / "probes.jsonl")
    for row in rows:
        row["kinds"]["</svg></script><img src=x onerror=alert(1)>"] = row["kinds"].pop("easy")
    (run / "stage2" / "probes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = read(write_report([run], tmp_path / "r.html"))
    assert {i.get("onerror") for i in page.all("img")} == {None}
    charts = [json.loads(a["data-chart"] or "") for a in page.all("svg") if "data-chart" in a]
    assert any(s["n"].startswith("</svg>") for c in charts for s in c["series"])


PARTS = (
    "manifest.json",
    "data",
    "stage1",
    "stage1/probes.jsonl",
    "stage2",
    "stage2/done.json",
    "stage2/probes.jsonl",
    "stage2/metrics.jsonl",
    "stage2/probe_prompts.jsonl",
    "stage2/probe_tokens.json",
    "stage2/diagnosis.json",
    "stage2/throughput.json",
    "negatives",
    "negatives/stage2/tallies.json",
    "negatives/stage2/groups.jsonl",
    "evaluation",
    "evaluation/rows.jsonl",
    "evaluation/summary.json",
)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_said_not_stumbled_over(part: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole, run = pair[0], shutil.copytree(pair[1], tmp_path / "a")
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = {
        "stage1": "Stage 1 has not begun: CW-DPO.",
        "stage2": "Stage 2 has not begun: CW-DPO.",
        "stage2/done.json": "CW-DPO: under way",
        "stage2/probes.jsonl": "No probes were read in Stage 2",
        "stage2/metrics.jsonl": "Nothing has been logged in Stage 2 yet",
        "evaluation": "CW-DPO has no evaluation",
        "evaluation/rows.jsonl": "No captions were written yet",
        "evaluation/summary.json": "CW-DPO has no evaluation",
    }
    runs = [run] if part in expected else [whole, run]
    assert expected.get(part, "CW-DPO") in read(write_report(runs, tmp_path / "r.html")).text


def test_a_line_cut_short_and_a_file_that_is_not_json(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", "dpo", prompts=2)
    with (run / "stage2" / "probes.jsonl").open("a") as handle:
        handle.write('{"step": 105, "kin')
    (run / "evaluation" / "summary.json").write_text("{not json")
    (run / "stage1" / "metrics.jsonl").write_text('[]\n"x"\n{"step": null, "loss": 1}\n{oops\n')
    text = read(write_report([run], tmp_path / "r.html")).text
    assert "evaluation/summary.json cannot be read" in text
    assert "stage1/metrics.jsonl is read only in part" in text


def test_no_value_of_any_type_makes_it_fall(tmp_path: Path) -> None:
    """Replace values in all files at random by what does not belong there; a page must come out all the same."""
    draw = random.Random(0)
    junk = [None, "x", -1, 1e400, float("nan"), 1e-320, True, [], {}, [1], {"a": []}, 10**40]

    def spoil(value: object, share: float) -> object:
        if draw.random() < share:
            return draw.choice(junk)
        if isinstance(value, dict):
            return {k: spoil(v, share) for k, v in value.items()}
        return [spoil(v, share) for v in value] if isinstance(value, list) else value

    run = made_up_run(tmp_path / "run", "dpo", prompts=3, steps=20)
    whole = made_up_run(tmp_path / "whole", "cw_dpo", prompts=3, steps=20)
    originals = {p: p.read_text() for p in run.rglob("*.json*")}
    for turn in range(8):
        for path, text in originals.items():
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            indent = None if path.suffix == ".jsonl" else 1
            share = 0.03 * (turn + 1)
            path.write_text("".join(json.dumps(spoil(json.loads(t), share), indent=indent) + "\n" for t in lines))
        read(write_report([run, whole], tmp_path / "r.html"))


@pytest.mark.parametrize("recipe", ["[]", "stage1: 3\nstage2: [1]\ndata: x\nevaluation: y\nname: {a: b}\n", "{}"])
def test_a_recipe_that_is_none_of_ours(recipe: str, tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", "dpo", prompts=2)
    (run / "recipe.yaml").write_text(recipe)
    if recipe == "[]":
        with pytest.raises(RunError, match=r"recipe\.yaml: not a recipe"):
            write_report([run], tmp_path / "r.html")
    else:
        read(write_report([run], tmp_path / "r.html"))


def test_what_is_no_run_directory_is_said_in_one_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "recipe.yaml").write_text("a: [1\nb: }")
    for name in ("none", "empty", "bad"):
        with pytest.raises(RunError, match=name) as caught:
            write_report([tmp_path / name], tmp_path / "r.html")
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError):
        write_report([], tmp_path / "r.html")
    with pytest.raises(RunError, match="empty"):
        write_report(pair, tmp_path / "empty")
    assert not (tmp_path / "r.html").exists()


def test_the_table_takes_the_figures_it_is_given(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = {"methods": {"sft_dpo": {"tv": 0.4321}, "rpo": {"tv": 0.049, "correct": 0.192}}, "seed": 0}
    page = read(write_report(pair, tmp_path / "r.html", table=table))
    rows = re.search(r"start: SFT .*? Stage 2", page.text)
    assert rows is not None
    assert "DPO 0.432 0.0587 0.119" in rows[0]
    assert "CW-DPO 0.052 0.0173 0.031" in rows[0]
    assert re.search(r"rpo 0\.049 (– ){9}19\.2 –", rows[0])


def test_runs_of_one_method_are_told_apart(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / name / "run", "dpo", name=name, prompts=2) for name in ("seed 1", "seed 2")]
    page = read(write_report(runs, tmp_path / "r.html"))
    assert "seed 2 against seed 1" in page.text
    same = [made_up_run(tmp_path / name / "run", "dpo", prompts=2) for name in ("c", "d")]
    assert "run (2) against run (1)" in read(write_report(same, tmp_path / "r.html")).text


def test_findings_come_first_with_evidence_and_remedy(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = read(write_report(pair, tmp_path / "r.html")).text
    overview = text[text.index("Diagnosis of DPO") : text.index("CW-DPO against DPO")]
    assert overview.split("Diagnosis of CW-DPO")[0].strip() == (
        "Diagnosis of DPO serious Squeezing Stage 2, since update 20 Both fall. chosen change −0.400 "
        "top-1 change 0.100 Change: Cool. No rule found anything in Stage 1 (21 readings of the probes)."
    )
    assert "Stage 2: stopped early. The signal ece was best at update 60 of 100 made; the stage ends with" in overview


def test_tokens_negatives_and_speed_are_shown(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = read(write_report(pair, tmp_path / "r.html"))
    # "large" went from .6 to .2 and "small" from .4 to .7 at the second place, which moved most: ½(.4 + .3) = .35.
    assert "after “a”" in page.text
    assert "small, DPO: 0.400 at the start, 0.700 now" in page.text
    # Of 1000 candidates 10 are identical, 50 suspect; of 500 judged exactly 5 are right, 4 of these suspect;
    # 4 of 50 suspects and of 5 right ones; 1100/1000 words.
    assert "dataset all 900 1 000 100 1.0% 5.0% 1.0% 8.0% 80.0% 1.10" in page.text
    assert "too like gold" in page.text
    assert page.text.count("beam · hard") == 6 * 2
    # 3200 pairs in 80 s; 8 of 80 s waiting; probes 20 s of 100.
    assert "Stage 2: pairs per second 40 40" in page.text
    assert "Stage 2: waiting for data 10.0% 10.0%" in page.text
    assert "Stage 2: probes 20.0 s (20.0%)" in page.text


def test_seeds_of_one_recipe_are_one_run(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / f"{o}{s}", o, seed=s, prompts=4) for o in ("dpo", "cw_dpo") for s in (0, 1, 2)]
    page = read(write_report(runs, tmp_path / "r.html"))
    assert page.text.count("CW-DPO against DPO") == 1
    assert "SFT → DPO, 3 seeds" in page.text and "from the files of 6 run directories" in page.text
    assert "Means over 3 seeds; the intervals are over seeds (Student's t), paired by seed." in page.text
    assert "since update 20 · seeds 0, 1, 2" in page.text
    assert "DPO, seed 0" in page.text  # captions are one seed's
    charts = [json.loads(a["data-chart"] or "") for a in page.all("svg") if "data-chart" in a]
    assert all("b" in s for c in charts[:10] for s in c["series"])
    apart = read(write_report(runs, tmp_path / "a.html", pool=False))
    assert "seeds" not in apart.text.split("Recipe, time")[0].replace("other seeds", "")
