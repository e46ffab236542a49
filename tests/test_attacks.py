"""Inputs that attack, kind by kind: refused in one line, and nothing else of this machine touched or shown."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import math
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from cwdpo.chat.client import ChatClient, ServiceError, _read  # pyright: ignore[reportPrivateUsage]
from cwdpo.errors import RecipeError, RunError, UserError, printable
from cwdpo.evaluation.score_responses import score_responses
from cwdpo.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from cwdpo.outputs import LIST, OwnedFolder, output, require_replaceable
from cwdpo.planning.gpus import parse_gpus, read_layout
from cwdpo.recipe.endpoint_sections import JudgeSection
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.report.read_run import read_run

# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["on", "1_000", "0x10", ".nan", "2026-01-01", "{a: 1}", "x", "[1]", "[[0]]"])
def test_a_schedule_that_is_none(value: str) -> None:
    with pytest.raises(RecipeError, match=r"schedule|mix|stage2"):
        load_recipe(overrides=[f"negatives.stage2.schedule={value}"])


@pytest.mark.parametrize(
    "key", ["data.path", "data.held_out_path", "data.image_root", "model.path", "model.vision_cache_folder"]
)
@pytest.mark.parametrize("value", ["''", "' '", '"\\t"'])
def test_an_empty_path_is_not_the_current_folder(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=key):
        load_recipe(overrides=[f"{key}={value}"])


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1.2.3GB@4TFLOPs", ".GB@1TFLOPs", "8x..GB@.TFLOPs", "9" * 400 + "GB@1TFLOPs"])
def test_a_gpu_that_is_none(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_gpus(text)


@pytest.mark.parametrize("settings", [[1], "x", 3, None, {}, {"fsdp_version": "2"}])
def test_a_layout_that_is_none(settings: object, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.dump({"distributed_type": "FSDP", "fsdp_config": settings}))
    with pytest.raises(RecipeError, match="fsdp_version"):
        read_layout(file)


# -- a stranger's folder ----------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    with output(folder / "out.txt", "test") as draft:
        draft.file.write_text("ours")


def own(folder: Path) -> None:
    with OwnedFolder(folder, "test", alone=False):
        pass


def ask(folder: Path) -> None:
    (folder / "out.txt").write_text("there")
    require_replaceable(folder / "out.txt", "test")


@pytest.mark.parametrize("do", [write, own, ask])
@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.symlink_to("../mine"), Path.mkdir])
def test_the_list_of_a_folder_is_no_way_out_of_it(
    do: Callable[[Path], None], made: Callable[[Path], Any], tmp_path: Path
) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.write_text("no line end")
    folder.mkdir()
    made(folder / LIST)
    with pytest.raises(RunError, match=LIST):
        do(folder)
    assert mine.read_text() == "no line end"


def test_a_draft_is_no_way_out_of_a_folder(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    folder.mkdir()
    (mine / "out.txt").write_text("mine")
    (folder / ".out.txt.draft").symlink_to(mine)
    with pytest.raises(RunError, match="a link"):
        write(folder)
    assert (mine / "out.txt").read_text() == "mine" and len(list(mine.iterdir())) == 1


@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json", "evaluation/rows.jsonl", "stage2/metrics.jsonl"])
@pytest.mark.parametrize("through_a_folder", [False, True])
def test_a_report_shows_no_file_that_a_link_leads_to(name: str, through_a_folder: bool, tmp_path: Path) -> None:
    secret, run = tmp_path / "secret", tmp_path / "run"
    for folder in (secret, run):
        (folder / name).parent.mkdir(parents=True)
    (secret / name).write_text('{"secret": 1}\n')
    (run / "recipe.yaml").write_text("name: a\n")
    target = (run / name).parent if through_a_folder and "/" in name else run / name
    target.rmdir() if target.is_dir() else target.unlink(missing_ok=True)
    target.symlink_to(secret / target.relative_to(run))
    if name == "recipe.yaml":
        with pytest.raises(RunError, match=name):
            read_run(run)
        return
    read = read_run(run)
    assert "secret" not in str(read.files) and name in read.troubles[0]


@pytest.mark.parametrize(("former", "name"), [("shared", "AutoScorer"), ("token_scores", "scores_from_logits")])
def test_former_names_are_imported(former: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"cwdpo.scoring.{former}"), name)


# -- text that is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "\udc00\ud800"])
def test_halves_of_surrogate_pairs_are_written_and_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{text: text}])
    append_jsonl(path, {"a": [text, "é"]})
    assert list(read_jsonl(path)) == [{text: text}, {"a": [text, "é"]}]
    write_json(tmp_path / "a.json", {"a": text})
    assert read_json(tmp_path / "a.json") == {"a": text}
    assert printable(text) == re.sub("[\ud800-\udfff]", "\ufffd", text)


@pytest.mark.parametrize("raw", [r"\ud800", r"\u001b[31m", r"\u009b", r"\u0000"])
@pytest.mark.parametrize("inner", [False, True])
def test_answers_hold_nothing_that_a_file_or_a_terminal_would_trip_over(raw: str, inner: bool) -> None:
    content = f'{{"caption": "a {raw} b"}}'
    said = json.dumps(content) if inner else json.dumps(content).replace("\\\\u", "\\u")
    reply = _read(f'{{"choices": [{{"message": {{"content": {said}}}}}]}}'.encode(), {"messages": []})
    texts = [reply.text, reply.json()["caption"]] if inner or raw != r"\u0000" else [reply.text]
    assert all(text.encode() for text in texts)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(texts))


def test_what_follows_a_compressed_answer_counts_towards_the_limit() -> None:
    async def stream(_: int) -> AsyncIterator[bytes]:
        yield gzip.compress(b"{}")
        for _ in range(100):
            yield bytes(65536)

    client = ChatClient(JudgeSection(base_url="http://localhost/v1", model="m", answer_limit=1))
    response: Any = SimpleNamespace(headers={"content-encoding": "gzip"}, aiter_raw=stream)
    with pytest.raises(ServiceError, match="answer_limit"):
        asyncio.run(client._content(response))  # pyright: ignore[reportPrivateUsage]


# -- models that are not what they seem --------------------------------------------------------------------------------


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoiled(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoiled


HEAD = "lm_head.weight"
MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no numbers": (spoil(lambda w: w.update({k: v * math.nan for k, v in w.items()})), "NaN"),
    "another shape": (
        spoil(lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:-1].clone()})),
        "lm_head.weight",
    ),
    "half a generation config": (lambda f: (f / "generation_config.json").write_text('{"a'), "generation_config.json"),
    "an empty generation config": (lambda f: (f / "generation_config.json").write_text(""), "generation_config.json"),
    "no heads": (lambda f: change_config(f, num_attention_heads=0), "cannot be loaded"),
    "patches of nothing": (lambda f: change_patches(f, 0), "division by zero"),
    "an adapter of itself": (lambda f: adapter(f, base_model_name_or_path="m"), "merge"),
    "an adapter without a scale": (lambda f: adapter(f, lora_alpha=None), "adapter"),
    "an adapter whose layers are no pattern": (lambda f: adapter(f, target_modules="("), "adapter"),
    "no words": (lambda f: change_config(f, vocab_size=5), "config.json asks for"),
    "no tower": (lambda f: change_config(f, None, vision_config=None), "vision_config"),
    "a tower of no sizes": (lambda f: change_config(f, None, vision_config={}), "vision_config"),
}


def change_config(folder: Path, part: str | None = "text_config", **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


def change_patches(folder: Path, size: int) -> None:
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["patch_size"] = size
    (folder / "processor_config.json").write_text(json.dumps(settings))


def adapter(folder: Path, **values: Any) -> None:
    """Make the model an adapter of a copy of it."""
    shutil.copytree(folder, "base")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": 2,
        "target_modules": "all-linear",
        **values,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | values))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_what_it_seems(
    name: str, tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder("qwen2_5_vl"), "m")
    Image.new("RGB", (28, 28)).save("a.png")
    Path("a.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "what ?", "chosen": "a", "rejected": "b"}))
    change, said = MODELS[name]
    change(Path("m"))
    with pytest.raises(UserError, match=said):
        score_responses("m", Path("a.jsonl"), reference=None, floor=-3, tau=1, batch_size=2)
