"""Which way a model is scored: checked on the model itself, against its own forward, one response at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, collate, score
from oracle import naive_logps
from torch import Tensor

from cwdpo.errors import ModelError
from cwdpo.models.modes import in_precision, inference
from cwdpo.scoring import attention_masks as masks
from cwdpo.scoring import scorer as module
from cwdpo.scoring import shared_prefix
from cwdpo.scoring.agreement import sample_of
from cwdpo.scoring.batch import Batch, ResponseLogits
from cwdpo.scoring.families.qwen_vl import QwenVL
from cwdpo.scoring.family import Family, shared_families
from cwdpo.scoring.full_sequence import OneByOneScorer, SeparateScorer
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.scoring.sequence_layout import Layout, positions
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import HYBRID, sample_groups, tiny_model, tiny_processor

Pair = Callable[[str], tuple[Any, Any]]


def chosen(model: Any, batch: Batch, mode: Any = "auto", **settings: Any) -> type:
    return type(AutoScorer(mode, **settings).scorer_for(model, batch))


def test_every_family_that_is_listed_is_tested() -> None:
    assert set(ALL) == shared_families()


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize("family", ALL)
def test_every_family_shares_its_prompt(family: str, precision: str, tmp_path: Path) -> None:
    processor = tiny_processor(family)
    model = tiny_model(family, processor, seed=1)
    model = model.bfloat16() if precision == "bfloat16" else model
    batch = collate(processor, sample_groups(2, tmp_path, responses=3, images=1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        assert chosen(model, batch, "shared") is SharedPrefixScorer


@pytest.mark.parametrize("first", ["qwen2_5_vl", HYBRID])
def test_every_model_is_checked_by_itself(first: str, tmp_path: Path) -> None:
    """Qwen2.5-VL and Qwen3.5 take the same inputs; the second would run its linear attention through all responses."""
    processor = tiny_processor("qwen2_5_vl")
    models = {family: tiny_model(family, processor) for family in ("qwen2_5_vl", HYBRID)}
    groups = sample_groups(2, tmp_path, responses=3, images=1)
    batch, scorer = collate(processor, groups), AutoScorer()
    for family in sorted(models, key=lambda name: name != first):
        with torch.no_grad():
            logps = score(scorer, models[family], batch).logp_sum
            naive = [n.sum() for g in groups for n in naive_logps(models[family], processor, "qwen2_5_vl", g)]
        torch.testing.assert_close(logps, torch.stack(naive), rtol=0, atol=1e-4)


def running_on(inner: Any, batch: Batch, layout: Layout) -> Tensor:
    """Positions in which a response goes on where the one before it ends."""
    right = positions(inner, batch, layout)
    responses = layout.segments > 0
    last = torch.where(responses, 0, right).amax(-1, keepdim=True)
    return torch.where(responses, last + responses.cumsum(-1), right)


def open_to_all(rule: Any, layout: Any, device: torch.device) -> Tensor:
    """A mask in which groups and responses see each other."""
    return torch.ones(len(layout.ids), *[layout.ids.shape[1]] * 2).tril().bool()


def first_token_astray(self: Any, model: Any, batch: Batch) -> ResponseLogits:
    """Right but for the first token of each response, which is scored from noise: little in a mean over long ones."""
    found = SeparateScorer()(model, batch)
    noise = torch.randn(found.logits.shape, generator=torch.Generator().manual_seed(0)).to(found.logits.dtype)
    return replace(found, logits=torch.where(found.columns[:, None] == 0, noise, found.logits))


def every_token_a_little(self: Any, model: Any, batch: Batch) -> ResponseLogits:
    """No token is off by much, and all are off in the same direction."""
    found = SeparateScorer()(model, batch)
    logits = found.logits.clone()
    logits[torch.arange(len(logits)), found.targets] -= 9e-4
    return replace(found, logits=logits)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (masks, "dense", open_to_all),
        (shared_prefix, "positions", running_on),
        (SharedPrefixScorer, "__call__", first_token_astray),
        (SharedPrefixScorer, "__call__", every_token_a_little),
    ],
)
def test_a_fault_is_found_on_the_first_batch(
    where: Any, name: str, broken: Any, packed: bool, tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model, processor = tiny_pair("qwen2_5_vl")
    group, other = collate(processor, sample_groups(2, tmp_path)).groups
    long = replace(group.responses[0], ids=group.responses[0].ids * 20)
    batch = Batch((replace(group, responses=(long, *group.responses)), other))
    assert chosen(model, batch, packed=packed) is SharedPrefixScorer and not caplog.records
    monkeypatch.setattr(where, name, broken)
    assert chosen(model, batch, packed=packed) is SeparateScorer
    assert "sharing the prompt changes log-probabilities" in caplog.text
    with pytest.raises(ModelError, match="rounding"):
        chosen(model, batch, "shared", packed=packed)


def test_our_own_errors_are_no_reason_to_be_slow(
    tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_pair("llava")
    batch = collate(processor, sample_groups(1, tmp_path))
    monkeypatch.setattr(shared_prefix, "positions", lambda *_: torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="too many values to unpack"):
        chosen(model, batch)


def test_pictures_that_come_later_are_checked_then(tiny_pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    model, processor = tiny_pair("qwen2_5_vl")
    groups = sample_groups(9, tmp_path, images=(0, 1, 2))
    text, one, two = (collate(processor, groups[i::3]) for i in range(3))
    samples: list[Batch] = []
    monkeypatch.setattr(module, "sample_of", lambda batch: samples.append(batch) or sample_of(batch))
    scorer = AutoScorer()
    alone = Batch(one.groups[:1])
    for batch in (text, text, alone, alone, Batch(one.groups + two.groups), one):
        with torch.no_grad():
            scorer(model, batch)
    assert len(samples) == 3


def test_the_sample_is_made_up_where_a_batch_is_too_small(tmp_path: Path) -> None:
    (group,) = collate(tiny_processor("llava"), sample_groups(1, tmp_path, responses=1, images=1)).groups
    one, other = sample_of(Batch((group,))).groups
    assert torch.equal(one.vision["pixel_values"], -other.vision["pixel_values"])
    assert [r.ids for r in one.responses] == [group.responses[0].ids, group.responses[0].ids[::-1]]


def test_unknown_family_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = tiny_processor("llava")
    model = tiny_model("llava", processor)
    batch = collate(processor, sample_groups(1, tmp_path))
    model.config.model_type = "llava_of_tomorrow"
    assert chosen(model, batch) is SeparateScorer
    assert "not known to work for model type 'llava_of_tomorrow'" in caplog.text
    with pytest.raises(ModelError, match="llava_of_tomorrow"):
        chosen(model, batch, "shared")


def test_linear_attention_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind the list of families stand the types of layers, behind them the comparison."""
    processor = tiny_processor(HYBRID)
    model = tiny_model(HYBRID, processor)
    batch = collate(processor, sample_groups(2, tmp_path, responses=(2, 3)))
    chosen(model, batch)
    monkeypatch.setattr(module, "family_of", lambda _: QwenVL())
    chosen(model, batch)
    monkeypatch.setattr(module, "layer_types", lambda _: set())
    assert chosen(model, batch) is SeparateScorer
    first, second, third = (r.getMessage() for r in caplog.records if r.name == module.__name__)
    assert "not known to work" in first
    assert "does not work with linear_attention layers" in second
    assert "changes log-probabilities" in third


@pytest.mark.parametrize("mode", ["auto", "separate"])
def test_batches_are_checked_too(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A family whose second picture is taken for the first, one that takes no batches, and one that says so itself."""
    processor = tiny_processor("llava")
    model = tiny_model("llava", processor)
    batch = collate(processor, sample_groups(1, tmp_path, images=1))
    model.config.model_type = "llava_of_tomorrow"
    whole = type(model).forward

    def first_picture(self: Any, pixel_values: Any = None, **inputs: Any) -> Any:
        return whole(self, pixel_values=pixel_values[:1].expand_as(pixel_values), **inputs)

    def one_sequence(self: Any, input_ids: Any = None, **inputs: Any) -> Any:
        if len(input_ids) > 1:
            raise ValueError("one at a time")
        return whole(self, input_ids=input_ids, **inputs)

    for forward in (first_picture, one_sequence):
        monkeypatch.setattr(type(model), "forward", forward)
        monkeypatch.setattr(forward, "__signature__", inspect.signature(whole), raising=False)
        assert chosen(model, batch, mode) is OneByOneScorer
    monkeypatch.setattr(type(model), "forward", whole)
    assert chosen(model, batch, mode) is SeparateScorer
    monkeypatch.setattr(Family, "one_at_a_time", True)
    assert chosen(model, batch, mode) is OneByOneScorer
    assert caplog.text.count("slowest") == 2 and "fails (ValueError: one at a time)" in caplog.text


def test_what_the_model_cannot_score_names_the_row(
    tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_pair("llava")
    group = collate(processor, sample_groups(2, tmp_path, images=1)).groups[1]
    fewer = replace(group, prefix_ids=tuple(t for t in group.prefix_ids if t != model.config.image_token_id))
    with pytest.raises(ModelError, match=r"^sample\.jsonl:2: Llava\w+ cannot score this row: ValueError: "):
        chosen(model, Batch((fewer,)))
    monkeypatch.setattr(model.config, "is_encoder_decoder", True)
    with pytest.raises(ModelError, match="encoder-decoder"):
        chosen(model, Batch((group,)))
    monkeypatch.undo()
    foreign = replace(group, responses=(replace(group.responses[0], ids=(9999,)),))
    for scorer in (AutoScorer(), SeparateScorer(), SharedPrefixScorer()):
        with pytest.raises(ModelError, match=r"^sample\.jsonl:2: token 9999 is not in the model's embedding"):
            scorer(model, Batch((foreign,)))


def test_other_attention_is_refused(tmp_path: Path) -> None:
    processor = tiny_processor("llava")
    model = tiny_model("llava", processor)
    batch = collate(processor, sample_groups(1, tmp_path))
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert "not flash_attention_2" in (module.why_separate(model) or "")
    with pytest.raises(ModelError, match=r"model\.attention: sdpa"):
        SharedPrefixScorer()(model, batch)


def test_the_check_leaves_no_trace(tmp_path: Path) -> None:
    processor = tiny_processor("qwen2_5_vl")
    model = tiny_model("qwen2_5_vl", processor, attention_dropout=0.5).bfloat16()
    model.train()
    model.model.visual.eval()
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    types = {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}
    assert chosen(model, collate(processor, sample_groups(2, tmp_path))) is SharedPrefixScorer
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert types == {name: (p.dtype, p.data_ptr()) for name, p in model.named_parameters()}


def test_float32_of_a_model_in_bfloat16(tmp_path: Path) -> None:
    """The scores of the same weights in float32 throughout, also within an autocast of the model's own."""
    processor = tiny_processor("qwen3_vl")
    half = tiny_model("qwen3_vl", processor).bfloat16()
    rounded = tiny_model("qwen3_vl", processor).bfloat16().float()
    batch = collate(processor, sample_groups(2, tmp_path, images=1))
    within = half.forward
    half.forward = lambda *args, **kwargs: torch.autocast("cpu", torch.bfloat16)(within)(*args, **kwargs)
    with inference(half), inference(rounded):
        with in_precision(half, torch.float32):
            found = score(OneByOneScorer(), half, batch).logps
        wanted = score(OneByOneScorer(), rounded, batch).logps
        assert (score(OneByOneScorer(), half, batch).logps - wanted).abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
