"""Everything under `recipes/` can be read by what reads it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.run.stage_setup import require_batches
from tiny_runs import CliServer

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SHIPPED = sorted({*FOLDER.rglob("*.yaml"), *(FOLDER.parent / "src").rglob("*.yaml")})
AS_READ_EVERYWHERE = {
    "bool": r"true|false",
    "null": r"null|~|",
    "int": r"-?(0|[1-9]\d*)",
    "float": r"-?\d+\.\d+(e[+-]\d+)?",
}
"""How a plain scalar of a YAML 1.1 type is written, so that nobody meant a word or another number by it."""
LAUNCHERS = sorted((FOLDER / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    for ranks in (1, 8):
        require_batches(recipe, ranks)
    if recipe.stage1.batch_size >= 64:
        require_batches(recipe, 64)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_words_stay_words(path: Path) -> None:
    """`off`, `no` and `1:30` are no strings in YAML 1.1 unless they are quoted."""
    waiting = [yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            kind = node.tag.rpartition(":")[2]
            pattern = AS_READ_EVERYWHERE.get(kind)
            assert kind == "str" or (pattern and re.fullmatch(pattern, node.value)), (
                node.value,
                node.start_mark.line + 1,
            )
            assert kind == "str" or path.stem != "lexicon", (node.value, node.start_mark.line + 1)
        else:
            waiting += (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )


@pytest.mark.parametrize("path", [p for p in RECIPES if "qwen" in p.stem], ids=lambda p: p.stem)
def test_check_asks_for_the_weights(path: Path, tmp_path: Path, cli_server: CliServer) -> None:
    """Without network, the recipe itself is in order and the model is what is missing."""
    rows = tmp_path / "train.jsonl"
    row = {"images": [], "prompt": "What is seen?", "chosen": "Nothing.", "rejected": "A cat."}
    rows.write_text("".join(f"{json.dumps(row | {'prompt': f'{i}?'})}\n" for i in range(1000)), encoding="utf-8")
    code, call = cli_server.run("check", path, "--set", f"data.path={rows}")
    assert code == 2
    assert "Qwen/Qwen" in call.stderr.splitlines()[-1] and "Traceback" not in call.stderr


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.stem)
def test_accelerate_reads_its_configuration(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "fsdp2":
        assert settings["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is True


@pytest.mark.parametrize("path", sorted((FOLDER / "cluster").glob("*.sh")), ids=lambda p: p.stem)
def test_scripts_are_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
