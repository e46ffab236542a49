"""MMMU and MMBench: answers read as the official code reads them, files in the official form, scores by hand."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.data.schema import Response
from cwdpo.errors import DataError, RecipeError
from cwdpo.evaluation.benchmarks import BENCHMARKS
from cwdpo.evaluation.benchmarks.mmbench import MMBench, read_letter_or_text
from cwdpo.evaluation.benchmarks.mmmu import MMMU, draw_choice, open_is_right, read_choice, read_open
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.open_model import open_model
from tiny_models import tiny_image

GOLDEN = json.loads((Path(__file__).parent / "mmmu_golden.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", GOLDEN["choice"], ids=lambda row: row["answer"][:20])
def test_choices_as_the_official_code_reads_them(row: dict[str, Any]) -> None:
    assert read_choice(row["answer"], GOLDEN["options"]) == row["letter"]


@pytest.mark.parametrize("row", GOLDEN["open"], ids=lambda row: row["answer"][:20])
def test_open_answers_as_the_official_code_judges_them(row: dict[str, Any]) -> None:
    assert [open_is_right(row["answer"], gold) for gold in GOLDEN["gold"]] == row["right"]


def test_open_by_hand() -> None:
    """The rest after the last announcing word, then the numbers in it (the official patterns cut at commas)."""
    assert read_open("I think the answer is 1,234.567") == [1234.57, 1234.0, 234.57]
    assert read_open("Thus x = 3.14159 cm.") == ["3.14159 cm", 3.14]
    assert read_open("N") == [" n", "n "]


def test_a_draw_depends_on_the_question_alone() -> None:
    options = dict.fromkeys("ABCD", "")
    drawn = [draw_choice(f"q{i}", options) for i in range(200)]
    assert drawn == [draw_choice(f"q{i}", options) for i in range(200)]
    assert {drawn.count(letter) > 25 for letter in "ABCD"} == {True}
    assert drawn != [draw_choice(f"q{i}", options, seed=1) for i in range(200)]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"), ("A.", "A"), ("(A)", "A"), ("A: red", "A"), ("The answer is B.", "B"), ("B) blue", "B"),
        ("A red square", "A"),  # the article is no letter; the text is an option's
        ("A dog", None), ("blue circle", "B"), ("red square or blue circle", None), ("B or C", None), ("", None),
        ("C, because it is not B", None), ("both", None),
    ],
)  # fmt: skip
def test_letter_then_text(answer: str, letter: str | None) -> None:
    assert read_letter_or_text(answer, {"A": "red square", "B": "blue circle", "C": "none"}) == letter


# -- files in the official form ----------------------------------------------------------------------------------------


def png(folder: Path, size: int = 28) -> bytes:
    tiny_image(folder / f"{size}.png", size, size)
    return (folder / f"{size}.png").read_bytes()


def mmmu_folder(folder: Path) -> Path:
    """Two subjects: three choices (one with two images, one in an option) and an open question with two answers."""
    one, two = ({"bytes": png(folder, size), "path": f"{size}.png"} for size in (28, 56))
    rows = [
        ("validation_Art_1", "What is <image 1>?", "['a dog', 'a cat']", "B", "multiple-choice", one, None),
        (
            "validation_Art_2",
            "From <image 1> to <image 2>?",
            "['up', 'down', 'left']",
            "C",
            "multiple-choice",
            one,
            two,
        ),
        ("validation_Finance_1", "Which?<image 1>", "['<image 2>', 'it\\'s none']", "A", "multiple-choice", one, two),
        ("validation_Finance_2", "How many in <image 1>?", "[]", "['24/7', '3.43']", "open", one, None),
    ]
    names = ("id", "question", "options", "answer", "question_type", "image_1", "image_2")
    for subject in ("Art", "Finance"):
        part = [dict(zip(names, row, strict=True)) for row in rows if subject in row[0]]
        path = folder / "MMMU" / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path.with_name("dev-00000-of-00001.parquet"))
    return folder / "MMMU"


def mmbench_file(folder: Path) -> Path:
    """A question with a hint and its one rotation, which names the first row's picture; a question of its own."""
    picture = base64.b64encode(png(folder)).decode()
    rows = [
        ("7", "Look.", "What colour?", "red", "blue", "", "", "A", "colour", picture),
        ("1000007", "Look.", "What colour?", "blue", "red", "", "", "B", "colour", "7"),
        ("8", "nan", "How many?", "one", "two", "three", "four", "D", "number", picture),
    ]
    header = ("index", "hint", "question", "A", "B", "C", "D", "answer", "category", "image")
    path = folder / "mmbench.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


def test_mmmu(tmp_path: Path) -> None:
    questions = MMMU().read(mmmu_folder(tmp_path))
    assert [q.id for q in questions] == [f"validation_{s}" for s in ("Art_1", "Art_2", "Finance_1", "Finance_2")]
    assert [q.category for q in questions] == ["Art", "Art", "Finance", "Finance"]
    assert [q.gold for q in questions] == [("B",), ("C",), ("A",), ("24/7", "3.43")]
    assert [len(q.prompt.images) for q in questions] == [1, 2, 2, 1]
    parts = questions[2].prompt.messages[0]["content"]
    assert [p.get("text", p["type"]) for p in parts] == [
        "Which?", "image", "\n(A) ", "image",
        "\n(B) it's none\nAnswer with the option's letter from the given choices directly.",
    ]  # fmt: skip
    assert not questions[3].options
    # Right, unreadable (drawn), wrong, right.
    found = MMMU().score(questions, ["(B)", "well", "B", "the answer is 3.43"]).to_json()
    drawn = draw_choice("validation_Art_2", questions[1].options) == "C"
    assert found["accuracy"] == (2 + drawn) / 4
    assert found["unreadable"] == 1 / 3
    assert found["accuracy_open"] == 1.0
    assert found["categories"]["Finance"] == {"questions": 2, "accuracy": 0.5}


def test_mmbench(tmp_path: Path) -> None:
    questions = MMBench().read(mmbench_file(tmp_path))
    assert [(q.id, q.facts["circle"]) for q in questions] == [("7", "7"), ("1000007", "7"), ("8", "8")]
    assert questions[0].prompt.images == questions[1].prompt.images
    assert questions[0].options == {"A": "red", "B": "blue"}
    text = questions[0].prompt.messages[0]["content"][1]["text"]
    assert text.startswith("Look.\nWhat colour?\nA. red\nB. blue\nAnswer")
    assert questions[2].prompt.messages[0]["content"][1]["text"].startswith("How many?\nA. one")
    # Always A: right in the first rotation, wrong in the second; the question does not count.
    found = MMBench().score(questions, ["A", "A", "four"]).to_json()
    assert (found["accuracy"], found["accuracy_rows"], found["unreadable"]) == (0.5, 2 / 3, 0.0)
    assert found["categories"] == {
        "colour": {"questions": 1, "accuracy": 0.0},
        "number": {"questions": 1, "accuracy": 1.0},
    }
    assert MMBench().score(questions, ["A", "B", "five"]).figures["unreadable"] == pytest.approx(1 / 3)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation"):
        MMMU().read(tmp_path)
    with pytest.raises(DataError, match=r"x\.tsv"):
        MMBench().read(tmp_path / "x.tsv")
    path = mmbench_file(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\tB\tcolour", "\t\tcolour"), encoding="utf-8")
    with pytest.raises(DataError, match=r"mmbench\.tsv:3"):
        MMBench().read(path)
    path.write_text(text.replace("\t7\n", "\t9\n"), encoding="utf-8")
    with pytest.raises(DataError, match=r"mmbench\.tsv:3"):
        MMBench().read(path)
    path.write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"mmbench\.tsv:2.*A, B, answer, image"):
        MMBench().read(path)
    bad = tmp_path / "validation-0.parquet"
    bad.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"validation-0\.parquet"):
        MMMU().read(bad)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"id": "x"}]), bad)
    with pytest.raises(DataError, match=r"validation-0\.parquet:1"):
        MMMU().read(bad)


@pytest.mark.parametrize("name", ["mmmu", "mmbench"])
def test_options_by_likelihood(name: str, tmp_path: Path, tiny_folder: Any) -> None:
    """The letters' log-probabilities are those of each letter scored alone, and the likeliest is taken."""
    folder = str(tiny_folder("qwen2_5_vl"))
    data = mmmu_folder(tmp_path) if name == "mmmu" else mmbench_file(tmp_path)
    out = tmp_path / "scores.json"
    argv = ["benchmark", name, "--model", folder, "--data", str(data), "--out", str(out), "--by", "likelihood"]
    done = CliRunner().invoke(app, [*argv, "--batch-size", "2", "--max-new-tokens", "4"])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text(encoding="utf-8"))
    model, encoder = open_model(folder)
    alone = replace(encoder, include_eos=False)
    for question, row in zip(BENCHMARKS.find(name)().read(data), found["rows"], strict=True):
        if not question.options:
            assert row["logps"] is None and row["open"]
            continue
        for letter in question.options:
            group = question.prompt.with_responses([Response(letter)])
            scores = scores_from_logits(SeparateScorer()(model, Batch((alone.encode(group),))))
            assert row["logps"][letter] == pytest.approx(scores.logp_sum.item(), abs=1e-4)
        assert row["read"] == row["answer"] == max(row["logps"], key=row["logps"].get)
        assert row["right"] == (row["read"] in question.gold)
    assert found["unreadable"] == 0 and found["by"] == "likelihood" and "likelihood" in found["matching"]
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("name", ["mmmu", "mmbench"])
def test_a_tiny_model_runs_through(name: str, tmp_path: Path, tiny_folder: Any) -> None:
    data = mmmu_folder(tmp_path) if name == "mmmu" else mmbench_file(tmp_path)
    out = tmp_path / "scores.json"
    argv = ["benchmark", name, "--model", str(tiny_folder("qwen2_5_vl")), "--data", str(data), "--out", str(out)]
    done = CliRunner().invoke(app, [*argv, "--batch-size", "2", "--max-new-tokens", "4"])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["rows"]) == (4 if name == "mmmu" else 3)
    assert 0 <= found["accuracy"] <= 1
    assert found["matching"] in " ".join(done.output.split())
    assert not list(tmp_path.glob(".*.part"))


def test_a_benchmark_of_yours(tmp_path: Path, tiny_folder: Any) -> None:
    """A file outside the package: found by name, asked by likelihood, with a setting; a wrong one is told in a line."""
    mine = Path(__file__).parents[2] / "examples" / "extend" / "new_benchmark.py"
    rows = [{"image": "28.png", "question": q, "answer": a} for q, a in (("Red?", "yes"), ("Blue?", "no"))]
    png(tmp_path)
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    argv = ["benchmark", f"{mine}:YesNo", "--model", str(tiny_folder("qwen2_5_vl")), "--by", "likelihood"]
    argv += ["--data", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "scores.json")]
    done = CliRunner().invoke(app, [*argv, "--set", "ending='Yes or no?'"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert (found["benchmark"], found["questions"], found["ending"]) == ("Yes or no", 2, "Yes or no?")
    likeliest = [max(row["logps"], key=row["logps"].get) for row in found["rows"]]
    assert [row["right"] for row in found["rows"]] == [likeliest[0] == "yes", likeliest[1] == "no"]
    assert found["yes"] == likeliest.count("yes") / 2
    for name, more, told in (("mmmy", [], "did you mean mmmu"), (argv[1], ["--set", "end=x"], "ending")):
        with pytest.raises(RecipeError, match=told):
            CliRunner().invoke(app, ["benchmark", name, *argv[2:], *more], catch_exceptions=False)
