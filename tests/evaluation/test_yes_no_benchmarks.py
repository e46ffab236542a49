"""POPE, MME, HallusionBench, AMBER, MMStar: files in the official form; scores against the official rules anew.

The oracles follow the published evaluation scripts line by line, oddities included; none shares a line with ours.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.errors import DataError, UserError
from cwdpo.evaluation.benchmarks.amber import AMBER
from cwdpo.evaluation.benchmarks.hallusionbench import HallusionBench
from cwdpo.evaluation.benchmarks.mme import MME
from cwdpo.evaluation.benchmarks.mmstar import MMStar
from cwdpo.evaluation.benchmarks.pope import POPE
from cwdpo.report import write_report
from tiny_models import tiny_image

_PARTS = (
    "yes",
    "Yes",
    "no",
    "No",
    "not",
    "NO",
    "YES",
    "maybe",
    "",
    " ",
    "A",
    "b",
    "(C)",
    "option d",
    "The answer is B",
)
_PARTS += (
    "nothing",
    "Not sure",
    "there is no cat",
    "yes, it is",
    "No, it isn't",
    "I think so",
    "yesterday",
    "know",
    "\n",
)


def answers(count: int, seed: int) -> list[str]:
    """Answers of all kinds, most of them odd: unparsable ones, several words, marks, lines."""
    chance = random.Random(seed)
    marks = (".", ",", " ", ". ", "\n", "! ")
    return [
        "".join(chance.choice(_PARTS) + chance.choice(marks) for _ in range(chance.randint(1, 4))).rstrip(" \n")
        if chance.random() < 0.7
        else chance.choice(_PARTS)
        for _ in range(count)
    ]


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        tiny_image(folder / name, 28, 28)


# -- POPE ------------------------------------------------------------------------------------------------------------


def pope_folder(folder: Path, count: int) -> Path:
    pictures(folder / "val2014", "COCO_val2014_1.jpg")
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": i, "image": "COCO_val2014_1.jpg", "text": f"Is there a {i}?", "label": ("yes", "no")[i % 2]}
            for i in range(count)
        ]
        (folder / f"coco_pope_{kind}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def official_pope(said: list[str], labels: list[str]) -> list[float]:
    predicted = []
    for text in said:
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        predicted.append(0 if "No" in words or "not" in words or "no" in words else 1)
    truth = [0 if label == "no" else 1 for label in labels]
    pairs = list(zip(predicted, truth, strict=True))
    tp, fp, tn, fn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    return [(tp + tn) / (tp + tn + fp + fn), precision, recall, f1, predicted.count(1) / len(predicted)]


def test_pope(tmp_path: Path) -> None:
    questions = POPE().read(pope_folder(tmp_path, 100))
    assert [q.category for q in questions[::100]] == ["adversarial", "popular", "random"]
    assert questions[1].gold == ("no",) and questions[0].prompt.messages[0]["content"][1]["text"].startswith("Is there")
    said = answers(len(questions), 1)
    found = POPE().score(questions, said)
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    expected = official_pope(said, [q.gold[0] for q in questions])
    assert [found.figures[name] for name in names] == pytest.approx(expected)
    for i, kind in enumerate(("adversarial", "popular", "random")):
        part = slice(100 * i, 100 * i + 100)
        expected = official_pope(said[part], [q.gold[0] for q in questions[part]])
        assert [found.categories[kind][name] for name in names] == pytest.approx(expected)
    assert 0.05 < (found.figures["unreadable"] or 0) < 0.9


def test_pope_by_hand(tmp_path: Path) -> None:
    """`no` must be a word of the first sentence; what says neither is read as yes, and counted."""
    questions = POPE().read(pope_folder(tmp_path, 4))[:4]  # yes, no, yes, no
    found = POPE().score(questions, ["Yes.", "No, there is not.", "Hm", "I know it. No"])
    assert [row["right"] for row in found.rows] == [True, True, True, False]
    assert found.figures["unreadable"] == 0.5 and found.figures["precision"] == 2 / 3


# -- MME -------------------------------------------------------------------------------------------------------------


def mme_folder(folder: Path, count: int) -> Path:
    for task in ("existence", "OCR", "code_reasoning"):
        texts = folder / task / ("questions_answers_YN" if task == "OCR" else "")
        pictures(folder / task / ("images" if task == "OCR" else ""), *(f"{i}.jpg" for i in range(count)))
        texts.mkdir(exist_ok=True)
        for i in range(count):
            (texts / f"{i}.txt").write_text("Is it? Please answer yes or no.\tYes\nIs it not?\tNo\n")
    return folder


def official_mme(rows: list[tuple[str, str, str]]) -> dict[str, float]:
    """Task to score, from (task, truth, answer) in order, two a picture."""
    scores: dict[str, float] = {}
    for task in dict.fromkeys(row[0] for row in rows):
        lines = [row for row in rows if row[0] == task]
        right, both = 0, 0
        for start in range(0, len(lines), 2):
            of_picture = 0
            for _, truth, answer in lines[start : start + 2]:
                answer = answer.lower()
                if answer in ("yes", "no"):
                    label = answer
                else:
                    label = "yes" if "yes" in answer[:4] else "no" if "no" in answer[:4] else "other"
                of_picture += label == truth
            right += of_picture
            both += of_picture == 2
        scores[task] = 100 * right / len(lines) + 100 * both / (len(lines) / 2)
    return scores


def test_mme(tmp_path: Path) -> None:
    questions = MME().read(mme_folder(tmp_path, 40))
    assert len(questions) == 240 and questions[0].gold == ("yes",) and questions[1].gold == ("no",)
    said = answers(240, 2)
    found = MME().score(questions, said)
    expected = official_mme([(q.category, q.gold[0], a) for q, a in zip(questions, said, strict=True)])
    assert {name: part["score"] for name, part in found.categories.items()} == pytest.approx(expected)
    assert found.figures["perception"] == pytest.approx((expected["existence"] + expected["OCR"]) / 400)
    assert found.figures["cognition"] == pytest.approx(expected["code_reasoning"] / 200)


# -- HallusionBench --------------------------------------------------------------------------------------------------


def hallusion_folder(folder: Path) -> Path:
    rows = []
    for category in ("VD", "VS"):
        pictures(folder / "hallusion_bench" / category / "chart", *(f"{s}_{f}.png" for s in range(9) for f in range(3)))
        for s in range(9):
            for f in range(3):
                for q in range(4):
                    seen = "0" if category == "VS" and f == 0 else "1"
                    row = {"category": category, "subcategory": "chart", "set_id": str(s), "figure_id": str(f)}
                    row |= {"question_id": str(q), "visual_input": seen, "question": "Is it?"}
                    rows.append(row | {"gt_answer": str((s + f + q) % 2), "filename": None})
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    return folder


def official_hallusion(data: list[dict[str, Any]]) -> tuple[float, float, float]:
    """aAcc, fAcc, qAcc of rows that are `correct` or not."""
    per_figure: dict[str, list[int]] = {}
    per_question: dict[str, list[int]] = {}
    for r in data:
        name = "_".join([r["category"], r["subcategory"], r["set_id"]])
        per_question.setdefault(f"{name}_{r['question_id']}", []).append(r["correct"])
        if r["category"] == "VS" and r["figure_id"] == "0":
            continue
        per_figure.setdefault(f"{name}_{r['figure_id']}", []).append(r["correct"])
    shares = [sum(sum(v) == len(v) for v in part.values()) / len(part) for part in (per_figure, per_question)]
    return sum(r["correct"] for r in data) / len(data), shares[0], shares[1]


def test_hallusionbench(tmp_path: Path) -> None:
    questions = HallusionBench().read(hallusion_folder(tmp_path))
    assert len(questions) == 216 and len(questions[0].prompt.images) == 1
    assert not next(q for q in questions if q.id == "VS_chart_0_0_0").prompt.images
    chance = random.Random(3)
    odd = answers(216, 3)
    said = [
        ("Yes." if q.gold == ("yes",) else "no") if chance.random() < 0.8 else a
        for q, a in zip(questions, odd, strict=True)
    ]
    rows = json.loads((tmp_path / "HallusionBench.json").read_text())
    for row, answer in zip(rows, said, strict=True):
        word = re.findall("[a-z0-9_]+", answer.lower())[:1]
        row["correct"] = int(word == [("no", "yes")[int(row["gt_answer"])]])
    found = HallusionBench().score(questions, said).figures
    names = ("accuracy", "figure_accuracy", "question_accuracy")
    assert [found[name] for name in names] == pytest.approx(official_hallusion(rows))
    assert 0 < found["figure_accuracy"] < 1 and 0 < found["question_accuracy"] < 1


# -- AMBER -----------------------------------------------------------------------------------------------------------


def amber_folder(folder: Path, count: int) -> Path:
    pictures(folder / "image", "AMBER_1.jpg")
    kinds = ("hallucination", "attribute-state", "attribute-number", "attribute-action", "relation")
    truth = [{"id": i, "type": f"discriminative-{kinds[i % 5]}", "truth": ("yes", "no")[i % 2]} for i in range(count)]
    (folder / "annotations.json").write_text(json.dumps(truth))
    (folder / "query").mkdir()
    queries = [{"id": i, "image": "AMBER_1.jpg", "query": "Is it?"} for i in range(count)]
    (folder / "query" / "query_discriminative.json").write_text(json.dumps(queries))
    return folder


def official_amber(said: list[str], truth: list[str]) -> list[float]:
    """Accuracy, precision and recall of `No`, before rounding, of answers that are `Yes`, `No` or anything else."""
    right = right_no = no = said_no = 0
    for response, gold in zip(said, truth, strict=True):
        if gold == "yes":
            right += response == "Yes"
        else:
            no += 1
            if response == "No":
                right += 1
                right_no += 1
        said_no += response == "No"
    precision, recall = right_no / said_no, right_no / no
    return [right / len(said), precision, recall, 2 * precision * recall / (precision + recall)]


def test_amber(tmp_path: Path) -> None:
    questions = AMBER().read(amber_folder(tmp_path, 250))
    chance = random.Random(4)
    said = [chance.choice(("Yes", "No", "maybe", "", "I see")) for _ in questions]
    found = AMBER().score(questions, said)
    names = ("accuracy", "precision", "recall", "f1")
    assert [found.figures[name] for name in names] == pytest.approx(
        official_amber(said, [q.gold[0] for q in questions])
    )
    assert found.figures["unreadable"] == sum(a not in ("Yes", "No") for a in said) / 250
    for kind, places in (("existence", (0,)), ("attribute", (1, 2, 3)), ("relation", (4,))):
        part = [i for i in range(250) if i % 5 in places]
        expected = official_amber([said[i] for i in part], [questions[i].gold[0] for i in part])
        assert [found.categories[kind][name] for name in names] == pytest.approx(expected)


# -- MMStar ----------------------------------------------------------------------------------------------------------


def official_mmstar(predict: str, answer: str) -> bool:
    answer, predict = answer.lower().strip(), predict.lower().strip().replace("\n", " ")
    try:
        if answer == predict[0]:
            return True
        if predict[0] == "(" and answer == predict[1]:
            return True
        if predict[0:7] == "option " and answer == predict[7]:
            return True
        return predict[0:14] == "the answer is " and answer == predict[14]
    except IndexError:
        return False


def test_mmstar(tmp_path: Path) -> None:
    tiny_image(tmp_path / "1.png", 28, 28)
    image = (tmp_path / "1.png").read_bytes()
    rows = [
        {
            "index": i,
            "question": "Which?\nOptions: A: 1, B: 2",
            "image": image,
            "answer": "ABCD"[i % 4],
            "category": f"c{i % 6}",
        }
        for i in range(240)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mmstar.parquet")
    questions = MMStar().read(tmp_path)
    said = answers(240, 5)
    found = MMStar().score(questions, said)
    expected = [official_mmstar(a, q.gold[0]) for q, a in zip(questions, said, strict=True)]
    assert [row["right"] for row in found.rows] == expected and 0 < sum(expected) < 240
    assert found.figures["accuracy"] == sum(expected) / 240
    assert found.categories["c1"]["questions"] == 40


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", [POPE, MME, HallusionBench, AMBER, MMStar])
def test_a_missing_file_says_where_it_is_published(benchmark: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        benchmark().read(tmp_path)
    assert benchmark.published in str(told.value) and benchmark.data in str(told.value)


def test_a_missing_picture(tmp_path: Path) -> None:
    folder = pope_folder(tmp_path, 1)
    (folder / "val2014" / "COCO_val2014_1.jpg").unlink()
    with pytest.raises(DataError, match=r"val2014/COCO_val2014_1\.jpg"):
        POPE().read(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"label": "no"}]'])
def test_damaged(text: str, tmp_path: Path) -> None:
    folder = pope_folder(tmp_path, 1)
    (folder / "coco_pope_random.json").write_text(text)
    with pytest.raises(DataError, match=r"coco_pope_random\.json"):
        POPE().read(folder)


# -- a suite on a run ------------------------------------------------------------------------------------------------


def test_suite(tmp_path: Path, tiny_folder: Any) -> None:
    """Base and stages on the same questions: differences by hand, what is missing said, and resumed without a model."""
    run, data = tmp_path / "run", tmp_path / "data"
    amber_folder(data / "amber", 10)
    base, trained = str(tiny_folder("qwen2_5_vl")), str(tiny_folder("llava"))
    (run / "stage1").mkdir(parents=True)
    (run / "stage1" / "model").symlink_to(trained)
    (run / "recipe.yaml").write_text("seed: 1\n")
    (run / "manifest.json").write_text(json.dumps({"model": {"path": base}}))
    (run / "stage1" / "done.json").write_text('{"updates": 1}')
    argv = ["benchmark", str(run), "--suite", "hallucination", "--data", str(data), "--by", "likelihood"]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0, done.output
    assert "pope: left out" in done.output and POPE.published in done.output
    folder = run / "benchmarks"
    (part,) = json.loads((folder / "summary.json").read_text())["benchmarks"].values()
    rows = [json.loads((folder / f"amber_{name}.json").read_text())["rows"] for name in ("base", "stage1")]
    differences = [b["right"] - a["right"] for a, b in zip(*rows, strict=True)]
    assert part["paired"]["stage1 - base"]["mean"] == sum(differences) / 10
    assert part["paired"]["stage1 - base"]["low"] < sum(differences) / 10 < part["paired"]["stage1 - base"]["high"]
    assert (folder / "table.csv").read_text().startswith("benchmark,model,figure,value,low,high\namber,base,accuracy,")
    kept = (folder / "amber_base_letters.jsonl").read_bytes()
    assert CliRunner().invoke(app, argv).exit_code == 0
    assert (folder / "amber_base_letters.jsonl").read_bytes() == kept
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "AMBER (discriminative)" in page


def test_suite_mistakes(tmp_path: Path) -> None:
    for argv in (
        [str(tmp_path), "--suite", "hallucination", "--data", str(tmp_path)],
        ["pope", "--data", str(tmp_path)],
        [str(tmp_path), "--suite", "hallucination", "--data", str(tmp_path), "--model", "scenes"],
    ):
        with pytest.raises(UserError):
            CliRunner().invoke(app, ["benchmark", *argv], catch_exceptions=False)
