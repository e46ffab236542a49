"""What SECURITY.md says that strangers' files and servers cannot do."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bad_server import completion, edited, serving
from cwdpo.chat.client import ChatClient, ServiceError
from cwdpo.cli.app import app
from cwdpo.data import DataSource, load_groups
from cwdpo.errors import DataError, ModelError, RunError
from cwdpo.models.loading import load_model
from cwdpo.models.model_checks import require_model
from cwdpo.recipe import EditorSection, LoraSection, ModelSection
from cwdpo.training.checkpoints import reading
from tiny_runs import tiny_recipe, write_yaml

SRC = Path(__file__).parents[1] / "src"
KEY = "sk-" + "0123456789abcdef" * 3


class Harmful:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_no_call_in_src_unpickles_runs_text_or_reads_yaml_of_any_kind() -> None:
    """YAML is parsed in one place; nothing unpickles, evaluates, or unpacks archives."""
    forbidden = {"eval", "exec", "unsafe_load", "full_load", "unpack_archive", "extractall", "system", "popen"}
    for path in SRC.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            where = f"{path.relative_to(SRC)}:{node.lineno}: {name}"
            assert name != "eval" and (last not in forbidden or last == "eval"), where
            assert name not in {"torch.load", "pickle.load", "pickle.loads", "yaml.load"}, where
            if name == "yaml.safe_load":
                assert path.name == "lexicon.py", f"{where}: parse_yaml reads what others wrote"
            for keyword in node.keywords:
                assert keyword.arg != "shell", where
                if keyword.arg == "trust_remote_code":
                    assert not isinstance(keyword.value, ast.Constant), where


def test_weights_that_are_pickles_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_folder("qwen2_5_vl"), folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(ModelError, match="safetensors"):
        require_model(str(folder))
    with pytest.raises(ModelError):
        load_model(ModelSection(), folder)
    assert not mark.exists()


def test_an_adapter_that_is_a_pickle_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_folder("qwen2_5_vl")), "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_model(ModelSection(lora=LoraSection()), tmp_path)
    assert not mark.exists()


def test_a_model_with_code_beside_it_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_folder("qwen2_5_vl"), folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"},
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n", encoding="utf-8")
    with pytest.raises(ModelError, match="custom code"):
        load_model(ModelSection(), folder)
    assert not mark.exists()


def test_a_checkpoint_with_a_harmful_pickle_is_refused_in_one_line(tmp_path: Path) -> None:
    """As transformers' Trainer reads optimizer, schedule and random state: a call is not made, and said."""
    mark, file = tmp_path / "mark", tmp_path / "optimizer.pt"
    torch.save({"state": Harmful(mark)}, file)
    with pytest.raises(RunError, match="checkpoint cannot be read") as caught, reading(tmp_path):
        torch.load(file, weights_only=True)
    assert not mark.exists() and "\n" not in str(caught.value)


def test_transformers_reads_checkpoints_without_unpickling() -> None:
    """Every torch.load of the trainer that we build on says weights_only=True."""
    import transformers.trainer

    tree = ast.parse(Path(transformers.trainer.__file__).read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert len(calls) >= 3
    for call in calls:
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), call.lineno


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("../secret.png", "climbs out"),
        ("x/../../secret.png", "climbs out"),
        ("http://169.254.169.254/latest/meta-data", "of a private network"),
        ("http://127.0.0.1:1/a.png", "of a private network"),
        ("s3://bucket/a.png", "only files, http and https"),
        ("file:///etc/passwd", "not an image"),
        ("/etc/passwd", "not an image|not of a known format"),
        ("/dev/zero", "is a folder or a device"),
        ("/proc/self/environ", "empty|not an image|not of a known format"),
        ("a\0.png", "bad image path"),
        ("link.txt", "not of a known format"),
    ],
)
def test_paths_of_images(tmp_path: Path, image: str, says: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (data / "link.txt").symlink_to("/etc/passwd")
    row = {"id": "a", "prompt": "What?", "images": [image], "chosen": "a", "rejected": "b"}
    (data / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        load_groups(DataSource(path=data / "rows.jsonl", workers=1))
    assert "\n" not in str(caught.value) and "root:" not in str(caught.value)


def test_absolute_paths_and_links_to_pictures_are_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "real.png")
    (data / "link.png").symlink_to(tmp_path / "real.png")
    images = [str(tmp_path / "real.png"), "link.png"]
    row = {"id": "a", "prompt": "What?", "images": images, "chosen": "a", "rejected": "b"}
    (data / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert len(load_groups(DataSource(path=data / "rows.jsonl", workers=1)).groups[0].images) == 2


def _asked(url: str) -> str:
    async def ask() -> None:
        async with ChatClient(EditorSection(base_url=url, model="m", attempts=1)) as client:
            await client.ask(
                {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Caption: a"}]}
            )

    with pytest.raises(ServiceError) as caught:
        asyncio.run(ask())
    return str(caught.value)


@pytest.mark.parametrize("before", [0, 150, 170, 185, 195])
@pytest.mark.parametrize("status", [401, 500])
def test_not_even_half_a_key_is_in_a_message(before: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's message is cut at 200 characters: wherever the key stands, no beginning of it is left."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    message = "x" * before + KEY + " is no key"
    with serving(lambda caption, count: (status, {"error": {"message": message}}, {})) as server:
        text = _asked(server.url)
    assert KEY[:6] not in text and str(status) in text and "\n" not in text


@pytest.mark.parametrize("key", ["sk-abc\ndef", "sk-abc…", "sk abc", "sk-\x07"])
def test_a_key_that_no_header_takes_is_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ServiceError, match="OPENAI_API_KEY") as caught:
        ChatClient(EditorSection(base_url="http://127.0.0.1:9/v1", model="m"))
    assert "sk" not in str(caught.value)


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda caption, count: (200, completion("taken"), {})) as other:
        moved = (307, {}, {"Location": f"{other.url}/chat/completions"})
        with serving(lambda caption, count: moved) as server:
            assert "307" in _asked(server.url)
        assert not other.headers


def test_no_file_of_a_run_and_no_line_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole run with an editor that is asked, refuses once with the key in its words, and answers in the end."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    mix = {"dataset": 0, "edit": 1, "other": 1}

    def plan(caption: str, times: int) -> Any:
        if times == 1:
            return 429, {"error": {"message": f"{KEY} asks too often"}}, {"Retry-After": "0"}
        return 200, edited(caption.replace("a ", "no ", 1)), {}

    with serving(plan) as server:
        recipe = tiny_recipe(
            "scenes",
            negatives={"stage1": mix, "stage2": mix, "editor": {"base_url": server.url, "model": "m", "attempts": 3}},
            data={"size": 24, "held_out": 4},
            stage1={"max_steps": 1},
            stage2={"max_steps": 1},
            probes={"rewriter": "editor", "kinds": ["chosen_paraphrase"]},
            evaluation={"prompts": 2},
        )
        path = write_yaml(tmp_path / "recipe.yaml", recipe)
        with caplog.at_level("DEBUG"):
            said = CliRunner().invoke(app, ["train", str(path), "--out", str(tmp_path / "run")])
        assert said.exit_code == 0, said.output
        assert any(headers.get("authorization") == f"Bearer {KEY}" for headers in server.headers)
    assert "report.html" in said.output and KEY not in said.output + caplog.text
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"report.html", "manifest.json", "recipe.yaml", "edit.jsonl"} <= {file.name for file in files}
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
