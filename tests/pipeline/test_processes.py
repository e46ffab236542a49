"""Several processes share one run: the same result as one, one line for a mistake, nobody left waiting."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from several_processes import SLOW, Runs, differences, one_error, wait_for, whole_runs
from tiny_runs import CliServer, assert_same_run, files_of, rows_of, tiny_recipe, write_yaml
from tiny_training import largest_difference

MIX = {"dataset": 1, "other": 1, "max_new_tokens": 5, "batch_size": 4}
PLAIN: dict[str, Any] = {"data": {"size": 46}, "negatives": {"stage1": MIX, "stage2": MIX}}
"""34 rows in Stage 1 and 12 in Stage 2, updates of 8: the last one of an epoch is not full. No negative is written by a
model, so that rounding cannot change one."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return write_yaml(folder / "recipe.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), **PLAIN))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cli_server: CliServer, recipe: Path) -> Runs:
    """`runs(n)`: the directory of a whole run of n processes, which may share the weights too."""
    return partial(whole_runs(cli_server, lambda: tmp_path_factory.mktemp("runs")), recipe)


@pytest.mark.parametrize(
    ("ranks", "sharding"),
    [
        (2, ""),
        pytest.param(4, "", marks=SLOW),
        pytest.param(2, "fsdp2", marks=SLOW),
    ],
)
def test_curves_agree(ranks: int, sharding: str, runs: Runs, tiny_folder: Callable[[str], Path]) -> None:
    """The global batch stays, and so do losses, gradients and probes."""
    one, many = runs(1), runs(ranks, sharding)
    assert differences(one, many) == []
    losses = [row["loss"] for row in rows_of(many / "stage1" / "metrics.jsonl") if "loss" in row]
    assert losses[0] > losses[-1] + 1
    for name in ("data/stage1.jsonl", "negatives/stage1/groups.jsonl", "evaluation/captions_base.jsonl"):
        assert (one / name).read_bytes() == (many / name).read_bytes()
    assert files_of(one) == files_of(many)
    start = load_file(tiny_folder("qwen2_5_vl") / "model.safetensors")
    weights = [load_file(run / "stage2" / "model" / "model.safetensors") for run in (one, many)]
    # AdamW's step is as long for a gradient that is rounding alone (of key biases, which softmax hardly notices).
    assert largest_difference(*weights, start) < 1e-3


def numbers(value: Any) -> Iterator[float]:
    """Every number in what JSON holds, in order."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value) if "second" not in key]
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.slow
def test_rows_without_padding(tmp_path: Path, cli_server: CliServer, runs: Runs, recipe: Path) -> None:
    """`model.padding_free` in two processes: the curves of one with padding, probes and reference among them."""
    call = cli_server.start("train", recipe, "--out", tmp_path / "run", "--set", "model.padding_free=true", ranks=2)
    assert call.codes() == [0, 0], call.stderr
    assert "slower" not in call.stderr + call.stdout  # of the separate scorer
    assert differences(runs(1), tmp_path / "run") == []
    for stage in ("stage1", "stage2"):
        one, two = (list(numbers(rows_of(run / stage / "probes.jsonl"))) for run in (runs(1), tmp_path / "run"))
        assert len(one) > 20 and two == pytest.approx(one, rel=1e-4, abs=1e-4)


WRITTEN = {"beam": 1, "sample": 1, "max_new_tokens": 5, "beam_width": 2, "batch_size": 2, "filter": {"logp": -7.3}}


@pytest.mark.parametrize("sharding", ["", pytest.param("fsdp2", marks=SLOW)])
def test_written_by_both(
    sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """Two processes write, weigh and caption what one does; with shared weights they run the model in step."""
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), negatives={"stage1": WRITTEN, "stage2": MIX})
    values["stage1"]["max_steps"], values["stage2"]["enabled"] = 1, False
    values["data"] |= {"size": 13, "held_out": 5}
    values["probes"] |= {"kinds": ["own"], "prompts": 3, "batch_size": 2}
    values["evaluation"] |= {"prompts": 5, "batch_size": 2}
    path = write_yaml(tmp_path / "recipe.yaml", values)
    for ranks in (1, 2):
        call = cli_server.start(
            "train", path, "--out", tmp_path / str(ranks), ranks=ranks, sharding=sharding * (ranks > 1)
        )
        assert call.codes() == [0] * ranks, call.stderr
    for name in ("groups.jsonl", "beam.jsonl", "sample.jsonl", "counts.json", "dropped.jsonl"):
        one, two = (tmp_path / str(n) / "negatives" / "stage1" / name for n in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    one, two = tmp_path / "1", tmp_path / "2"
    assert "mean log-probability" in (one / "negatives/stage1/dropped.jsonl").read_text()
    for name in ("probes/own.jsonl", "evaluation/captions_base.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    summaries = [list(numbers(json.loads((run / "evaluation/summary.json").read_text()))) for run in (one, two)]
    assert len(summaries[0]) > 20 and summaries[1] == pytest.approx(summaries[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "sharding", "named"),
    [
        ("stage1.batch_sizes=8", "", "batch_sizes"),
        ("stage2.batch_size=5 --set stage2.micro_batch_size=5", "", "2 processes"),
        ("data.path=/no/such/data.jsonl", "", "/no/such/data.jsonl"),
        ("stage1.learning_rate=1e36", "", "update"),
        ("probes.influence={}", "fsdp2", "probes.influence"),
    ],
)
def test_a_mistake_is_one_line(
    change: str, sharding: str, named: str, tmp_path: Path, cli_server: CliServer, recipe: Path
) -> None:
    """In the recipe, in the data, and of a model that training breaks: the same line, once."""
    sets = ("--set", *change.split(" "))
    call = cli_server.start("train", recipe, "--out", tmp_path / "run", *sets, ranks=2, sharding=sharding)
    assert call.codes() == [2, 2], call.stderr
    assert named in one_error(call.stderr) and "Traceback" not in call.stderr


LORA = {"model": {"lora": {"r": 2, "alpha": 4}}}


@pytest.mark.parametrize("sharding", [pytest.param("fsdp2", marks=SLOW)])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["whole", "lora"])
def test_refreshes_and_stops_early_with_shared_weights(
    changes: dict[str, Any], sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """Stage 1 stops at update 6 and ends with update 2, which is nearest to the start; Stage 2's policy writes anew.

    Killed while the policy writes, the same command ends bitwise the same.
    """
    # No samples: their seed holds the content of the policy, which rounding changes.
    mix = {**MIX, "beam": 2, "beam_width": 2, "refresh": {"every": 2}}
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), negatives={"stage1": MIX, "stage2": mix})
    values["model"] |= changes.get("model", {})
    values["data"] |= {"size": 32, "held_out": 6}
    for stage in ("stage1", "stage2"):
        values[stage] |= {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.01}
    values["stage1"]["max_steps"] = 6
    values["probes"] |= {"every": 2, "early_stop": {"signal": "tv", "patience": 2, "stages": ["stage1"]}}
    recipe = write_yaml(tmp_path / "recipe.yaml", values | {"evaluation": {"prompts": 0}})
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    for run, ranks in ((one, 1), (two, 2)):
        call = cli_server.start("train", recipe, "--out", run, ranks=ranks, sharding=sharding * (ranks > 1))
        assert call.codes() == [0] * ranks, call.stderr
    assert differences(one, two) == []
    stops = [json.loads((run / "stage1/early_stop.json").read_text()) for run in (one, two)]
    assert stops[0]["restored"] and (stops[0]["best_step"], stops[0]["last_step"]) == (2, 6)
    assert list(numbers(stops[1])) == pytest.approx(list(numbers(stops[0])), abs=1e-5)
    texts = [(run / "negatives/stage2/refresh-2/groups.jsonl").read_text() for run in (one, two)]
    assert texts[0] == texts[1] != (one / "negatives/stage2/groups.jsonl").read_text()
    for stage in ("stage1", "stage2"):
        weights = [load_file(next((run / stage / "model").glob("*.safetensors"))) for run in (one, two)]
        # Of gradients that are rounding (the keys' biases) AdamW makes steps, here three times those of `PLAIN`.
        assert all(torch.allclose(tensor, weights[1][name], atol=3e-5) for name, tensor in weights[0].items())
    killed = {"watch": again, "kill_on": "refresh-2/beam.jsonl"}
    call = cli_server.start("train", recipe, "--out", again, ranks=2, sharding=sharding, **killed)
    assert -signal.SIGKILL in call.codes()
    call = cli_server.start("train", recipe, "--out", again, ranks=2, sharding=sharding)
    assert call.codes() == [0, 0], call.stderr
    assert_same_run(two, again)


@pytest.mark.parametrize(
    ("victim", "place"), [(1, "stage1/checkpoints/checkpoint-2"), pytest.param(0, "negatives/stage2", marks=SLOW)]
)
def test_a_process_that_dies(
    victim: int, place: str, tmp_path: Path, cli_server: CliServer, recipe: Path, runs: Runs
) -> None:
    """The other one ends at once, with a line, and the same command ends where an uninterrupted run ends."""
    run = tmp_path / "run"
    call = cli_server.start("train", recipe, "--out", run, ranks=2)
    wait_for(run / place)
    os.kill(call.pids[victim], signal.SIGKILL)
    began = time.monotonic()
    codes = call.codes()
    assert time.monotonic() - began < 30
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2, call.stderr
    assert "another process of this run has ended" in call.stderr.splitlines()[-1]
    assert "Traceback" not in call.stderr
    call = cli_server.start("train", recipe, "--out", run, ranks=2)
    assert call.codes() == [0, 0], call.stderr
    assert_same_run(runs(2), run)


@pytest.mark.parametrize(
    ("ranks", "sharding"), [(1, ""), pytest.param(4, "", marks=SLOW), pytest.param(4, "fsdp2", marks=SLOW)]
)
def test_goes_on_with_another_number(
    ranks: int, sharding: str, tmp_path: Path, cli_server: CliServer, recipe: Path, runs: Runs
) -> None:
    """SIGTERM to one process of two saves and stops both (exit code 75); one, or four, go on."""
    run = tmp_path / "run"
    call = cli_server.start("train", recipe, "--out", run, ranks=2, sharding=sharding)
    wait_for(run / "stage1" / "checkpoints" / "checkpoint-2")
    os.kill(call.pids[1], signal.SIGTERM)
    assert call.codes() == [75, 75], call.stderr
    stops = [text for text in call.stderr.splitlines() if text.startswith("stopped: ")]
    assert len(stops) == 1 and "the same command again" in stops[0]
    if sharding:
        call = cli_server.start("train", recipe, "--out", run)
        assert call.wait() == 2 and "was saved with sharded weights" in call.stderr
    call = cli_server.start("train", recipe, "--out", run, ranks=ranks, sharding=sharding)
    assert call.codes() == [0] * ranks, call.stderr
    assert differences(runs(1), run) == []


@pytest.mark.parametrize("sharding", [pytest.param("fsdp2", marks=SLOW)])
@pytest.mark.parametrize(
    "changes", [{}, LORA, LORA | {"stage2": {"reference": "live"}}], ids=["live", "lora-cached", "lora-live"]
)
def test_reference_under_sharding(
    changes: dict[str, Any], sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """A frozen copy of the model, the base under adapters, a frozen adapter: run by two processes or by one."""
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), **PLAIN)
    for section, settings in (changes or {"stage2": {"reference": "live"}, "stage1": {"enabled": False}}).items():
        values[section] |= settings
    recipe = write_yaml(tmp_path / "recipe.yaml", values | {"evaluation": {"prompts": 0}})
    for ranks in (1, 2):
        call = cli_server.start(
            "train", recipe, "--out", tmp_path / str(ranks), ranks=ranks, sharding=sharding * (ranks > 1)
        )
        assert call.codes() == [0] * ranks, call.stderr
    assert differences(tmp_path / "1", tmp_path / "2") == []


@pytest.mark.parametrize(
    "sharding",
    [*(pytest.param(k, marks=SLOW) for k in ("", "fsdp2"))],
)
def test_rows_without_pictures(
    sharding: str, tmp_path: Path, cli_server: CliServer, tiny_folder: Callable[[str], Path]
) -> None:
    """Every second row is text only, so that one process has pictures where the other has none.

    Negatives are written and captions too one row at a time: with shared weights, not both kinds of row at once.
    """
    source = tmp_path / "rows.jsonl"
    call = cli_server.start(
        "train",
        write_yaml(tmp_path / "drawn.yaml", tiny_recipe(tiny_folder("qwen2_5_vl"), stage1={"enabled": False})),
        "--set",
        "stage2.max_steps=1",
        "--out",
        tmp_path / "drawn",
    )
    assert call.wait() == 0, call.stderr
    rows = rows_of(tmp_path / "drawn/data/stage2.jsonl")
    for i, row in enumerate(rows):
        row["images"] = [str(tmp_path / "drawn" / "data" / name) for name in row["images"]]
        if i % 2:
            row["images"], row["prompt"] = [], [{"role": "user", "content": "describe nothing ."}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written = {**MIX, "beam": 1, "beam_width": 2, "batch_size": 1}
    values = tiny_recipe(tiny_folder("qwen2_5_vl"), negatives={"stage1": written, "stage2": MIX})
    values["evaluation"] |= {"prompts": 4, "batch_size": 1}
    stage = {"micro_batch_size": 1, "batch_size": 4}
    values["data"] = {"path": str(source), "held_out": 4}
    values["stage1"] |= stage
    values["stage2"] |= stage
    recipe = write_yaml(tmp_path / "recipe.yaml", values)
    for ranks in (1, 2):
        call = cli_server.start(
            "train", recipe, "--out", tmp_path / str(ranks), ranks=ranks, sharding=sharding * (ranks > 1)
        )
        assert call.codes() == [0] * ranks, call.stderr
    assert differences(tmp_path / "1", tmp_path / "2") == []
