"""What a run takes on disk, by hand."""

from __future__ import annotations

from dataclasses import fields

from cwdpo.planning.disk import checkpoint, saved_model
from cwdpo.planning.gpus import Layout
from cwdpo.planning.meta_models import Size

WHOLE = Size(**{field.name: 0 for field in fields(Size)} | {"weights": 1000, "trained": 900, "bytes": 4000})
LORA = Size(**{field.name: 0 for field in fields(Size)} | {"weights": 1000, "trained": 10, "bytes": 2040})
DDP, ZERO2, ZERO3 = Layout("ddp"), Layout("zero2"), Layout("zero3")


def test_whole_weights() -> None:
    """1,000 weights of which 900 are trained, in two processes.

    DDP: 4 bytes a weight, and 8 of moments. DeepSpeed in bfloat16: 2 bytes a weight in Hugging Face layout, and 12
    of master and moments; 2 of what is frozen; ZeRO-2 the model again.
    """
    assert saved_model(WHOLE, DDP, 2, half=True, adapters=False) == 4000
    assert checkpoint(WHOLE, DDP, 2, half=True, adapters=False) == 4000 + 7200
    assert saved_model(WHOLE, ZERO3, 2, half=True, adapters=False) == 2000
    assert checkpoint(WHOLE, ZERO3, 2, half=True, adapters=False) == 2000 + 200 + 10800
    assert checkpoint(WHOLE, ZERO2, 2, half=True, adapters=False) == 2 * 2000 + 200 + 10800
    # float32: 4 bytes a weight. One process has nothing to share.
    assert checkpoint(WHOLE, ZERO2, 2, half=False, adapters=False) == 2 * 4000 + 400 + 10800
    assert checkpoint(WHOLE, ZERO3, 1, half=True, adapters=False) == 4000 + 7200


def test_adapters() -> None:
    """10 weights of adapters: the base is in no checkpoint."""
    assert checkpoint(LORA, DDP, 2, half=True, adapters=True) == 40 + 80
    assert checkpoint(LORA, ZERO3, 2, half=True, adapters=True) == 20 + 120
    assert checkpoint(LORA, ZERO2, 2, half=True, adapters=True) == 2 * 20 + 120
