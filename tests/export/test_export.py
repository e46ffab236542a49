"""An exported model is the one that was trained: four families, LoRA, DoRA, all weights, a base in 4 bits."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cwdpo.errors import ModelError, RunError
from cwdpo.export.card import write_cards
from cwdpo.export.merge import export_model
from cwdpo.export.publish import gguf_converter, push, require_pushable, write_gguf
from cwdpo.models.identity import folder_digest
from cwdpo.models.loading import add_lora, load_model
from cwdpo.recipe import ModelSection
from tiny_models import sample_groups, tiny_processor
from tiny_runs import CliServer, files_of, tiny_recipe, write_yaml

FAMILIES = ("qwen2_5_vl", "llava", "idefics3", "gemma3")
LORA = {"r": 2, "alpha": 8}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA, "train_fully": ["projector"]},
    "dora": {"lora": {**LORA, "dora": True}},
    "full": {},
    "nf4": {"lora": LORA, "quantization": "nf4", "freeze": ["vision"]},
}


def trained(folder: Path, base: Path, kind: str, family: str) -> Path:
    """A run directory as `cwdpo train` leaves it; every trained weight is off its start."""
    recipe = {"path": str(base), **KINDS[kind]}
    section = ModelSection.model_validate(recipe)
    model = load_model(section)
    if section.lora is not None:
        model = add_lora(model, section, section.lora)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight += 0.05 * torch.randn(weight.shape, generator=chance)
    done = folder / "stage2" / "model"
    model.save_pretrained(done)
    tiny_processor(family).save_pretrained(done)
    (folder / "data").mkdir()
    groups = sample_groups(3, folder / "data", images=1)
    rows = [json.dumps(group.to_json(root=folder / "data")) for group in groups]
    (folder / "data" / "held_out.jsonl").write_text("\n".join(rows) + "\n")
    write_yaml(folder / "recipe.yaml", {"model": recipe, "stage1": {"enabled": False}, "stage2": {"objective": "dpo"}})
    manifest = {"model": {"path": str(base), "digest": folder_digest(base)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "stage2" / "done.json").write_text(json.dumps({"updates": 1, "model": folder_digest(done)}))
    return folder


_FRESH = """
import json, sys, torch
from PIL import Image
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging
logging.set_verbosity_error()
for base, source, out, adapter in json.load(sys.stdin):
    plain = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    if adapter:
        with_adapter = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        other = PeftModel.from_pretrained(with_adapter, source).eval()
    else:
        other = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()
    from cwdpo.models.processors import load_processor  # without torchvision
    processor = load_processor(out)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is in this picture"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[Image.new("RGB", (56, 56), "red")]], return_tensors="pt")
    with torch.no_grad():
        one, two = (model(**inputs).logits for model in (plain, other))
        written = plain.generate(**inputs, max_new_tokens=2, do_sample=False)
    print(json.dumps([float((one - two).abs().max()), float(two.abs().max()), written.shape[1]]))
"""


@pytest.mark.slow
def test_loaded_again_in_a_fresh_process(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Plain transformers on the export, PEFT on base and adapter: the same logits, for every family and kind."""
    pytest.importorskip("bitsandbytes")
    asked: list[Any] = []
    for family in FAMILIES:
        for kind in KINDS:
            run = trained(tmp_path / f"{family}-{kind}", tiny_folder(family), kind, family)
            done = export_model(run, run.with_name(f"{run.name}-out"))
            assert done.difference < 1e-3 and done.how == ("copied" if kind == "full" else "merged")
            assert done.moved is None or done.moved > 0.05
            assert (done.quantized is not None) == (kind == "nf4")
            asked.append([str(tiny_folder(family)), str(done.source), f"{run}-out", kind != "full"])
    ended = subprocess.run(
        [sys.executable, "-c", _FRESH], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(asked)
    for difference, largest, _ in found:
        assert difference < 1e-4 * largest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    return trained(tmp_path_factory.mktemp("trained") / "run", tiny_folder("qwen2_5_vl"), "dora", "qwen2_5_vl")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Whole weights in the base's type, the processor's files as they were, and the cache on again."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = trained(tmp_path / "run", tiny_folder("qwen2_5_vl"), kind, "qwen2_5_vl")
    done, out = export_model(folder, tmp_path / "out"), tmp_path / "out"
    assert done.difference <= done.limit and done.dtype == "float32" and done.rows == 3
    kept = {p.name for p in done.source.iterdir()} - {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert kept | {"config.json", "generation_config.json", "model.safetensors", "README.md"} == set(files_of(out))
    for name in kept - {"config.json", "generation_config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (done.source / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config.get("use_cache", True)


def test_types(run: Path, tmp_path: Path) -> None:
    """Rounding is seen, and limited; where the limit is passed nothing is written."""
    half = export_model(run, tmp_path / "half", dtype="bfloat16")
    assert 1e-3 < half.difference < half.limit
    with pytest.raises(ModelError, match="limit"):
        export_model(run, tmp_path / "none", dtype="bfloat16", limit=1e-6)
    assert not (tmp_path / "none").exists()


def test_a_wrong_merge_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwdpo.export.merge._merged", lambda model, _: model.unload())
    with pytest.raises(ModelError, match="differ"):
        export_model(run, tmp_path / "out", dtype="bfloat16")


def test_never_overwrites(run: Path, tmp_path: Path) -> None:
    """An earlier export is replaced; a folder of somebody's, or a file changed since, is left as it is."""
    out = tmp_path / "out"
    export_model(run, out)
    (out / ".model.tmp").mkdir()  # of a kill
    (out / ".model.tmp" / "config.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    export_model(run, out)
    assert (out / "notes.txt").read_text() == "mine" and not (out / ".model.tmp").exists()
    (out / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"config\.json"):
        export_model(run, out)
    assert (out / "config.json").read_text() == "{}"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_text("mine")
    with pytest.raises(RunError, match="mine"):
        export_model(run, mine)
    assert (mine / "model.safetensors").read_text() == "mine"


def test_what_is_not_as_it_was_trained(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """A stage that is not finished, weights that were changed, another base."""
    run = trained(tmp_path / "run", tiny_folder("qwen2_5_vl"), "lora", "qwen2_5_vl")
    with pytest.raises(RunError, match="Stage 1"):
        export_model(run, tmp_path / "out", stage="stage1")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["digest"] = "0"
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="base"):
        export_model(run, tmp_path / "out")
    (run / "stage2" / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(RunError, match="changed"):
        export_model(run, tmp_path / "out")
    (run / "stage2" / "done.json").unlink()
    with pytest.raises(RunError, match="finished"):
        export_model(run, tmp_path / "out")


def test_card_of_a_run(tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]) -> None:
    """Train, export: PEFT's empty card is gone, ours holds what the run knows, and no folder of its maker."""
    changes = {"model": {"lora": LORA}, "negatives": {"stage1": {"dataset": 1}, "stage2": {"dataset": 1}}}
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), **changes))
    run, out = tmp_path / "run", tmp_path / "out"
    code, call = cli_server.run("train", recipe, "--out", run)
    assert code == 0, call.stderr
    code, call = cli_server.run("export", run, "--out", out)
    assert code == 0 and "Largest difference of logits" in call.stdout, call.stderr
    code, call = cli_server.run("train", recipe, "--out", run)  # the cards are the run's own
    assert code == 0, call.stderr
    for card, library in ((run / "stage2" / "model", "peft"), (out, "transformers")):
        text = (card / "README.md").read_text()
        header = yaml.safe_load(text.split("---")[1])
        assert header["library_name"] == library and header["tags"] == ["cwdpo", "sft_c", "cw_dpo"]
        assert str(tmp_path) not in text and str(tiny_folder("qwen2_5_vl")) not in text
        for words in ("SFT-C → CW-DPO", "30 prompts", "seed 5", "learning_rate 0.003", "arXiv:2510.11978"):
            assert words in text
        summary = json.loads((run / "evaluation" / "summary.json").read_text())
        assert f"{summary['after']['logp']['chosen']:.3f}".replace("-", "−") in text
        for stage in ("stage1", "stage2"):
            for row in json.loads((run / stage / "diagnosis.json").read_text())["findings"]:
                assert row["sentence"] in text
        last = [json.loads(line) for line in (run / "stage2" / "probes.jsonl").read_text().splitlines()][-1]
        assert f"{last['kinds']['chosen']['logp_mean']:.3f}".replace("-", "−") in text
    assert "Stage 2" not in (run / "stage1" / "model" / "README.md").read_text()


def test_licences(run: Path, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """That of the base, and of the data, where their own cards name one."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("stage2", "data"):
        shutil.copytree(run / name, folder / name)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"data": {"path": str(base)}}
    recipe["model"]["path"] = str(base)
    write_yaml(folder / "recipe.yaml", recipe)
    write_cards(folder)
    text = (folder / "stage2" / "model" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "`base`; licence: apache-2.0" in text


def test_gguf(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the converter on the PATH; one line where there is none, or where it fails."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(RunError, match=r"convert_hf_to_gguf\.py"):
        gguf_converter()
    converter = tools / "convert_hf_to_gguf.py"
    converter.write_text('#!/bin/sh\n[ -f "$1/config.json" ] && echo "$*" > "$3"\n')
    converter.chmod(0o755)
    export_model(run, tmp_path / "out")
    written = write_gguf(tmp_path / "out", gguf_converter())
    assert [path.name for path in written] == ["model.gguf", "mmproj.gguf"] and "--mmproj" in written[1].read_text()
    write_gguf(tmp_path / "out", gguf_converter())  # again, over its own
    converter.write_text("#!/bin/sh\necho unknown architecture >&2\nexit 1\n")
    with pytest.raises(ModelError, match="unknown architecture"):
        write_gguf(tmp_path / "out", gguf_converter())


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files calls."""

    files: dict[str, bytes]
    created: list[dict[str, Any]]

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami"):
            self._answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif self.created:
            self._answer({"id": "me/model", "sha": "0" * 40})
        else:
            self._answer({"error": "no"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        where = f"http://{self.headers['Host']}/me/model"
        if self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            self._answer({"url": where, "name": "me/model"})
        elif "/preupload/" in self.path:
            names = [row["path"] for row in json.loads(body)["files"]]
            self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for row in map(json.loads, body.splitlines()):
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self._answer({"commitUrl": where, "commitOid": "1" * 40, "success": True})
        else:
            self._answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    handler = type("Hub", (_Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_push(run: Path, tmp_path: Path, hub: type[_Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    """A new private repository with the export's files, ours of the folder left out; one that is there is refused."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    export_model(run, tmp_path / "out")
    require_pushable("me/model")
    push(tmp_path / "out", "me/model")
    assert hub.created[0]["visibility"] == "private"
    assert sorted(hub.files) == files_of(tmp_path / "out")
    assert hub.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="there already"):
        require_pushable("me/model")
    with pytest.raises(RunError, match="OWNER/NAME"):
        require_pushable("model")


def test_push_without_a_token(hub: type[_Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(RunError, match="log in"):
        require_pushable("me/model")
    assert not hub.created
