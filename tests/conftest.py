"""What every test runs under: no network, one thread, no progress bars; and the tiny models, saved once a session."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

from cwdpo.files import write_jsonl
from tiny_models import image_rows, tiny, tiny_model, tiny_processor
from tiny_runs import Cli, CliServer, Said, tiny_recipe, write_yaml

torch.set_num_threads(1)
logging.disable_progress_bar()
settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Quiet what transformers says about itself; hear interrupts, which a job in the background is born deaf to."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for what in ("__array__ implementation.*:DeprecationWarning", ".*gradient_checkpointing.*:FutureWarning"):
        config.addinivalue_line("filterwarnings", f"ignore:{what}")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """A test leaves the environment as it found it: `TrainingArguments(use_cpu=True)` sets ACCELERATE_USE_CPU, say."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder(family)`: a saved tiny model with its processor. Read it, never write to it."""
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.exists() else tiny(family, path)

    return folder


@pytest.fixture(scope="session")
def tiny_pair() -> Callable[[str], tuple[Any, Any]]:
    """`tiny_pair(family)`: (model, processor) in memory. The model is shared: do not train it, leave no gradients."""
    made: dict[str, tuple[Any, Any]] = {}

    def pair(family: str) -> tuple[Any, Any]:
        if family not in made:
            processor = tiny_processor(family)
            made[family] = (tiny_model(family, processor), processor)
        return made[family]

    return pair


@pytest.fixture(scope="session")
def cli_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    """A process that runs `cwdpo …` in forked children."""
    server = CliServer(tmp_path_factory.mktemp("cli"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def scenes_run(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> tuple[Path, Path, int]:
    """A tiny run on scenes that came through: recipe, folder, how often it touched files. Read only."""
    folder = tmp_path_factory.mktemp("scenes-run")
    recipe = write_yaml(folder / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl")))
    code, call = cli_server.run("train", recipe, "--out", folder / "run", watch=folder / "run")
    assert code == 0, call.stderr
    return recipe, folder / "run", call.events


@pytest.fixture(scope="session")
def rows_run(
    tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> Path:
    """A folder with a data file of 20 rows, a recipe and its finished run of an update a stage. Do not change it."""
    folder = tmp_path_factory.mktemp("rows-run")
    write_jsonl(folder / "data.jsonl", image_rows(folder, 20))
    stage, mix = {"max_steps": 1, "batch_size": 4, "micro_batch_size": 4}, {"dataset": 1}
    values = tiny_recipe(
        tiny_folder("qwen2_5_vl"),
        negatives={"stage1": mix, "stage2": mix},
        stage1=stage,
        stage2=stage,
        probes={"prompts": 2},
        evaluation={"prompts": 2},
    )
    values["data"] = {"path": str(folder / "data.jsonl"), "held_out": 4}
    recipe = write_yaml(folder / "recipe.yaml", values)
    code, call = cli_server.run("train", recipe, "--out", folder / "run")
    assert code == 0, call.stderr
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """`cli("train", …)` in this process, in an empty folder."""
    from cwdpo.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*argv: str | Path) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["cwdpo", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        return Said(int(ended.value.code or 0), told.out, told.err)

    return call
