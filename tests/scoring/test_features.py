"""Features that stay from step to step: the same numbers, within a number of bytes, and only while nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ALL, collate, gradients
from oracle import image_counts
from safetensors.torch import load_file, save_file
from test_vision import lora

from cwdpo.errors import RunError
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.feature_cache import FeatureCache, Features, merge_features, pack_features
from cwdpo.scoring.frozen_vision import FrozenVision
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.scoring.shared_prefix import SharedPrefixScorer
from tiny_models import sample_groups

GIB = 2**30


def some(size: int) -> Features:
    """Features of `size` bytes."""
    return {"pooled.0": torch.ones(size // 4)}


def ask(cache: FeatureCache, *keys: str, size: int = 100) -> str:
    """Ask for keys in order; return which of them had to be computed."""
    computed: list[str] = []

    def compute(key: str) -> Features:
        computed.append(key)
        return some(size)

    for key in keys:
        cache.get(key, lambda key=key: compute(key))
    return "".join(computed)


def tower_calls(model: Any) -> list[int]:
    """A list that grows by the number of patches whenever the tower runs."""
    calls: list[int] = []
    inner = model.get_base_model().model
    tower = next(m for name, m in inner.named_children() if "vis" in name)
    tower.register_forward_hook(lambda _, args, out: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, SharedPrefixScorer) for family in ALL),
        *((f, SeparateScorer) for f in ("qwen3_vl", "llava")),
    ],
)
def test_same_scores_and_gradients(family: str, kind: Any, tmp_path: Path) -> None:
    """Against pixels to rounding; from the cache, from the folder and in other company bitwise as when computed."""
    model, processor = lora(family)
    batch = collate(processor, sample_groups(3, tmp_path, responses=(2, 3), images=image_counts(family, 1, 0, 2)))
    pixels = gradients(kind(), model, batch)
    cache = FeatureCache(GIB, tmp_path / "features", GIB)
    first, second = (gradients(kind(FrozenVision(cache)), model, batch) for _ in range(2))
    groups_with_images = sum(bool(g.vision) for g in batch.groups)
    assert (cache.misses, cache.hits) == (groups_with_images, groups_with_images)
    again = gradients(kind(FrozenVision(FeatureCache(GIB, tmp_path / "features", GIB))), model, batch)
    torch.testing.assert_close(first[0], pixels[0], rtol=0, atol=1e-5)
    for name, gradient in pixels[1].items():
        torch.testing.assert_close(first[1][name], gradient, rtol=1e-5, atol=1e-6)
    for other in (second, again):
        assert torch.equal(first[0], other[0])
        assert all(torch.equal(first[1][name], other[1][name]) for name in first[1])


def test_tower_runs_once_for_each_image(tmp_path: Path) -> None:
    model, processor = lora("qwen2_5_vl")
    batch = collate(processor, sample_groups(3, tmp_path, images=1))
    vision = FrozenVision(FeatureCache(GIB))
    scorer = SharedPrefixScorer(vision)
    scorer(model, batch)
    calls = tower_calls(model)
    scorer(model, batch)
    scorer(model, Batch(batch.groups[1:]))
    assert calls == []
    other = collate(processor, sample_groups(2, tmp_path / "other", images=1, seed=4))
    scorer(model, Batch((*batch.groups, *other.groups)))
    assert calls == [1, 1]


def test_deepstack_features_are_kept(tmp_path: Path) -> None:
    """Qwen3-VL feeds its later text layers too: leaving that out changes log-probabilities by more than rounding."""
    model, processor = lora("qwen3_vl")
    batch = collate(processor, sample_groups(2, tmp_path, images=(1, 2)))
    inner = model.get_base_model()
    inputs = FrozenVision(FeatureCache(GIB)).inputs(inner, batch, [1, 1])
    features = inputs["mm_encoder_outputs"]["image"]
    assert [len(layer) for layer in features.deepstack_features] == [3]  # one layer, three images
    whole, _ = gradients(SharedPrefixScorer(FrozenVision(FeatureCache(GIB))), model, batch)
    packed = pack_features(features)
    twice = merge_features([packed, packed]).deepstack_features[0]
    assert len(twice) == 6 and torch.equal(twice[3], features.deepstack_features[0][0])
    features.deepstack_features = [[torch.zeros_like(v) for v in layer] for layer in features.deepstack_features]

    class WithoutDeepstack(FrozenVision):
        def inputs(self, *_: Any) -> dict[str, Any]:
            return inputs

    without, _ = gradients(SharedPrefixScorer(WithoutDeepstack()), model, batch)
    assert (whole - without).abs().max() > 1e-3


def test_not_used_while_the_tower_is_trained_and_not_stale_afterwards(tmp_path: Path) -> None:
    """Frozen, unfrozen for one step of descent, frozen again: scores follow the weights at every point."""
    model, processor = lora("qwen2_5_vl")
    batch = collate(processor, sample_groups(2, tmp_path, images=1))
    cached, plain = SharedPrefixScorer(FrozenVision(FeatureCache(GIB))), SharedPrefixScorer()
    before, _ = gradients(cached, model, batch)
    tower = [p for n, p in model.named_parameters() if "visual" in n and n.endswith("weight")]
    for parameter in tower:
        parameter.requires_grad_(True)
    _, found = gradients(cached, model, batch)
    assert any("visual" in name and g.abs().max() > 0 for name, g in found.items())
    with torch.no_grad():
        for parameter in tower:
            parameter -= 0.05 * parameter.grad if parameter.grad is not None else 0.0
            parameter.requires_grad_(False)
    after, _ = gradients(cached, model, batch)
    torch.testing.assert_close(after, gradients(plain, model, batch)[0], rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_an_adapter_in_the_tower_is_not_cached(tmp_path: Path) -> None:
    """A frozen adapter may be switched off (for the reference) with no weight changed."""
    model, processor = lora("qwen2_5_vl", r".*visual.*\.qkv")
    model.requires_grad_(False)
    batch = collate(processor, sample_groups(2, tmp_path, images=1))
    cache = FeatureCache(GIB)
    scorer = SharedPrefixScorer(FrozenVision(cache))
    with torch.no_grad():
        on = scorer(model, batch).logits
        with model.disable_adapter():
            off = scorer(model, batch).logits
    assert (on - off).abs().max() > 1e-3 and not cache.bytes


def test_dropout_in_the_tower_is_not_cached(tmp_path: Path) -> None:
    model, processor = lora("llava")
    model.get_base_model().model.vision_tower.encoder.layers[0].self_attn.dropout = 0.1
    batch = collate(processor, sample_groups(1, tmp_path, images=1))
    cache = FeatureCache(GIB)
    scorer = SharedPrefixScorer(FrozenVision(cache))
    scorer(model, batch)
    assert cache.misses == 0
    model.eval()
    scorer(model, batch)
    assert cache.misses == 1


def test_precision_has_its_own_entries(tmp_path: Path) -> None:
    model, processor = lora("llava")
    batch = collate(processor, sample_groups(1, tmp_path, images=1))
    cache = FeatureCache(GIB)
    scorer = SharedPrefixScorer(FrozenVision(cache))
    plain = scorer(model, batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        low = scorer(model, batch).logits
    assert cache.misses == 2
    assert torch.equal(scorer(model, batch).logits, plain) and low.dtype == torch.bfloat16


def test_the_same_image_processed_otherwise_has_another_key(tmp_path: Path) -> None:
    model, processor = lora("qwen2_5_vl")
    groups = sample_groups(1, tmp_path, images=1)
    one = collate(processor, groups).groups[0].image_key
    assert collate(processor, groups).groups[0].image_key == one
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert collate(processor, groups).groups[0].image_key != one
    assert collate(processor, sample_groups(1, tmp_path, images=0)).groups[0].image_key == ""
    assert model is not None


def test_bounded_in_bytes() -> None:
    """Room for three of 100 bytes: the fourth is not kept, and what is larger than the cache never is."""
    cache = FeatureCache(300)
    assert ask(cache, *"abcd") == "abcd"
    assert cache.bytes == 300
    assert ask(cache, *"abcd") == "d"
    assert ask(cache, "e", size=400) == "e" and ask(cache, "e", size=400) == "e"
    assert cache.bytes == 300


def test_a_pass_over_more_data_than_fits_still_hits() -> None:
    """Four rows in turn, room for three: three hits a pass. Plain least-recently-used would have none."""
    cache = FeatureCache(300)
    ask(cache, *"abcd")
    assert [ask(cache, *"abcd") for _ in range(5)] == ["d"] * 5


def test_the_least_recently_used_goes_when_nobody_asks_for_it() -> None:
    """Other data comes (x, y, z), a is still asked for: b and c make room after two passes over what is known."""
    cache = FeatureCache(300)
    ask(cache, *"abc")
    for _ in range(4):
        ask(cache, *"xyza")
    assert ask(cache, *"axy") == ""
    assert cache.bytes == 300


def test_folder_is_bounded(tmp_path: Path) -> None:
    cache = FeatureCache(0, tmp_path, 250)
    assert ask(cache, *"abc", *"abc") == "abcc"
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "b"]
    assert FeatureCache.of(0) is None and FeatureCache.of(0.5) is not None


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def _zero_tail(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) - 40] + bytes(40))


def _flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def _of_another(file: Path) -> None:
    file.write_bytes(file.with_name("b.safetensors").read_bytes())


def _no_digest(file: Path) -> None:
    save_file(load_file(file), file)


@pytest.mark.parametrize("damage", [_cut, _zero_tail, _flip, _of_another, _no_digest])
def test_a_damaged_entry_is_computed_again(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(FeatureCache(0, tmp_path, 1000), *"ab")
    damage(tmp_path / "a.safetensors")
    assert ask(FeatureCache(0, tmp_path, 1000), *"ab") == "a"
    assert [record.args[0] for record in caplog.records if record.args] == [tmp_path / "a.safetensors"]
    assert ask(FeatureCache(0, tmp_path, 1000), *"ab") == ""


def test_a_folder_that_takes_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written is computed again, said once; a folder that is a file is one line."""
    folder = tmp_path / "cache"
    cache = FeatureCache(0, folder, 1000)
    folder.rmdir()
    assert ask(cache, *"ab", *"ab") == "abab"
    assert len(caplog.records) == 1
    folder.write_text("x")
    with pytest.raises(RunError, match="vision_cache_folder"):
        FeatureCache(0, folder, 1000)
