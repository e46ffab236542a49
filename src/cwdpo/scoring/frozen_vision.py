"""Image features of a frozen vision tower, computed without a graph and handed to the model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cwdpo.files import text_digest
from cwdpo.models.fsdp import is_sharded, is_sharded_weight
from cwdpo.models.identity import tensor_digest
from cwdpo.models.modes import inference
from cwdpo.scoring.batch import Batch, EncodedGroup
from cwdpo.scoring.family import family_of
from cwdpo.scoring.feature_cache import FeatureCache, Features, merge_features, pack_features

__all__ = ["FrozenVision", "vision_inputs"]


class FrozenVision:
    """Replaces pixels by features where everything that makes the features is frozen.

    A tower without trainable weights needs no graph, but gradient checkpointing gives it one: it asks for gradients at
    the inputs of every block, and the tower is then recomputed and differentiated in every step.

    Args:
        cache: Where features stay from step to step. The images of each prompt are then encoded by themselves, so that
            what was in the cache never shows in the numbers.
    """

    def __init__(self, cache: FeatureCache | None = None) -> None:
        self.cache = cache
        self._parts: WeakKeyDictionary[Any, list[nn.Module]] = WeakKeyDictionary()
        self._digests: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()

    def inputs(self, inner: Any, batch: Batch, repeats: Sequence[int]) -> dict[str, Any]:
        """Return what the model is given of the images of a batch, on its device: pixels, or features in their place.

        Args:
            inner: The transformers model, without wrappers.
            batch: The groups.
            repeats: How often the images of each group are needed.
        """
        rows = [g for g, n in zip(batch.groups, repeats, strict=True) for _ in range(n) if g.vision]
        if self.cache is None or not rows or any(not g.image_key for g in rows):
            return self(inner, _pixels(inner, batch, repeats))
        first = next(g for g in rows)
        if not self._replaces(inner, lambda: _pixels(inner, Batch((first,)), [1])):
            return _pixels(inner, batch, repeats)
        if _draws_or_switches(self._parts[inner]):
            return self(inner, _pixels(inner, batch, repeats))
        tower = text_digest(self._tower_digest(inner), _precision(inner.device))
        found: dict[str, Features] = {}
        for group in rows:
            key = text_digest(tower, group.image_key)
            if key not in found:
                kept = self.cache.get(key, lambda group=group: pack_features(_features_of(inner, group)))
                found[key] = _to(inner.device, kept)
        merged = merge_features([found[text_digest(tower, g.image_key)] for g in rows])
        rest = _pixels(inner, batch, repeats, without=("pixel_values",))
        return rest | {"mm_encoder_outputs": {"image": merged}}

    def __call__(self, inner: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return `inputs` with `mm_encoder_outputs` in place of `pixel_values` where that changes nothing else.

        Args:
            inner: The transformers model, without wrappers.
            inputs: What its forward is called with, on its device.
        """
        if "pixel_values" not in inputs or not self._replaces(inner, lambda: inputs):
            return inputs
        with torch.no_grad():
            features = _features(inner, inputs)
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return rest | {"mm_encoder_outputs": {"image": features}}

    def _replaces(self, inner: Any, sample: Callable[[], dict[str, Any]]) -> bool:
        """Whether the model takes features and nothing that makes them is trained now."""
        if "mm_encoder_outputs" not in inspect.signature(inner.forward).parameters:
            return False
        if inner not in self._parts:
            if is_sharded(inner):
                return False
            self._parts[inner] = _parts_of_vision(inner, sample())
        return not any(p.requires_grad or is_sharded_weight(p) for p in self._weights(inner))

    def _weights(self, inner: Any) -> list[Tensor]:
        """Return every tensor that the features may depend on, each once."""
        found: dict[int, Tensor] = {}
        # Parameters of the two outer models themselves (LLaVA-NeXT's image_newline) may be part of the features.
        for module, below in (*((part, True) for part in self._parts[inner]), *((m, False) for m in _outer(inner))):
            for tensor in (*module.parameters(below), *module.buffers(below)):
                found.setdefault(id(tensor), tensor)
        return list(found.values())

    def _tower_digest(self, inner: Any) -> str:
        """Return a digest of weights and settings, computed again when a weight has been written to."""
        weights = self._weights(inner)
        state = [(w.data_ptr(), w._version) for w in weights]
        known = self._digests.get(inner)
        if known is None or known[0] != state:
            known = self._digests[inner] = (
                state,
                text_digest(_settings(inner.config), tensor_digest(("", w) for w in weights)),
            )
        return known[1]


def vision_inputs(inner: Any, batch: Batch, repeats: Sequence[int], vision: FrozenVision | None) -> dict[str, Any]:
    """Return the pictures of a batch on the model's device, those of group g `repeats[g]` times: pixels or features."""
    return _pixels(inner, batch, repeats) if vision is None else vision.inputs(inner, batch, repeats)


def _pixels(inner: Any, batch: Batch, repeats: Sequence[int], without: Sequence[str] = ()) -> dict[str, Tensor]:
    return _to(inner.device, family_of(inner).vision_inputs(batch, repeats, without))


def _to(device: torch.device, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in values.items()}


def _precision(device: torch.device) -> str:
    """Name the type that autocast computes in; features differ with it."""
    on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if on else ""


def _draws_or_switches(parts: Iterable[nn.Module]) -> bool:
    """Whether the features depend on more than weights and pixels: dropout, or which adapter is switched on."""
    for part in (module for root in parts for module in root.modules()):
        rates = (getattr(part, name, 0.0) for name in ("p", "dropout", "attention_dropout"))
        if part.training and any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
        if hasattr(part, "adapter_layer_names"):  # of a layer that PEFT put in place of another
            return True
    return False


def _settings(config: Any) -> str:
    """Return what the configuration says of the image encoder, as JSON."""
    whole: dict[str, Any] = config.to_dict()
    flat = {k: v for k, v in whole.items() if not isinstance(v, dict) and not k.startswith("_")}
    vision: dict[str, Any] = whole.get("vision_config") or {}
    flat["vision_config"] = {k: v for k, v in vision.items() if not k.startswith("_")}
    return json.dumps(flat, sort_keys=True, default=str)


def _features_of(inner: Any, group: EncodedGroup) -> Any:
    with torch.no_grad():
        return _features(inner, _pixels(inner, Batch((group,)), [1]))


def _features(inner: Any, inputs: dict[str, Any]) -> Any:
    accepted = inspect.signature(inner.get_image_features).parameters.keys() - {"input_ids"}
    known: dict[str, Tensor] = {name: value for name, value in inputs.items() if name in accepted}
    return inner.get_image_features(**known, return_dict=True)


def _outer(inner: Any) -> list[nn.Module]:
    return [inner, *([inner.model] if isinstance(getattr(inner, "model", None), nn.Module) else [])]


def _parts_of_vision(inner: Any, inputs: dict[str, Any]) -> list[nn.Module]:
    """Return the outermost modules that run when images are encoded, found by running them once."""
    with inference(inner), _record(inner) as ran:
        _features(inner, inputs)
    inside = {module for part in ran for module in part.modules() if module is not part}
    return [part for part in ran if part not in inside]


@contextmanager
def _record(inner: nn.Module) -> Generator[list[nn.Module]]:
    ran: dict[nn.Module, None] = {}
    hooks = [m.register_forward_pre_hook(lambda module, _: ran.setdefault(module)) for m in inner.modules()]
    found: list[nn.Module] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found += list(ran)
