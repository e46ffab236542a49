"""A dry run holds as many bytes and takes as many FLOPs as the step itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.models.loading import add_lora, load_model
from cwdpo.models.parts import base_model, freeze_parts
from cwdpo.planning.meta_models import PackedLinear, bare_model, size_of
from cwdpo.planning.step_cost import Work, run_dry, take
from cwdpo.recipe import LoraSection, ModelSection
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import why_separate
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from cwdpo.training.offloading import OffloadedActivations
from tiny_models import FAMILIES, HYBRID, MORE_FAMILIES, sample_groups, tiny_model, tiny_processor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from common import count_flops, peak_bytes

ADAPTERS = LoraSection(r=4, target_modules=["q_proj", "v_proj", "down_proj"])


def section(**changes: Any) -> ModelSection:
    return ModelSection(**{"path": "tiny", "freeze": ["vision", "projector"], **changes})


def groups_of(family: str, folder: Path, count: int = 2) -> Any:
    processor = tiny_processor(family)
    encoder = PromptEncoder(processor)
    return tuple(encoder.encode(g) for g in sample_groups(count, folder / "images"))


def real_step(family: str, asked: ModelSection, work: Work, model: Any = None) -> Any:
    """The step itself, with weights, as the trainer runs it."""
    model = model or tiny_model(family, tiny_processor(family))
    if asked.lora is not None:
        model = add_lora(model, asked, asked.lora)
    else:
        freeze_parts(model, asked.freeze)
    if work.checkpointing:
        base_model(model).activation_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    shared = SharedPrefixScorer(FrozenVision(), packed=asked.padding_free)
    scorer = SeparateScorer() if why_separate(model) is not None else shared
    if work.accumulating:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> None:
        scores_from_logits(scorer(model, Batch(work.groups))).logp_sum.sum().backward()
        if not work.accumulating:
            model.zero_grad(set_to_none=True)

    step()  # looks once which modules make the features
    return step, sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *((family, False) for family in (*FAMILIES, *MORE_FAMILIES)),
        *((f, True) for f in ("qwen2_5_vl", "llava", "gemma3")),
    ],
)
def test_bytes_and_flops_of_a_step(family: str, lora: bool, tmp_path: Path) -> None:
    config = tiny_model(family, tiny_processor(family)).config
    asked = section(lora=ADAPTERS if lora else None)
    work = Work(asked, groups_of(family, tmp_path))
    planned = take(config, work)
    step, there = real_step(family, asked, work)
    assert planned.held.total() == pytest.approx(peak_bytes(step) + there, rel=0.02)
    assert planned.flops.total() == pytest.approx(count_flops(step), rel=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_off_the_gpu(checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass needs is elsewhere: the hooks of a real step take as many storages as the dry ones."""
    monkeypatch.setattr("cwdpo.training.offloading._LEAST", 0)
    config = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl")).config
    work = Work(section(), groups_of("qwen2_5_vl", tmp_path), checkpointing=checkpointing)
    kept, away = take(config, work), take(config, replace(work, offloading=True))
    model = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl"))
    freeze_parts(model, ["vision", "projector"])
    if checkpointing:
        base_model(model).activation_checkpointing_enable()
        model.enable_input_require_grads()
    scorer, sizes = SharedPrefixScorer(FrozenVision()), list[int]()
    scorer(model.train(), Batch(work.groups))

    class Sized(OffloadedActivations):
        def to_host(self, whole: torch.Tensor) -> Any:
            sizes.append(1 << (whole.nbytes - 1).bit_length())
            return super().to_host(whole)

    with Sized(model, least=0):
        scorer(model, Batch(work.groups))
    assert away.host == pytest.approx(sum(sizes), rel=0.05) and kept.host == 0  # whole numbers are not in it
    assert away.flops == kept.flops
    assert away.held.total() <= (1 if checkpointing else 0.6) * kept.held.total()


def test_inputs_of_many_layers_off_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpointing, eight layers keep seven inputs beside that of the layer which is gone through backwards."""
    monkeypatch.setattr("cwdpo.training.offloading._LEAST", 0)
    config = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl")).config
    config.get_text_config().num_hidden_layers = 8
    config.get_text_config().layer_types = ["full_attention"] * 8
    work = Work(section(lora=ADAPTERS), groups_of("qwen2_5_vl", tmp_path), checkpointing=True)
    kept, away = take(config, work), take(config, replace(work, offloading=True))
    inputs = kept.held["layers"]
    assert inputs > 0.2 * kept.held.total() and away.held["layers"] == 0
    assert away.held.total() < kept.held.total() - 0.7 * inputs
    assert away.host >= inputs


@pytest.mark.parametrize("change", ["checkpointing", "accumulating"])
def test_ways_of_a_step(change: str, tmp_path: Path) -> None:
    """Measured: 1.00 times; gradients that are there already count among the planned bytes."""
    config = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl")).config
    work = Work(section(), groups_of("qwen2_5_vl", tmp_path), **{change: True})
    planned = take(config, work)
    step, there = real_step("qwen2_5_vl", section(), work)
    assert planned.held.total() == pytest.approx(peak_bytes(step) + there, rel=0.02)
    assert planned.flops.total() == pytest.approx(count_flops(step), rel=1e-6)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "idefics3"])
def test_a_packed_row(family: str, tmp_path: Path) -> None:
    """Groups of unequal length: the plan knows that nothing is padded, and that attention spans the row."""
    config = tiny_model(family, tiny_processor(family)).config
    asked = section(padding_free=True)
    work = Work(asked, groups_of(family, tmp_path, 3))
    planned = take(config, work)
    step, there = real_step(family, asked, work)
    assert planned.held.total() == pytest.approx(peak_bytes(step) + there, rel=0.02)
    assert planned.flops.total() == pytest.approx(count_flops(step), rel=1e-6)
    assert planned != take(config, Work(section(), work.groups))


def test_a_packed_row_is_not_drawn_out_without_gradients(tmp_path: Path) -> None:
    """Its attention grows with the square of the prompts: four are run, not told from one and two."""
    config = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl")).config
    (group,) = groups_of("qwen2_5_vl", tmp_path, 1)
    flops = [
        take(config, Work(section(padding_free=True), (group,) * n, training=False)).flops["text"] for n in (1, 2, 4)
    ]
    attention = (flops[1] - 2 * flops[0]) / 2  # n² a + n b: f(2) − 2 f(1) = 2 a
    assert attention > 0
    assert flops[2] == pytest.approx(4 * flops[0] + 12 * attention, rel=1e-9)


@pytest.mark.parametrize(("family", "checkpointing"), [("qwen2_5_vl", True), ("llava", False)])
def test_a_base_in_four_bits(
    family: str, checkpointing: bool, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """The model is as small as it is planned, to the byte, and so is its step."""
    pytest.importorskip("bitsandbytes")
    config = tiny_model(family, tiny_processor(family)).config
    asked = section(lora=ADAPTERS, quantization="nf4", path=str(tiny_folder(family)))
    work = Work(asked, groups_of(family, tmp_path), checkpointing=checkpointing)
    planned, size = take(config, work), size_of(config, bare_model(config, asked, torch.float32))
    model = load_model(asked)
    kept = sum(t.nbytes for name, t in model.state_dict().items() if "bitsandbytes__" not in name)
    # The mean of a matrix's scales is in the entry that is left out.
    matrices = sum(name.endswith(".quant_map") for name in model.state_dict())
    assert size.bytes == kept + 4 * matrices + 4 * size.adapters
    step, _ = real_step(family, asked, work, model)
    assert planned.held.total() == pytest.approx(peak_bytes(step), rel=0.04)
    assert planned.flops == take(config, replace(work, section=section(lora=ADAPTERS))).flops


def test_a_matrix_is_whole_for_a_moment() -> None:
    """256 × 1,024 weights in float32, and their 4,096 scales, for one row of input."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    real = bitsandbytes.nn.Linear4bit(256, 1024, False, torch.float32, quant_type="nf4").to("cpu")
    planned = PackedLinear(256, 1024, False).requires_grad_(False)
    row = torch.ones(1, 256, requires_grad=True)
    whole = 4 * 256 * 1024
    for layer in (real, planned):
        layer(row).sum().backward()  # the gradient is there, as it is in training
        assert whole <= peak_bytes(lambda layer=layer: layer(row).sum().backward()) < 1.1 * whole
    # Half a byte a weight, a byte for 64 of them, 4 for 64 × 256, and the levels: 16 and 256, and a mean.
    assert planned.packed_bytes == whole // 8 + 4096 + 4 * 16 + 4 * (16 + 256 + 1)


def test_dora_takes_more(tmp_path: Path) -> None:
    """Its norms of weights are counted too."""
    config, groups = tiny_model("llava", tiny_processor("llava")).config, groups_of("llava", tmp_path)
    plain, asked = (section(lora=ADAPTERS.model_copy(update={"dora": on})) for on in (False, True))
    planned = take(config, Work(asked, groups))
    step, _ = real_step("llava", asked, Work(asked, groups))
    assert planned.held.total() == pytest.approx(peak_bytes(step), rel=0.02)
    assert planned.held.total() > take(config, Work(plain, groups)).held.total()


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [
        ("qwen2_5_vl", True),
        ("qwen3_vl", True),
        ("llava", False),
        ("qwen3_vl_moe", False),
        ("gemma3", True),
        (HYBRID, False),
    ],
)
def test_a_deep_model_is_what_a_few_layers_tell(
    family: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few layers run dry, and a period more, against all of them. The tower is trained."""
    config = tiny_model(family, tiny_processor(family)).config
    text, kinds = config.get_text_config(), {"gemma3": ["sliding_attention"] * 2, HYBRID: ["linear_attention"] * 2}
    text.num_hidden_layers = 10 if family in kinds else 6
    if getattr(text, "layer_types", None):
        text.layer_types = ([*kinds.get(family, []), "full_attention"] * 10)[: text.num_hidden_layers]
    work = Work(section(freeze=[]), groups_of(family, tmp_path), checkpointing=checkpointing)
    extrapolated = take(config, work)
    monkeypatch.setattr("cwdpo.planning.step_cost.lowered", lambda layers, period: layers)
    whole = take(config, work)
    assert extrapolated.held.total() == pytest.approx(whole.held.total(), rel=0.01)
    assert extrapolated.flops == pytest.approx(whole.flops, rel=1e-6)


def test_prompts_without_gradients_add_up(tmp_path: Path) -> None:
    """Five prompts planned from one and two, against five run dry."""
    config = tiny_model("qwen2_5_vl", tiny_processor("qwen2_5_vl")).config
    (group,) = groups_of("qwen2_5_vl", tmp_path, 1)
    assert config.get_text_config().num_hidden_layers == 2
    work = Work(section(), (group,) * 5, training=False)
    extrapolated, (peaks, _) = take(config, work), run_dry(config, work, 2)
    assert extrapolated.held.total() == pytest.approx(max(p.total() for p in peaks.values()), rel=0.01)
