"""The commands as a user runs them, on small data with a tiny model; figures against naive computations."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from cwdpo.data import load_groups
from cwdpo.data.read_source import DataSource
from cwdpo.models.processors import load_processor
from cwdpo.recipe.commented_recipe import commented_yaml
from cwdpo.recipe.load_recipe import load_recipe
from tiny_models import tiny_image, tiny_model
from tiny_runs import Cli, CliServer, files_of, rows_of, tiny_recipe, write_yaml


@pytest.fixture
def cli(cli: Cli) -> Callable[..., str]:
    """`cli("check", …)`; what it wrote to stdout. It must end well."""
    return lambda *argv: cli(*argv).good


def data_file(folder: Path, count: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for i in range(count):
        tiny_image(folder / f"{i}.png", 28, 28 if i % 3 else 56)
        answers = {"chosen": f"a red square {'left ' * (i % 4)}", "rejected": ["a star", "two large triangles"]}
        lines.append(json.dumps({"id": f"r{i}", "prompt": "what is this ?", "image": f"{i}.png", **answers}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.jsonl"


# -- start-up --------------------------------------------------------------------------------------------------------

COMMANDS = ("demo", "init", "check", "train", "methods", "benchmark", "report", "export", "score", "caption")


@pytest.mark.parametrize("argv", [("--help",), *((c, "--help") for c in COMMANDS), ("--version",)])
def test_help(argv: tuple[str, ...], cli: Callable[..., str]) -> None:
    text = cli(*argv)
    assert len(text) > 4
    if argv == ("--help",):
        assert all(c in text for c in COMMANDS)


def test_help_is_quick() -> None:
    """No torch before it is needed; seconds are of the processor, as the machine may be busy."""
    code = (
        "import sys; sys.argv = ['cwdpo', '--help']\nimport cwdpo.cli\ntry: cwdpo.cli.main()\nexcept SystemExit: pass\n"
    )
    code += (
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    assert done.stderr.strip() == "[]"
    assert (after.children_user + after.children_system) - (before.children_user + before.children_system) < 1.0


def test_module_is_the_command(cli_server: CliServer) -> None:
    done = subprocess.run([sys.executable, "-m", "cwdpo", "--version"], capture_output=True, text=True, check=True)
    code, call = cli_server.run("--version")
    assert code == 0 and call.stdout == done.stdout


# -- init, check, train, report --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recipe", "no", "123", "a b"])
@pytest.mark.parametrize("every_field", [True, False])
def test_init_writes_what_loads_back_equal(
    every_field: bool, name: str, cli: Callable[..., str], tmp_path: Path
) -> None:
    data = data_file(tmp_path / "data")
    more = ["--all"] * every_field
    cli("init", "--model", "owner/model-7b", "--data", data, "--out", f"{name}.yaml", *more)
    recipe = load_recipe(Path(f"{name}.yaml"))
    assert recipe.name == name and recipe.model.path == "owner/model-7b" and recipe.data.path == str(data)
    assert recipe.model.lora is not None and recipe.model.freeze == ["vision"]
    text = Path(f"{name}.yaml").read_text()
    assert commented_yaml(recipe, every_field=every_field) == text
    assert every_field or (text.count("\n") <= 60 and "cwdpo init --all" in text)
    assert max(map(len, text.splitlines())) <= 120


def test_init_without_options(cli: Callable[..., str]) -> None:
    assert "next: cwdpo check recipe.yaml" in cli("init")
    assert load_recipe(Path("recipe.yaml")).model.path == "scenes"
    cli("init", "--force")


def test_init_gives_captions_some_negatives(cli: Callable[..., str], tmp_path: Path) -> None:
    """A folder of captions has no rejected responses: the recipe takes them elsewhere."""
    tiny_image(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a star\n", encoding="utf-8")
    cli("init", "--data", tmp_path, "--out", tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text().count("\n") <= 60
    found = load_recipe(tmp_path / "r.yaml").negatives
    assert found.stage1.shares() == {"perturb": 1, "other": 1}
    assert found.stage2.shares() == {"perturb": 3, "other": 1}


def test_check_writes_and_trains_nothing(
    cli: Callable[..., str], tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    data = data_file(tmp_path / "data")
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), data={"path": str(data), "held_out": 4})
    values["stage1"]["max_steps"] = -1
    recipe = write_yaml(tmp_path / "recipe.yaml", values)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    text = cli("check", recipe)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    # 16 rows, 4 held out, 75 % of 12 are 9: 9 rows in updates of 8 are 2 updates
    for part in ("format cwdpo, 16 rows", "stage1: 9 prompts (9 chosen, 18 rejected), 2 updates of 8", "held out: 4"):
        assert part in text, text
    assert text.count("row  data.jsonl:") == 3
    assert "a red square" in text and "<|image_pad|>×4" in text
    # the tokenizer writes `<|im_start|>` and the like as one token each
    assert "least" in text and "together" in text and "ok" in text


def test_check_on_scenes(cli: Callable[..., str], tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl")))
    assert "40 pictures will be drawn" in cli("check", recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.fixture(scope="module")
def journey(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> Path:
    """init → check → train, as the README says, with adapters in bfloat16 as `init` proposes."""
    folder = tmp_path_factory.mktemp("journey")
    data_file(folder / "data")
    shutil.copytree(tiny_folder("qwen2_5_vl"), folder / "model")
    small = ("stage1.max_steps=1", "stage2.max_steps=1", "data.held_out=4", "probes.prompts=4", "evaluation.prompts=4")
    small += ("stage1.batch_size=4", "stage1.micro_batch_size=4", "stage2.batch_size=4", "stage2.micro_batch_size=4")
    sets = [part for key in (*small, "evaluation.max_new_tokens=4") for part in ("--set", key)]
    for argv in (
        ("init", "--model", "model", "--data", "data/data.jsonl", "--out", "mine.yaml"),
        ("check", "mine.yaml", *sets),
        ("train", "mine.yaml", *sets),
    ):
        code, call = cli_server.run(*argv, cwd=folder)
        assert code == 0, call.stderr
    assert "report: " in call.stdout and "model: " in call.stdout and "held-out prompts" in call.stdout
    return folder


def test_train_goes_where_it_says(journey: Path) -> None:
    run = journey / "runs" / "mine"
    for name in ("recipe.yaml", "manifest.json", "report.html", "stage1/model/adapter_model.safetensors"):
        assert (run / name).is_file()
    # Image paths inside the run are relative, those outside are absolute: the data lies outside here.
    for row in rows_of(run / "data" / "stage1.jsonl"):
        assert row["images"] == [str(journey / "data" / Path(row["images"][0]).name)]
    # The adapter finds its base from any folder.
    settings = json.loads((run / "stage2" / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(journey / "model")
    # peft keeps names of layers as sets, in another order in every process; they are part of the model's digest.
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_report_of_a_copied_run(journey: Path, tmp_path: Path, cli: Callable[..., str]) -> None:
    shutil.copytree(journey / "runs" / "mine", tmp_path / "elsewhere")
    cli("report", "elsewhere", "--out", "page.html")
    assert "<html" in Path("page.html").read_text(encoding="utf-8")


def test_score_with_the_run_s_adapter(journey: Path, tmp_path: Path, cli: Callable[..., str]) -> None:
    cli(
        "score",
        "--model",
        journey / "runs/mine/stage2/model",
        "--data",
        journey / "data/data.jsonl",
        "--out",
        "s.jsonl",
    )
    assert len(rows_of(Path("s.jsonl"))) == 48


def test_a_scenes_run_can_be_copied(tmp_path: Path, scenes_run: tuple[Path, Path, int]) -> None:
    """Images drawn into the run are found by relative paths; a row's image too."""
    _, run, _ = scenes_run
    moved = shutil.copytree(run, tmp_path / "moved")
    for part in ("stage1", "stage2", "held_out"):
        groups = load_groups(DataSource(path=moved / "data" / f"{part}.jsonl", require="response")).groups
        assert groups and all(Path(str(g.images[0].path)).is_relative_to(moved) for g in groups)
    rows = rows_of(moved / "evaluation" / "rows.jsonl")
    assert len(rows) == 6 and all((moved / row["image"]).is_file() for row in rows)
    assert not any(str(run) in (moved / f).read_text(errors="ignore") for f in files_of(moved) if "data" in f)


def test_images_inside_a_table_become_files_of_the_run(
    tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """Parquet with image bytes, and a run directory given by a relative path."""
    import datasets

    folder = tmp_path / "data"
    data_file(folder, 12)
    rows = rows_of(folder / "data.jsonl")
    for row in rows:
        row["image"] = {"bytes": (folder / row["image"]).read_bytes(), "path": None}
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    small, mix = {"max_steps": 1, "batch_size": 4, "micro_batch_size": 4}, {"dataset": 1}
    values = tiny_recipe(
        tiny_folder("qwen2_5_vl"),
        data={"path": "data/train.parquet", "held_out": 3},
        negatives={"stage1": mix, "stage2": mix},
        stage1=small,
        stage2=small,
        probes={"every": 0},
        evaluation={"prompts": 0},
    )
    code, call = cli_server.run("train", write_yaml(tmp_path / "r.yaml", values), "--out", "runs/a", cwd=tmp_path)
    assert code == 0, call.stderr
    run = tmp_path / "runs" / "a"
    assert all(row["images"][0].startswith("images/") for row in rows_of(run / "data" / "stage1.jsonl"))
    assert len(list((run / "data" / "images").iterdir())) == 12
    assert not (run / "evaluation").exists()


# -- score, caption --------------------------------------------------------------------------------------------------


def naive(folder: Path, image: Path, prompt: str, answer: str) -> dict[str, float]:
    """Score one answer with plain transformers: the whole text through the processor, no batch, no sharing."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor: Any = load_processor(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    before = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    whole = processor(text=[before + answer + "<|im_end|>"], images=[Image.open(image)], return_tensors="pt")
    start = processor(text=[before], images=[Image.open(image)], return_tensors="pt")["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**whole).logits[0, start - 1 : -1].float()
    log_probs = logits.log_softmax(-1)
    gold = log_probs.gather(-1, whole["input_ids"][0, start:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    return {
        "logp_sum": float(gold.sum()),
        "logp_mean": float(gold.mean()),
        "tokens": len(gold),
        "entropy": float(entropy),
    }


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> tuple[Path, Path]:
    """A model and another one to be its reference."""
    other = tmp_path_factory.mktemp("reference") / "model"
    shutil.copytree(tiny_folder("qwen2_5_vl"), other)
    tiny_model("qwen2_5_vl", seed=7).save_pretrained(other)
    return tiny_folder("qwen2_5_vl"), other


@pytest.mark.parametrize("with_reference", [False, True])
def test_score(with_reference: bool, cli: Callable[..., str], tmp_path: Path, two_models: tuple[Path, Path]) -> None:
    data, (policy, other) = data_file(tmp_path / "data", 5), two_models
    more = ("--reference", other, "--floor", "-4", "--tau", "2") if with_reference else ()
    text = cli("score", "--model", policy, "--data", data, "--out", "s.jsonl", "--batch-size", "2", *more)
    assert "wrote 15 responses to s.jsonl" in text
    rows = rows_of(Path("s.jsonl"))
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(5) for _ in range(3)]
    assert [row["role"] for row in rows[:3]] == ["chosen", "rejected", "rejected"]
    for row in (rows[0], rows[4], rows[11]):
        image = tmp_path / "data" / f"{row['id'][1:]}.png"
        mine = naive(policy, image, "what is this ?", row["text"])
        for name, value in mine.items():
            assert row[name] == pytest.approx(value, abs=2e-4), name
        if with_reference:
            theirs = naive(other, image, "what is this ?", row["text"])
            assert row["delta"] == pytest.approx(mine["logp_sum"] - theirs["logp_sum"], abs=4e-4)
            # Eq. 6: σ((ℓ̄ − ℓ_floor) / τ)
            weight = 1 / (1 + math.exp(-(mine["logp_mean"] + 4) / 2))
            assert row["cooling_weight"] == pytest.approx(weight, abs=1e-4)
        else:
            assert not {"delta", "cooling_weight"} & row.keys()


def test_caption(cli: Callable[..., str], tmp_path: Path, two_models: tuple[Path, Path]) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for name in ("b.png", "a.png", "deep/c.PNG"):
        tiny_image(pictures / name, 28, 28)
    (pictures / "notes.txt").write_text("not a picture", encoding="utf-8")
    text = cli("caption", "--model", two_models[0], "--images", pictures, "--out", "c.jsonl", "--max-new-tokens", "5")
    assert "wrote 3 captions" in text
    rows = rows_of(Path("c.jsonl"))
    assert [row["image"] for row in rows] == [str(pictures / n) for n in ("a.png", "b.png", "deep/c.PNG")]
    model = AutoModelForImageTextToText.from_pretrained(two_models[0]).eval()
    processor: Any = load_processor(two_models[0])
    turn = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Describe the image in one sentence."}],
    }
    prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    for row in rows:
        inputs = processor(text=[prompt], images=[Image.open(row["image"])], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert row["caption"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cwdpo.jsonl", "c.jsonl", "pictures"]
