"""What a user can get wrong: one line on stderr (what, where, what to do), exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cwdpo.files import append_jsonl, file_digest
from cwdpo.recipe import Recipe
from cwdpo.run.run_dir import first_reader
from tiny_models import image_rows, tiny_image
from tiny_runs import Cli, CliServer, failures_left, tiny_recipe, write_yaml


@pytest.fixture
def cli(cli: Cli, tmp_path: Path, tiny_folder: Any) -> Iterator[Cli]:
    """`cli("train", …)`; afterwards nothing half-written may lie there."""
    tiny_folder("qwen2_5_vl")
    yield cli
    assert not list(failures_left(tmp_path))


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Callable[..., Path]:
    """`recipe(section={…})`: a recipe file of a tiny run, changed."""

    def write(**changes: Any) -> Path:
        values = tiny_recipe(tiny_folder("qwen2_5_vl"), **changes)
        return write_yaml(tmp_path / "recipe.yaml", values)

    return write


def write_rows(folder: Path, values: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


# -- recipes ---------------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "unknown key": ({"stage2": {"betta": 0.2}}, ("stage2.betta", "`beta`")),
    "unknown section": ({"stage3": {"beta": 0.2}}, ("`stage3`", "`stage")),
    "wrong type": ({"stage2": {"beta": "much"}}, ("stage2.beta", "'much'")),
    "wrong type in a union": ({"data": {"held_out": "some"}}, ("`data.held_out`", "'some'")),
    "wrong type in a list": ({"model": {"freeze": ["eyes"]}}, ("`model.freeze`", "'eyes'", "vision")),
    "section is a number": ({"stage2": 5}, ("`stage2` = 5",)),
    "out of range": ({"stage2": {"beta": 0}}, ("stage2.beta", "0")),
    "not finite": ({"stage2": {"floor": float("nan")}}, ("stage2.floor", "nan")),
    "two that conflict": (
        {"model": {"freeze": ["vision"], "train_fully": ["vision"], "lora": {}}},
        ("model.freeze", "model.train_fully", "vision"),
    ),
    "adapters beside": ({"model": {"train_fully": ["language"], "lora": {}}}, ("model.train_fully", "model.lora")),
    "needs another": ({"model": {"train_fully": ["vision"]}}, ("model.train_fully", "model.lora")),
    "no padding, separate": ({"model": {"padding_free": True, "scorer": "separate"}}, ("padding_free", "scorer: auto")),
    "both stages off": ({"stage1": {"enabled": False}, "stage2": {"enabled": False}}, ("stage1.enabled",)),
    "every share 0": ({"negatives": {"stage2": {"dataset": 0}}}, ("share",)),
    "cut of the batch": ({"stage1": {"batch_size": 10, "micro_batch_size": 4}}, ("stage1.batch_size = 10", "= 4")),
    "format of scenes": ({"data": {"path": "some.jsonl", "format": "scenes"}}, ("data.format", "format: auto")),
    "path of scenes": ({"data": {"path": "scenes", "format": "trl"}}, ("data.format", "format: auto")),
    "a list": ([1, 2], ("list",)),
    "key is a number": ({3: 4}, ("3",)),
    "not YAML": (b"stage1: [1, 2", ()),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe", ()),
    "a key twice": (b"seed: 1\nseed: 2\n", ("'seed'",)),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipe(case: str, cli: Cli, tmp_path: Path) -> None:
    values, named = RECIPES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(values) if isinstance(values, bytes) else write_yaml(path, values)
    line = cli("train", path).line
    assert all(part in line for part in ("mine.yaml", *named)), line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_data_in_place_of_a_recipe(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for path in (tmp_path / "rows.jsonl", tmp_path):
        assert f"cwdpo init --data {path}" in cli("check", path).line


def test_recipe_missing(cli: Cli, tmp_path: Path) -> None:
    for command in ("train", "check"):
        line = cli(command, "nowhere.yaml").line
        assert "nowhere.yaml" in line and "cwdpo init" in line
    assert str(tmp_path) in cli("train", tmp_path).line


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stage2.beta", "section.key=value"),
        ("=0.2", "section.key=value"),
        ("stage2..beta=1", "section.key=value"),
        ("stage2.beta=[1", "stage2.beta"),
        ("stage2.betta=0.2", "`beta`"),
        ("seed.deep=1", "seed"),
        ("stage2.beta.deep=1", "stage2.beta"),
        ("stage2=4", "stage2"),
    ],
)
def test_override(override: str, named: str, cli: Cli, recipe: Callable[..., Path]) -> None:
    assert named in cli("train", recipe(), "--set", override).line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains it")
def test_flex_attention_on_a_cpu(cli: Cli, recipe: Callable[..., Path]) -> None:
    line = cli("train", recipe(), "--set", "model.attention=flex_attention").line
    assert "flex_attention" in line and "model.attention: sdpa" in line


# -- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ("trian",),
        ("train",),
        ("train", "--nope", "x.yaml"),
        ("score", "--model", "x"),
        ("demo", "--seed", "many"),
        ("caption", "--model", "m", "--images", "i", "--out", "o", "--batch-size", "0"),
    ],
)
def test_usage(argv: tuple[str, ...], cli: Cli) -> None:
    said = cli(*argv)
    assert said.code == 2
    assert "Traceback" not in said.err


# -- data ------------------------------------------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "missing image": ({"image": "nowhere.png"}, "nowhere.png"),
    "empty response": ({"chosen": " "}, "chosen"),
    "two tags, one image": ({"prompt": "<image> <image> which ?"}, "image"),
}
"""Which rows are bad is asked in tests/data."""


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("command", ["train", "score"])
def test_row(
    case: str, command: str, cli: Cli, tmp_path: Path, recipe: Callable[..., Path], tiny_folder: Callable[[str], Path]
) -> None:
    changes, said = ROWS[case]
    path = write_rows(tmp_path, image_rows(tmp_path, **changes))
    if command == "score":
        line = cli("score", "--model", tiny_folder("qwen2_5_vl"), "--data", path, "--out", "out.jsonl").line
        assert not Path("out.jsonl").exists()
    else:
        line = cli(command, recipe(data={"path": str(path)})).line
    assert "data.jsonl" in line and "row 3" in line and said in line, line
    assert not (tmp_path / "runs" / "recipe" / "data").exists()


def _text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def _nothing_in_it(folder: Path) -> Path:
    (folder / "bare").mkdir()
    return folder / "bare"


FILES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda folder: folder / "nowhere.jsonl",
    "empty": lambda folder: _text(folder / "data.jsonl", ""),
    "folder without data": _nothing_in_it,
    "unknown columns": lambda folder: write_rows(folder, [{"question": "?", "answer": "!"}] * 12),
}
"""What is wrong with a file is asked in tests/data."""


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("command", ["check", "init"])
def test_file(
    case: str, command: str, cli: Cli, tmp_path: Path, recipe: Callable[..., Path], tiny_folder: Callable[[str], Path]
) -> None:
    path = FILES[case](tmp_path)
    if command == "init":
        line = cli("init", "--data", path, "--out", "new.yaml").line
        assert not Path("new.yaml").exists()
    else:
        line = cli(command, recipe(data={"path": str(path)})).line
    assert path.name in line, line


def test_too_many_rows_skipped(cli: Cli, tmp_path: Path, recipe: Callable[..., Path]) -> None:
    values = image_rows(tmp_path)
    for row in values[:3]:
        row["chosen"] = ""
    path = write_rows(tmp_path, values)
    line = cli("train", recipe(data={"path": str(path), "on_bad_row": "skip", "max_bad_share": 0.2})).line
    # 3 of 12 = 25 %
    assert "3 of 12" in line and "25.0%" in line and "data.max_bad_share = 20.0%" in line and "empty response" in line


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize(
    ("count", "changes", "said"),
    [
        (12, {"held_out": 12}, "data.held_out = 12: must be less than the 12 rows"),
        (3, {"held_out": 2}, "leave nothing for"),
        (12, {"held_out": 1.5}, "data.held_out = 1.5: must be a share below 1 or a whole number"),
    ],
)
def test_too_few_rows(
    count: int, changes: dict[str, Any], said: str, command: str, cli: Cli, tmp_path: Path, recipe: Callable[..., Path]
) -> None:
    path = write_rows(tmp_path, image_rows(tmp_path, count))
    assert said in cli(command, recipe(data={"path": str(path), **changes})).line


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_negatives(stage: str, command: str, cli: Cli, tmp_path: Path, recipe: Callable[..., Path]) -> None:
    """Found before any training, though Stage 2 comes after it."""
    values = [{k: v for k, v in row.items() if k != "rejected"} for row in image_rows(tmp_path)]
    negatives = {"stage1": {"dataset": 0, "other": 1}, "stage2": {"dataset": 0, "other": 1}} | {stage: {"dataset": 1}}
    changes: dict[str, Any] = {"data": {"path": str(write_rows(tmp_path, values))}, "negatives": negatives}
    line = cli(command, recipe(**changes)).line
    assert f"no row of {stage} has a rejected response" in line and f"negatives.{stage}.beam=1" in line
    assert not (tmp_path / "runs" / "recipe" / "stage1").exists()


def test_row_longer_than_allowed(cli: Cli, tmp_path: Path, recipe: Callable[..., Path]) -> None:
    path = write_rows(tmp_path, image_rows(tmp_path, chosen="a red square " * 30))
    changes: dict[str, Any] = {"data": {"path": str(path), "held_out": 2}, "model": {"max_length": 60}}
    changes["negatives"] = {"stage1": {"dataset": 1}, "stage2": {"dataset": 1}}
    for command in ("check", "train"):
        said = cli(command, recipe(**changes))
        line = said.err.splitlines()[-1]
        assert said.code == 2 and line.startswith("error: ") and "Traceback" not in said.err
        assert "data.jsonl row 3" in line and "the limit is 60" in line and "max_length" in line


# -- images for `caption` --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: folder / "nowhere.png", "nowhere.png"),
        (lambda folder: _text(folder / "words.png", "not a picture"), "words.png"),
        (_nothing_in_it, "bare"),
        (lambda folder: _half_an_image(folder), "half.png"),
    ],
)
def test_caption(
    make: Callable[[Path], Path], named: str, cli: Cli, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    line = cli("caption", "--model", tiny_folder("qwen2_5_vl"), "--images", make(tmp_path), "--out", "out.jsonl").line
    assert line.count(named) == 1 and not Path("out.jsonl").exists(), line


def _half_an_image(folder: Path) -> Path:
    (folder / "pictures").mkdir()
    tiny_image(folder / "pictures" / "half.png", 56, 56)
    _truncated(folder / "pictures" / "half.png")
    return folder / "pictures"


# -- model directories -----------------------------------------------------------------------------------------------


def _copied(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target)
    for name in without:
        (target / name).unlink()
    return target


def _cut_weights(source: Path, target: Path) -> Path:
    _truncated(_copied(source, target) / "model.safetensors")
    return target


def _fewer_weights(source: Path, target: Path) -> Path:
    from safetensors.torch import load_file, save_file

    weights = load_file(_copied(source, target) / "model.safetensors")
    weights.pop(next(name for name in weights if "embed_tokens" in name))
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def _text_model(source: Path, target: Path) -> Path:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 300}
    _text(_copied(source, target) / "config.json", json.dumps(config))
    return target


def _config(content: str) -> Callable[[Path, Path], Path]:
    def make(source: Path, target: Path) -> Path:
        _text(_copied(source, target) / "config.json", content)
        return target

    return make


def _adapter_without_base(source: Path, target: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(source)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(target)
    _copied(source, target.with_name("whole"))
    for file in target.with_name("whole").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, target)
    settings = json.loads((target / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(target.with_name("gone"))
    _text(target / "adapter_config.json", json.dumps(settings))
    return target


def _other_sizes(source: Path, target: Path) -> Path:
    settings = json.loads((_copied(source, target) / "config.json").read_text())
    settings["text_config"]["intermediate_size"] = 100
    _text(target / "config.json", json.dumps(settings))
    return target


MODELS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "missing": (lambda source, target: target, "model"),
    "missing, relative": (lambda source, target: Path("models/mine"), "models/mine"),
    "a file": (lambda source, target: _text(target, "hello"), "model"),
    "empty folder": (lambda source, target: (target.mkdir(), target)[1], "config.json"),
    "no config": (lambda source, target: _copied(source, target, "config.json"), "config.json"),
    "config is no json": (_config("{"), "config.json"),
    "config is a list": (_config("[]"), "config"),
    "config of a text model": (_text_model, "llama"),
    "unknown model type": (_config('{"model_type": "unheard_of"}'), "unheard_of"),
    "other sizes": (_other_sizes, "model"),
    "weights cut short": (_cut_weights, "weights"),
    "a weight missing": (_fewer_weights, "weights"),
    "no weights": (lambda source, target: _copied(source, target, "model.safetensors"), "safetensors"),
    "no processor": (lambda source, target: _copied(source, target, "processor_config.json"), "processor_config.json"),
    "no tokenizer": (
        lambda source, target: _copied(source, target, "tokenizer.json", "tokenizer_config.json"),
        "tokenizer",
    ),
    "adapter without its base": (_adapter_without_base, "gone"),
}


@pytest.mark.parametrize(
    ("case", "command"), [*((case, "score") for case in MODELS), ("missing", "train"), ("a weight missing", "train")]
)
def test_model(
    case: str, command: str, cli: Cli, tmp_path: Path, recipe: Callable[..., Path], tiny_folder: Callable[[str], Path]
) -> None:
    make, named = MODELS[case]
    model = make(tiny_folder("qwen2_5_vl"), tmp_path / "model")
    data = write_rows(tmp_path, image_rows(tmp_path, 4))
    if command == "train":
        result = cli("train", recipe(model={"path": str(model)}, negatives={}))
    else:
        result = cli("score", "--model", model, "--data", data, "--out", "out.jsonl")
    line = result.err.splitlines()[-1]
    assert result.code == 2 and line.startswith("error: ") and "Traceback" not in result.err, result.err
    late = command == "train" and case == "a weight missing"  # seen while loading: a run has said what it was doing
    assert late or result.err.count("\n") == 1, result.err
    assert named in line and len(line) < 600, line
    assert not Path("out.jsonl").exists()


# -- run directories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "step"),
    [
        ("stage1.learning_rate=1", "stage1"),
        ("stage2.beta=0.5", "stage2"),
        ("evaluation.prompts=3", "evaluation"),
        ("data.split_seed=9", "data"),
        ("seed=9", "stage1"),
        ("model.lora.r=4", "negatives/stage1"),
        ("negatives.stage2.other=1", "negatives/stage2"),
    ],
)
def test_recipe_changed_under_a_step(override: str, step: str, cli: Cli, rows_run: Path) -> None:
    folder = rows_run
    before = {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*")}
    line = cli("train", folder / "recipe.yaml", "--set", override, "--out", folder / "run").line
    assert override.split("=")[0].removesuffix(".r") in line and f"the step {step} was made" in line
    assert "was " in line and "now " in line and "--out" in line
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*")}


def test_every_key_has_a_step_that_reads_it_first() -> None:
    def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else (f"{prefix}{name}",)

    found = {key: first_reader(key) for key in keys(Recipe().model_dump())}
    assert {found[k] for k in ("data.path", "data.group_by_length", "stage2.beta")} == {"data", "stage1", "stage2"}
    with pytest.raises(KeyError):
        first_reader("stage3.beta")


@pytest.mark.parametrize("override", ["name=other", "data.workers=1", "evaluation.samples=3", "stage2.save_steps=7"])
def test_recipe_changed_where_it_does_not_matter(override: str, rows_run: Path, cli_server: CliServer) -> None:
    folder = rows_run
    code, call = cli_server.run("train", folder / "recipe.yaml", "--set", override, "--out", folder / "run")
    assert code == 0, call.stderr


def test_a_key_that_came_later_and_a_model_that_moved(rows_run: Path, tmp_path: Path, cli_server: CliServer) -> None:
    folder = rows_run
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    shutil.copytree(folder / "run", tmp_path / "run")
    kept = tmp_path / "run" / "recipe.yaml"
    older = yaml.safe_load(kept.read_text())
    del older["stage2"]["renormalise"], older["negatives"]["stage2"]["refresh"]
    _text(kept, yaml.safe_dump(older))
    append_jsonl(tmp_path / "run" / ".cwdpo.jsonl", {"file": kept.name, "sha256": file_digest(kept), "by": "train"})
    model = _copied(Path(values["model"]["path"]), tmp_path / "model")
    code, call = cli_server.run(
        "train", folder / "recipe.yaml", "--set", f"model.path={model}", "--out", tmp_path / "run"
    )
    assert code == 0, call.stderr


def test_data_changed(cli: Cli, rows_run: Path, tmp_path: Path) -> None:
    folder = rows_run
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    shutil.copytree(folder, tmp_path / "copy")
    data = Path(values["data"]["path"])
    content = data.read_text()
    try:
        data.write_text(content + "\n")
        said = cli("train", folder / "recipe.yaml", "--out", tmp_path / "copy" / "run")
    finally:
        data.write_text(content)
    line = said.err.splitlines()[-1]
    assert said.code == 2 and "data.jsonl: the data file has changed since this run began; choose another --out" in line


def test_model_changed(cli: Cli, rows_run: Path, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder = rows_run
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    model = _copied(tiny_folder("qwen2_5_vl"), tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    _text(model / "config.json", json.dumps(settings | {"new": 1}))
    shutil.copytree(folder / "run", tmp_path / "run")
    recipe = write_yaml(tmp_path / "recipe.yaml", values | {"model": {"path": str(model)}})
    assert "has changed since the step negatives/stage1" in cli("train", recipe, "--out", tmp_path / "run").line


def test_full_disk(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")  # as of a write, it names no file

    monkeypatch.setattr("os.fsync", refuse)
    assert "recipe.yaml: No space left on device" in cli("init").line


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--tau", value) for value in ("0", "-1", "nan", "inf")),
        *(("--floor", value) for value in ("nan", "-inf")),
        ("--batch-size", "99999999999999999999"),
    ],
)
def test_score_with_no_number(option: str, value: str, cli: Cli, tmp_path: Path) -> None:
    data = write_rows(tmp_path, image_rows(tmp_path, 4))
    assert option in cli("score", "--model", "scenes", "--data", data, "--out", "o.jsonl", option, value).line


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1e-4"])
def test_influence_with_no_number(value: str, cli: Cli, tmp_path: Path) -> None:
    data = write_rows(tmp_path, image_rows(tmp_path, 4))
    assert (
        "--eta" in cli("influence", "scenes", "--data", data, "--out", "o.jsonl", "--eta", "1e-4", "--eta", value).line
    )


# -- true processes --------------------------------------------------------------------------------------------------


def test_as_processes(cli_server: CliServer, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """The same through real processes: exit code, streams."""
    data = write_rows(tmp_path, image_rows(tmp_path, chosen=""))
    recipe = write_yaml(tmp_path / "r.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), data={"path": str(data)}))
    for argv, said in (
        (("train", tmp_path / "nowhere.yaml"), "no such recipe file"),
        (("train", recipe), "row 3: empty response"),
        (("check", recipe), "row 3: empty response"),
        (("score", "--model", tmp_path, "--data", data, "--out", tmp_path / "o.jsonl"), "row 3"),
    ):
        code, call = cli_server.run(*argv, cwd=tmp_path)
        assert code == 2 and said in call.stderr, call.stderr
        assert call.stderr.count("\n") == 1 and call.stderr.startswith("error: "), call.stderr
