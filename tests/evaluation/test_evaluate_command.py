"""`cwdpo evaluate` as a user runs it: figures, domains, beams, going on after a kill, mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwdpo.evaluation.metrics.cider import cider
from cwdpo.files import read_jsonl, write_json, write_jsonl
from cwdpo.outputs import LIST
from tiny_models import tiny_image
from tiny_runs import Cli

GOLD = {
    f"{i}.png": [f"a {colour} {kind} on the grass", f"the {kind} is {colour}"]
    for i, (colour, kind) in enumerate(
        [("red", "dog"), ("blue", "bird"), ("green", "frog"), ("red", "cat"), ("old", "man")]
    )
}


@pytest.fixture
def cli(cli: Cli) -> Callable[..., tuple[int, str]]:
    """`cli("--data", …)`: exit code and what was written, its white space made one space."""

    def call(*argv: str | Path) -> tuple[int, str]:
        said = cli("evaluate", *argv)
        return said.code, " ".join((said.out + said.err).split())

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures, a captions CSV, and a COCO JSON with NoCaps' domains."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(GOLD):
        tiny_image(folder / "images" / name, 28 + i, 28)
    lines = [f"{name},{text}" for name, texts in GOLD.items() for text in texts]
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    domains = ["in-domain", "near-domain", "in-domain", "near-domain", "in-domain"]
    images = [{"id": 100 + i, "file_name": name, "domain": domains[i]} for i, name in enumerate(GOLD)]
    notes = [{"image_id": 100 + i, "caption": text} for i, texts in enumerate(GOLD.values()) for text in texts]
    write_json(folder / "nocaps.json", {"images": images, "annotations": notes})
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_model(cli: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, tiny_folder: Any) -> None:
    argv = ["--model", tiny_folder("qwen2_5_vl"), "--data", pictures, "--out", "e", "--tokenizer", "words"]
    argv += ["--metrics", "cider,bleu,rouge_l,distinct,length", "--batch-size", "2", "--max-new-tokens", "4"]
    code, told = cli(*argv)
    assert code == 0 and "5 pictures, 10 references" in told and "metrics: e/metrics.json" in told, told
    found = metrics_of(tmp_path / "e")
    rows = list(read_jsonl(tmp_path / "e" / "rows.jsonl"))
    captions = [row["captions"][0] for row in rows]
    assert captions == [row["caption"] for row in read_jsonl(tmp_path / "e" / "captions.jsonl")]
    whole, each = cider(captions, list(GOLD.values()))
    assert found["metrics"]["cider"]["value"] == pytest.approx(whole)
    assert [row["metrics"]["cider"] for row in rows] == pytest.approx(each)
    names = [*(f"bleu_{n}" for n in (1, 2, 3, 4)), "rouge_l", "distinct_1", "distinct_2", "length"]
    assert list(found["metrics"]) == ["cider", *names]
    # Killed: captions cut in the middle of a line, no figures yet. The same files come out.
    before = {f.name: f.read_bytes() for f in (tmp_path / "e").iterdir() if f.name != LIST}
    (tmp_path / "e" / "metrics.json").unlink()
    cut = before["captions.jsonl"]
    (tmp_path / "e" / "captions.jsonl").write_bytes(cut[: len(cut) // 2])
    assert cli(*argv)[0] == 0
    assert {f.name: f.read_bytes() for f in (tmp_path / "e").iterdir() if f.name != LIST} == before


def test_beams(cli: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, tiny_folder: Any) -> None:
    argv = ["--model", tiny_folder("qwen2_5_vl"), "--data", pictures, "--out", "e", "--tokenizer", "words"]
    code, told = cli(*argv, "--metrics", "cider,bleu", "--beams", "3", "--max-new-tokens", "4")
    assert code == 0 and "mean of 3 best of 3" in told, told
    found = metrics_of(tmp_path / "e")["beam"]
    rows = list(read_jsonl(tmp_path / "e" / "rows.jsonl"))
    assert all(len(row["captions"]) == 3 for row in rows)
    ranks = [cider([row["captions"][rank] for row in rows], list(GOLD.values())) for rank in range(3)]
    assert found["metrics"]["cider"]["mean"]["value"] == pytest.approx(sum(whole for whole, _ in ranks) / 3)
    best = [max(values) for values in zip(*(each for _, each in ranks), strict=True)]
    assert found["metrics"]["cider"]["best"]["value"] == pytest.approx(sum(best) / 5)
    assert "best" not in found["metrics"]["bleu_4"]


def test_captions_of_a_file_by_domain(cli: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path) -> None:
    captions = ["a red dog", "a blue bird", "the frog is green", "a red cat on the grass", "a man"]
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"id": i, "image_id": 100 + i, "caption": text} for i, text in enumerate(captions)]))
    for file in (pictures / "images").iterdir():
        file.unlink()  # nobody looks at them
    argv = ["--captions", results, "--data", pictures / "nocaps.json", "--out", "e", "--tokenizer", "words"]
    code, told = cli(*argv, "--metrics", "cider,spice", "--spice-jars", tmp_path)
    assert code == 0 and "in-domain (3) near-domain (2)" in told, told
    assert "spice: unavailable:" in told and "has no stanford-corenlp-3.6.0.jar" in told
    found = metrics_of(tmp_path / "e")
    assert found["metrics"]["spice"].keys() == {"unavailable"}
    gold = list(GOLD.values())
    assert found["metrics"]["cider"]["value"] == pytest.approx(cider(captions, gold)[0])
    for name, part in (("in-domain", [0, 2, 4]), ("near-domain", [1, 3])):
        alone = cider([captions[i] for i in part], [gold[i] for i in part])[0]
        assert found["domains"][name]["pictures"] == len(part)
        assert found["domains"][name]["metrics"]["cider"]["value"] == pytest.approx(alone)


def test_scenes_without_java(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    code, told = cli("--model", "scenes", "--data", "scenes", "--limit", "6", "--out", "e", "--tokenizer", "auto")
    assert code == 0, told
    assert "figures do not compare with papers': no Java in JAVA_HOME" in told
    for name in ("meteor", "spice"):
        assert f"{name}: unavailable:" in told
    found = metrics_of(tmp_path / "e")
    assert found["pictures"] == 6 and 0 <= found["metrics"]["correct"]["value"] <= 100
    assert "PTB" not in found["tokenizer"].split(";")[0]


def test_mistakes(cli: Callable[..., tuple[int, str]], pictures: Path, tmp_path: Path, tiny_folder: Any) -> None:
    model = tiny_folder("qwen2_5_vl")
    rows = [{"image": name, "caption": "a dog"} for name in GOLD]
    for name, content in (
        ("short", rows[:3]),
        ("twice", [*rows, rows[0]]),
        ("uneven", [*rows[:4], {"id": "4.png", "captions": ["a", "b"]}]),
        ("odd", [{"image": "0.png"}]),
        ("good", rows),
    ):
        write_jsonl(tmp_path / f"{name}.jsonl", content)
    (tmp_path / "none.jsonl").write_text("no json\n")
    asks: list[tuple[list[str | Path], str]] = [
        ([], "--captions"),
        (["--model", model, "--captions", "good.jsonl"], "--model"),
        (["--model", "nowhere/x/y"], "nowhere/x/y"),
        (["--captions", "good.jsonl", "--metrics", "cider,spise"], "did you mean spice"),
        (["--captions", "good.jsonl", "--split", "test"], "--split"),
        (["--captions", "good.jsonl", "--data", "good.jsonl", "--split", "test"], "good.jsonl"),
        (["--captions", "short.jsonl"], "3.png"),
        (["--captions", "twice.jsonl"], "twice.jsonl:6"),
        (["--captions", "uneven.jsonl"], "uneven.jsonl"),
        (["--captions", "odd.jsonl"], "odd.jsonl:1"),
        (["--captions", "none.jsonl"], "none.jsonl"),
        (["--captions", "missing.jsonl"], "missing.jsonl"),
    ]
    for argv, told in asks:
        code, text = cli("--data", pictures, "--out", "e", "--tokenizer", "words", *argv)
        assert code == 2 and told in text and text.count("error:") == 1, (argv, text)
    code, text = cli("--data", "nothing.json", "--captions", "good.jsonl", "--out", "e")
    assert code == 2 and "nothing.json" in text
    write_jsonl(tmp_path / "bare.jsonl", [{"prompt": "what?", "responses": [{"text": "x", "role": "rejected"}]}])
    assert cli("--data", "bare.jsonl", "--captions", "good.jsonl", "--out", "e")[0] == 2
