"""A small run with everything that looks at training switched on; figures and commands over what it leaves."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cwdpo.errors import DataError, RecipeError, RunError
from cwdpo.paper.paper_figures import draw_figure
from cwdpo.probes.figures import load_figures
from cwdpo.probes.reading import Probed
from cwdpo.recipe import Recipe
from cwdpo.report import write_report
from cwdpo.run import Run, Silent
from cwdpo.run.probe_prompts import make_probe_set
from cwdpo.run.run_dir import RunDirectory
from tiny_runs import rows_of

STAGE: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "micro_batch_size": 4, "log_steps": 2, "learning_rate": 1e-3}


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe(model: Path, **probes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "data": {"size": 16, "held_out": 6},
            "stage1": STAGE,
            "stage2": {**STAGE, "floor": -8.0, "max_steps": 5},
            "probes": {"every": 1, "prompts": 4, "batch_size": 4, **probes},
            "evaluation": {"prompts": 0, "max_new_tokens": 6},
        }
    )


MINE = '''"""Figures of a user."""
from cwdpo.probes.diagnosis.stage_history import Finding
from cwdpo.probes.figures import ProbeFigure


def tokens(probed):
    """Gold tokens read."""
    return sum(len(r.logps) for r in probed.responses())


class Loud(ProbeFigure):
    """Highest probability of a kind, times a factor."""

    name, title, unit, better = "loud", "How [/loud] it is", "of one", "lower"
    factor: float = 1.0

    def measure(self, probed):
        return {kind: self.factor * self.most(probed, kind) for kind in ("chosen", "hard")}

    def most(self, probed, kind):
        return max(float(r.top1.max()) for r in probed.responses(kind))

    def rule(self, stream, facts):
        return Finding("too_loud", "note", "Loud.", "Hush.", 0, {}) if stream.kind("chosen", "loud")[-1] > 0 else None
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> tuple[Path, Listening]:
    folder, heard = tmp_path_factory.mktemp("dynamics"), Listening()
    mine = folder.parent / "my_figures.py"
    mine.write_text(MINE)
    probes = {
        "figures": [f"{mine}:tokens", {f"{mine}:Loud": {"factor": 2.0}}],
        "kinds": ["own", "other_train", "other_test", "random", "shuffled", "random_shuffled"],
        "influence": {"updates": 2, "observed": 2},
        "early_stop": {"signal": "tv", "patience": 2},
        "tokens": 3,
        "captions": 2,
    }
    Run(folder, recipe(tiny_folder("llava"), **probes), heard).execute()
    return folder, heard


def test_what_a_run_leaves(run: tuple[Path, Listening]) -> None:
    folder, heard = run
    kinds = {"chosen", "hard", "medium", "easy", "own", "other_train", "other_test", "random", "shuffled"}
    kinds |= {"random_shuffled"}
    one, two = (rows_of(folder / s / "probes.jsonl") for s in ("stage1", "stage2"))
    assert set(one[0]["kinds"]) <= kinds
    assert set(one[0]["kinds"]) >= kinds - {"own"}  # a random model may write nothing but special tokens
    assert [row["step"] for row in one] == [0, 1, 2, 3, 4]
    assert all(row["cider_top5"] >= 0 and row["correct_top5"] == 0 and row["answer_words"] >= 0 for row in one)
    # Both stages are measured on the same responses.
    digests = [json.loads((folder / s / "probe_start.json").read_text())["digest"] for s in ("stage1", "stage2")]
    assert digests[0] == digests[1]
    # Update 1 is made at rate 0, so that its weights are the start's; then the distance can only grow: patience is out
    # two readings after update 2.
    assert [row["tv"] for row in two[:2]] == [0, 0] and 0 < two[2]["tv"] < two[4]["tv"]
    early = json.loads((folder / "stage2" / "early_stop.json").read_text())
    assert (early["best_step"], early["last_step"], early["stopped"], early["restored"]) == (2, 4, True, True)
    assert [row["step"] for row in two] == [0, 1, 2, 3, 4]
    assert json.loads((folder / "stage2" / "done.json").read_text())["updates"] == 4
    assert not (folder / "stage1" / "early_stop.json").exists()
    assert any("tv was best at update 2" in note for note in heard.notes)

    prompts = rows_of(folder / "stage2" / "probe_prompts.jsonl")
    assert len(prompts[0]["ids"]) == 4
    assert len(prompts[0]["logp_mean"]["hard"]) == 4
    influence = rows_of(folder / "stage2" / "influence.jsonl")
    assert len(influence) == 5 * 2 * 2
    assert {row["objective"] for row in influence} == {"cw_dpo"}
    assert all(row["kind"] == "chosen" and row["lb_k"] > 0 for row in influence)
    found = json.loads((folder / "stage2" / "diagnosis.json").read_text())
    assert found["objective"] == "cw_dpo"
    assert json.loads((folder / "stage1" / "diagnosis.json").read_text())["objective"] == "sft_c"
    tokens = json.loads((folder / "stage2" / "probe_tokens.json").read_text())
    assert len(tokens["start"]) == len(tokens["last"]) == 3
    # The first logged row is of the first update: policy and reference are the same model there.
    first = rows_of(folder / "stage2" / "metrics.jsonl")
    row = next(row for row in first if "rewards/chosen" in row)
    assert row["step"] == 1
    assert abs(row["rewards/chosen"]) < 1e-4


def test_figures_of_a_users_file(run: tuple[Path, Listening], tmp_path: Path) -> None:
    """They are in rows, trackers' scalars and diagnosis, and in a report that does not import the file."""
    folder, _ = run
    one = rows_of(folder / "stage1" / "probes.jsonl")
    assert all(row["tokens"] == one[0]["tokens"] > 0 for row in one)
    assert all(0 < row["kinds"]["hard"]["loud"] <= 2 and "loud" not in row["kinds"]["easy"] for row in one)
    logged = [row for row in rows_of(folder / "stage1" / "metrics.jsonl") if "probe/tokens" in row]
    assert [row["probe/loud/chosen"] for row in logged] == [row["kinds"]["chosen"]["loud"] for row in one]
    found = json.loads((folder / "stage1" / "diagnosis.json").read_text())["findings"]
    assert {"rule": "too_loud", "remedy": "Hush."}.items() <= next(f for f in found if f["rule"] == "too_loud").items()
    (folder.parent / "my_figures.py").rename(tmp_path / "gone.py")
    page = write_report([folder], tmp_path / "r.html").read_text()
    (tmp_path / "gone.py").rename(folder.parent / "my_figures.py")
    for words in ("How [/loud] it is", "of one", "Too loud", "Hush.", "A figure of your own", ">tokens</h4>"):
        assert words in page, words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"figures": ["none.py:F"]}, "none.py: no such file"),
        ({"figures": ["{mine}:F"]}, "defines no F"),
        ({"figures": ["odd"]}, "odd: no such probe figure"),
        ({"figures": [{"{mine}:Loud": {"loudness": 3}}]}, "`loudness`: .*; its settings: factor"),
        ({"figures": ["{mine}:Loud", "{mine}:Loud"]}, "'loud' is taken"),
        ({"early_stop": {"signal": "tokens"}, "figures": ["{mine}:tokens"]}, "signal = tokens: must be one of"),
    ],
)
def test_figures_that_cannot_be_used(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    probes = json.loads(json.dumps(change).replace("{mine}", str(tmp_path / "mine.py")))
    with pytest.raises(RecipeError, match=words) as caught:
        Run(tmp_path / "run", recipe(tmp_path, **probes)).execute()
    assert "\n" not in str(caught.value)


def test_a_figure_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def half(probed):\n    return 1 / 0\n")
    (figure,) = load_figures([f"{tmp_path / 'mine.py'}:half"])
    with pytest.raises(RecipeError, match=r"half failed at .*mine\.py:2: ZeroDivisionError"):
        figure.values(Probed(None, (), ()))


@pytest.mark.parametrize(("number", "kind"), [(3, "png"), (4, "png"), (5, "png"), (6, "svg"), (6, "pdf")])
def test_figures(number: int, kind: str, run: tuple[Path, Listening], tmp_path: Path) -> None:
    """Every figure; vector formats twice with the same bytes."""
    path = tmp_path / f"figure.{kind}"
    assert draw_figure(f"fig{number}", [run[0]] * (1 + (number == 4)), path)
    if kind == "png":
        with Image.open(path) as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    else:
        before = path.read_bytes()
        draw_figure(f"fig{number}", [run[0]], path)
        assert path.read_bytes() == before


def test_figures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "cwdpo.paper.paper_figures")
    with pytest.raises(RunError, match=r"pip install .cwdpo\[paper\]"):
        importlib.import_module("cwdpo.paper.paper_figures")


def test_figures_of_runs_that_lack_something(run: tuple[Path, Listening], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"written as \.svg, \.png or \.pdf"):
        draw_figure("fig3", [run[0]], tmp_path / "a.gif")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x\n")
    for number, lacking in ((3, "probes in stage1"), (4, "probes in stage2"), (5, "influence"), (6, "easy, medium")):
        with pytest.raises(RunError, match=lacking):
            draw_figure(f"fig{number}", [tmp_path / "run"], tmp_path / "a.svg")


def test_commands(run: tuple[Path, Listening], tmp_path: Path) -> None:
    """`compare` of the stages' models, `influence` at both step sizes, `figure` with its sentences."""
    from cwdpo.cli.app import app

    folder, runner = run[0], CliRunner()
    rows = folder / "data" / "held_out.jsonl"
    models = [json.loads((folder / "manifest.json").read_text())["model"]["path"], str(folder / "stage1" / "model")]
    shift = runner.invoke(app, ["compare", *models, "--data", str(rows), "--out", str(tmp_path / "c.json")])
    assert shift.exit_code == 0, shift.output
    found = json.loads((tmp_path / "c.json").read_text())
    assert set(found["delta"]) == {"chosen", "hard", "medium", "easy"}
    assert 0 < found["tv"] < 1
    low, high = found["delta"]["chosen"]["low"], found["delta"]["chosen"]["high"]
    assert low < found["delta"]["chosen"]["mean"] < high
    difference = found["b"]["kinds"]["chosen"]["logp_mean"] - found["a"]["kinds"]["chosen"]["logp_mean"]
    assert found["delta"]["chosen"]["mean"] == pytest.approx(difference, abs=1e-5)
    assert "TV" in shift.output
    same = runner.invoke(app, ["compare", models[0], models[0], "--data", str(rows), "--out", str(tmp_path / "s.json")])
    assert same.exit_code == 0, same.output
    assert json.loads((tmp_path / "s.json").read_text())["tv"] == 0

    out = tmp_path / "i.jsonl"
    arguments = ["influence", models[0], "--data", str(folder / "data" / "stage2.jsonl"), "--observe", str(rows)]
    arguments += ["--out", str(out), "--updates", "1", "--observed", "2"]
    arguments += ["--eta", "0.001", "--eta", "0.0001", "--objective", "sft", "--objective", "cw_dpo"]
    measured = runner.invoke(app, [*arguments, "--projections", "2", "--freeze", "vision"])
    assert measured.exit_code == 0, measured.output
    written = rows_of(out)
    assert len(written) == 2 * 2 * 2
    assert all(row["entk_sq"] > 0 for row in written)
    fine = [row for row in written if row["objective"] == "sft" and row["eta"] == 1e-4]
    assert all(row["measured"] == pytest.approx(row["predicted"], rel=0.1, abs=1e-5) for row in fine)

    drawn = runner.invoke(app, ["paper", "fig6", str(folder), "--out", str(tmp_path / "6.svg")])
    assert drawn.exit_code == 0, drawn.output
    assert "easy < medium < hard" in drawn.output


def test_own_probe_file(tiny_folder: Callable[[str], Path], run: tuple[Path, Listening], tmp_path: Path) -> None:
    """Probe prompts from a file, whose responses have roles of their own; off again with `every: 0`."""
    source = rows_of(run[0] / "data" / "held_out.jsonl")[:2]
    for row in source:
        row["images"] = [str(run[0] / "data" / image) for image in row["images"]]
        row["responses"].append({"text": "a paraphrase", "role": "form_rewrite", "source": "mine"})
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in source))
    asked = recipe(tiny_folder("llava"), path=str(path))
    asked = asked.model_copy(update={"stage1": asked.stage1.model_copy(update={"enabled": False})})
    Run(tmp_path / "run", asked).execute()
    row = rows_of(tmp_path / "run" / "stage2" / "probes.jsonl")[0]
    assert row["kinds"]["form_rewrite"]["count"] == 2


def test_a_probe_set_is_built_and_pinned(tmp_path: Path) -> None:
    """`cwdpo probes` writes the kinds asked for; a run takes the file at its hash, and refuses another content."""
    from cwdpo.cli.app import app

    (tmp_path / "r.yaml").write_text("data: {size: 8, held_out: 3}\n")
    kinds = ["chosen_paraphrase", "chosen_form", "rejected_paraphrase", "rejected_form", "shuffled"]
    asked = ["probes", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "p.jsonl"), "--run", str(tmp_path / "made")]
    made = CliRunner().invoke(app, [*asked, "--set", f"probes.kinds=[{','.join(kinds)}]"])
    assert made.exit_code == 0, made.output
    rows = rows_of(tmp_path / "p.jsonl")
    assert [r["role"] for r in rows[2]["responses"]] == ["chosen", *["rejected"] * 3, *kinds]
    digest = made.output.split("probes.digest=")[1].strip()
    again = CliRunner().invoke(app, [*asked, "--set", f"probes.kinds=[{','.join(kinds)}]"])
    assert again.output.split("probes.digest=")[1].strip() == digest

    probes = {"path": str(tmp_path / "p.jsonl"), "digest": digest, "prompts": 2}
    asked_run = Recipe.model_validate({"data": {"size": 8, "held_out": 3}, "probes": probes})
    found = make_probe_set(RunDirectory(tmp_path / "run", asked_run, Silent()))
    assert [g.to_json()["responses"] for g in found] == [r["responses"] for r in rows[:2]]
    rows[0]["responses"][4]["text"] += " and more"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match=r"p\.jsonl: its content is [0-9a-f]+, but probes\.digest is"):
        make_probe_set(RunDirectory(tmp_path / "run", asked_run, Silent()))


def test_stop_on_diagnosis(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A ruinous learning rate: the run stops with the finding, says how to go on, and goes on."""
    asked = recipe(tiny_folder("llava"), on_diagnosis="stop")
    wild = asked.stage1.model_copy(update={"learning_rate": 1.0, "max_steps": 8})
    asked = asked.model_copy(update={"stage1": wild, "stage2": asked.stage2.model_copy(update={"enabled": False})})
    with pytest.raises(RunError, match=r"stopped after update \d of stage1 by probes.on_diagnosis: divergence"):
        Run(tmp_path, asked).execute()
    assert not (tmp_path / "stage1" / "done.json").exists()
    assert list((tmp_path / "stage1" / "checkpoints").glob("checkpoint-*"))
    on = asked.model_copy(update={"probes": asked.probes.model_copy(update={"on_diagnosis": "warn"})})
    heard = Listening()
    Run(tmp_path, on, heard).execute()
    assert (tmp_path / "stage1" / "done.json").exists()
    assert any(note.startswith("serious: divergence (since update") for note in heard.notes)
    assert any(note.startswith("stage1: divergence, serious: Lower stage1.learning_rate") for note in heard.notes)
