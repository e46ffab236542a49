"""`cwdpo plan`: what fits, what does not and what to do, and what a user can get wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cwdpo.cli.check import inspect_recipe
from cwdpo.cli.plan import plan
from cwdpo.errors import ModelError, RecipeError
from cwdpo.planning.data_shape import Said, read_rows
from cwdpo.planning.gpus import Gpus, Layout, parse_gpus, read_layout
from cwdpo.planning.meta_models import bare_model, model_config, model_of, size_of
from cwdpo.planning.planner import Assumptions, Planner, checkpoint_bytes, model_bytes
from cwdpo.recipe import LoraSection, ModelSection
from cwdpo.recipe.load_recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = ["stage1.batch_size=8", "stage2.batch_size=8", "probes.prompts=4"]


def planned(tmp_path: Path, *overrides: str, gpus: str = "1xA100-40", **more: Any) -> dict[str, Any]:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "plan.json"
    recipe.write_text("name: planned\n", encoding="utf-8")
    plan(recipe, gpus, [*SMALL, *overrides], out=out, **more)
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return planned(tmp_path_factory.mktemp("plan"))


def test_scenes_fit(scenes: dict[str, Any]) -> None:
    assert scenes["fits"] and scenes["remedies"] == []
    names = [step["name"] for step in scenes["steps"]]
    assert names == ["stage1", "reference", "stage2", "probes", "evaluation"]
    train = scenes["steps"][2]
    # AdamW's moments: two numbers of four bytes for every trained weight.
    assert train["gib"]["optimiser"] * 2**30 == 8 * scenes["model"]["trained"]
    assert train["gib"]["weights"] * 2**30 == pytest.approx(4 * scenes["model"]["weights"])
    # 4,000 pictures: three quarters for Stage 1; 1,000 for Stage 2 are 125 updates of 8.
    assert scenes["rows"]["counts"] == {"stage1": 3000, "stage2": 1000, "held_out": 400}
    assert train["what"].startswith("125 updates of 8 prompts × 2")
    assert train["seconds"] == pytest.approx(train["flops"] / (312e12 * 0.35))


def test_check_counts_an_update_as_plan_does(scenes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    inspect_recipe(load_recipe(None, SMALL), Console(width=160))
    totals = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("total"))
    steps = {step["name"]: sum(step["gib"].values()) for step in scenes["steps"]}
    assert totals == ["total", *(f"{steps[name]:.3f}" for name in ("stage1", "stage2"))]


def test_what_does_not_fit_is_told_with_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cwdpo.planning.planner.RESERVE", 0)
    small = ("probes.every=0", "evaluation.prompts=0", "stage1.enabled=false", "stage2.batch_size=12")
    large = planned(tmp_path, *small, "stage2.micro_batch_size=12")
    assert large["fits"]
    room = 0.6 * max(step["gib_with_reserve"] for step in large["steps"])
    gpus = f"{room:.5f}GB@10TFLOPs"
    found = planned(tmp_path, *small, "stage2.micro_batch_size=12", gpus=gpus)
    needed = [r["text"] for r in found["remedies"] if r["needed"]]
    assert not found["fits"] and needed and found["gib_after_remedies"] <= room
    assert "does not fit" in capsys.readouterr().out
    # What is said to be enough is enough.
    changes = [part for text in needed for part in text.split(" ")]
    assert planned(tmp_path, *small, "stage2.micro_batch_size=12", *changes, gpus=gpus)["fits"]


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_rows_without_padding(attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Micro-batches are one row of their longest prompts; FlexAttention is planned as what takes more, and said so."""
    small = ("stage1.enabled=false", "probes.every=0", "evaluation.prompts=0")
    plain = planned(tmp_path, *small)["steps"][-1]
    capsys.readouterr()
    packed = planned(tmp_path, *small, "model.padding_free=true", f"model.attention={attention}")["steps"][-1]
    assert packed["flops"] > plain["flops"]
    assert ("planned as sdpa" in capsys.readouterr().out) == (attention == "flex_attention")


def test_sampling_is_shared_round_by_round(tmp_path: Path) -> None:
    """40 updates of 8 prompts, sampled 2 updates at a time: 16 prompts are 4 batches of 4, or one of 16."""
    small = ("stage1.enabled=false", "probes.every=0", "evaluation.prompts=0", "stage2.objective=grpo")
    seconds: dict[tuple[int, int], float] = {}
    for at_once in (4, 16):
        for gpus in (1, 4):
            sets = (*small, "stage2.max_steps=40", "stage2.rollout_updates=2", f"stage2.rollout_batch_size={at_once}")
            first = planned(tmp_path, *sets, gpus=f"{gpus}xA100-40")["steps"][0]
            assert first["name"] == "rollouts" and "320 prompts" in first["what"]
            seconds[at_once, gpus] = first["seconds"]
    assert seconds[4, 4] == pytest.approx(seconds[4, 1] / 4)
    assert seconds[16, 1] == pytest.approx(seconds[16, 4])


def test_sampling_with_shared_weights(tmp_path: Path) -> None:
    """Every token, and the prompts once, wait for all layers: bytes over the links; a live reference is held too.

    One update of 8 prompts in batches of 4, on two GPUs one batch each: 1 + 3 gatherings. Float32 weights travel in the
    type of the computation.
    """
    small = ("stage1.enabled=false", "probes.every=0", "evaluation.prompts=0", "stage2.objective=grpo")
    sets = (*small, "stage2.max_steps=1", "stage2.rollout_batch_size=4", "stage2.max_new_tokens=3")
    slow = Assumptions(link=1e6)  # so that nothing else takes longer
    for changes, bytes_a_weight in (((), 4), (("model.dtype=bfloat16",), 2)):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("name: planned\n", encoding="utf-8")
        found, config = model_of(load_recipe(recipe, [*SMALL, *sets, *changes]))
        rows = read_rows(found, config, Said())
        planner = Planner(found, parse_gpus("2xA100-40"), Layout("fsdp2"), rows, assume=slow)
        step, size = planner.steps()[0], planner.size()
        layers = size.bytes - size.outside
        assert step.name == "rollouts" and layers > size.bytes / 2
        assert step.seconds == pytest.approx(4 * layers * bytes_a_weight / 4 / 1e6)
        # A frozen copy of the model, half of it on each GPU; none where the KL divergence weighs nothing.
        assert step.memory["reference"] == size.bytes // 2
        without = planner.changed(recipe=load_recipe(recipe, [*SMALL, *sets, *changes, "stage2.kl=0"])).steps()
        assert all("reference" not in other.memory for other in without)


def test_json_goes_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stage1: {enabled: false}\nprobes: {every: 0}\nevaluation: {prompts: 0}\n", encoding="utf-8")
    plan(recipe, "2xH100", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in found["steps"]] == ["reference", "stage2"]
    assert found["gpus"]["count"] == 2 and found["gpus"]["gib"] == 80


@pytest.mark.parametrize(
    ("text", "count", "gib", "flops"),
    [
        ("8xH100", 8, 80, 989e12),
        ("h200", 1, 140, 989e12),
        ("A100-40GB", 1, 40, 312e12),
        ("2xRTX4090", 2, 24, 165e12),
        ("MI300X", 1, 192, 1307e12),
        ("4x48GB@200TFLOPs", 4, 48, 200e12),
        ("4x48GB@200TFLOPs@0.9TB/s", 4, 48, 200e12),
    ],
)
def test_gpus(text: str, count: int, gib: float, flops: float) -> None:
    found = parse_gpus(text)
    assert (found.count, found.gpu.gib, found.gpu.flops) == (count, gib, flops)
    if text.endswith("TB/s"):
        assert found.gpu.bandwidth == pytest.approx(0.9e12)


@pytest.mark.parametrize("text", ["8xH10", "0xH100", "8x0GB@1TFLOPs", "", "x"])
def test_unknown_gpus_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--gpus"):
        parse_gpus(text)


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="downloads nothing; copy its config"):
        planned(tmp_path, "model.path=someone/some-model")
    with pytest.raises(ModelError, match=r"no config.json"):
        planned(tmp_path, f"model.path={tmp_path}")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2.5-VL-32B-Instruct", 33_452_718_336),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
    ],
)
def test_models_that_recipes_name_are_known_by_size(name: str, weights: int) -> None:
    """As their makers count them."""
    section = ModelSection(path=name)
    config, _ = model_config(section)
    assert size_of(config, bare_model(config, section, torch.bfloat16)).weights == weights


def test_every_shipped_recipe_names_a_known_model() -> None:
    for path in RECIPES.glob("qwen*.yaml"):
        model_of(load_recipe(path))


def test_layouts(tmp_path: Path) -> None:
    kinds = {p.stem: read_layout(p).kind for p in (RECIPES / "accelerate").glob("*.yaml")}
    assert kinds == {"ddp": "ddp", "fsdp2": "fsdp2"}
    other = tmp_path / "other.yaml"
    other.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="fsdp_version must be 2"):
        read_layout(other)
    with pytest.raises(RecipeError, match="no configuration of accelerate"):
        read_layout(tmp_path / "none.yaml")
    other.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="use FSDP2"):
        read_layout(other)


def test_what_sharding_leaves_on_a_gpu() -> None:
    """Full training of 7B in float32: 16 bytes a weight, 4 + 8 with DDP (gradients come with the step), shared by 8."""
    recipe = load_recipe(None, ["model.path=Qwen/Qwen2.5-VL-7B-Instruct", "model.dtype=bfloat16", "data.path=no.jsonl"])
    recipe, config = model_of(recipe)
    rows, gpu, n = read_rows(recipe, config, Said()), parse_gpus("H100").gpu, 8_292_166_656

    def standing(count: int, kind: Any) -> Any:
        return Planner(recipe, Gpus(count, gpu), Layout(kind), rows).standing(training=True)

    alone, shared = standing(1, "ddp"), standing(8, "fsdp2")
    assert alone["weights"] == 4 * n and alone["optimiser"] == 8 * n and alone["communication"] == 0
    assert standing(8, "ddp")["communication"] == 4 * n  # DDP's buckets
    assert shared["weights"] == 4 * n // 8 and shared["gradients"] == 4 * n // 8 and shared["optimiser"] == n


def test_bytes_on_disk() -> None:
    """4 bytes a weight, and 8 of moments for each that is trained. With adapters the base is in no checkpoint."""
    section = ModelSection(path="scenes")
    config, _ = model_config(section)
    size = replace(size_of(config, bare_model(config, section, torch.float32)), bytes=4000, trained=900)
    assert model_bytes(size, adapters=False) == 4000
    assert checkpoint_bytes(size, adapters=False) == 4000 + 7200
    assert checkpoint_bytes(replace(size, trained=10), adapters=True) == 40 + 80


@pytest.mark.slow
def test_models_that_write_are_shared_where_they_are_large(tmp_path: Path) -> None:
    """8.3 G weights in bfloat16 are 15.4 GiB: less than 0.4 of 80 GiB, whole; more than 0.4 of 24 GiB, an eighth."""
    known = [
        "model.path=Qwen/Qwen2.5-VL-7B-Instruct",
        "model.dtype=bfloat16",
        "data.path=no.jsonl",
        "model.lora={r: 8}",
    ]
    fast = ["stage1.enabled=false", "stage2.batch_size=8", "stage2.gradient_checkpointing=true", "probes.every=0"]
    shared = RECIPES / "accelerate" / "fsdp2.yaml"
    for gpus, parts in (("8xH100", 1), ("8x24GB@100TFLOPs", 8)):
        found = planned(tmp_path, *known, *fast, gpus=gpus, accelerate=shared, visual_tokens=256)
        step = next(step for step in found["steps"] if step["name"] == "evaluation")
        assert step["gib"]["weights"] * parts * 2**30 == pytest.approx(2 * 8_292_166_656, rel=0.04)
        assert step["what"].endswith("weights shared") == (parts > 1) == (step["gib"].get("communication", 0) > 0)


def test_rows_are_measured_where_they_can_be(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["data.size=100"])
    rows = read_rows(recipe, model_config(recipe.model)[0], Said())
    assert "processor" in rows.source
    assert rows.typical.visual > 0 and rows.largest.response >= rows.typical.response
    other = load_recipe(None, ["model.path=Qwen/Qwen2.5-VL-7B-Instruct", "data.path=nowhere.jsonl"])
    config, _ = model_config(other.model)
    assumed = read_rows(other, config, Said(prompts=1000, visual_tokens=256))
    assert "assumed" in assumed.source and assumed.largest.visual == 256
    assert sum(assumed.counts.values()) == 1000
    assert assumed.group.prefix_ids.count(config.image_token_id) == 256


def test_bytes_of_the_72b_in_four_bits() -> None:
    """80 layers of 8,192 × (8,192 × 2 + 1,024 × 2 + 29,568 × 3) weights at 0.5 + 1/64 + 4/64/256 bytes."""
    section = ModelSection(path="Qwen/Qwen2.5-VL-72B-Instruct", freeze=["vision"], lora=LoraSection(r=16))
    config, _ = model_config(section)
    whole, small = (
        size_of(
            config,
            bare_model(config, section.model_copy(update={"quantization": q}), torch.bfloat16),
        )
        for q in (None, "nf4")
    )
    matrices = 80 * 8192 * (8192 * 2 + 1024 * 2 + 29_568 * 3)
    assert (small.weights, small.trained) == (whole.weights, whole.trained)
    each = 0.5 + 1 / 64 + 4 / 64 / 256
    assert whole.bytes - small.bytes == matrices * (2 - each) - 80 * 7 * 4 * (16 + 256 + 1)


@pytest.mark.slow
def test_four_bits_are_offered(tmp_path: Path) -> None:
    """To a run with adapters that is too large by its weights; and are enough, or are refused with shared weights."""
    small = ["stage1.enabled=false", "probes.every=0", "evaluation.prompts=0", "model.freeze=[vision,projector]"]
    small += [
        "model.path=Qwen/Qwen2.5-VL-3B-Instruct",
        "model.dtype=bfloat16",
        "model.lora={r: 16}",
        "data.path=no.jsonl",
    ]
    small += ["stage2.batch_size=1", "stage2.micro_batch_size=1", "stage2.gradient_checkpointing=true"]
    found = planned(tmp_path, *small, gpus="7GB@100TFLOPs", visual_tokens=256)
    offered = [r["text"] for r in found["remedies"] if r["needed"]]
    assert not found["fits"] and offered == ["model.quantization=nf4"] and found["gib_after_remedies"] < 7
    # 36 layers of 2,048 × (2,048 × 2 + 256 × 2 + 11,008 × 3) weights in 0.516 bytes instead of 2.
    saved = 36 * 2048 * (2048 * 2 + 256 * 2 + 11_008 * 3) * (2 - 0.516) * 1.04 / 2**30
    assert max(step["gib_with_reserve"] for step in found["steps"]) - found["gib_after_remedies"] == pytest.approx(
        saved, rel=0.02
    )
    shared = RECIPES / "accelerate" / "fsdp2.yaml"
    with pytest.raises(RecipeError, match=r"fsdp2\.yaml: model\.quantization needs whole weights"):
        planned(tmp_path, *small, "model.quantization=nf4", gpus="2xH100", accelerate=shared)


def test_adapters_leave_little_to_train() -> None:
    """Rank 16 on the seven matrices of each of 28 layers of the 7B, and four of what joins its tower to it."""
    section = ModelSection(path="Qwen/Qwen2.5-VL-7B-Instruct", freeze=["vision"], lora=LoraSection(r=16))
    config, _ = model_config(section)
    size = size_of(config, bare_model(config, section, torch.bfloat16))
    layer = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    joined = (5120 + 5120) + (5120 + 3584)
    assert size.adapters == size.trained == 16 * (28 * layer + joined)
