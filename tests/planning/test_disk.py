"""What a run takes on disk, by hand."""

from __future__ import annotations

from dataclasses import fields

from cwdpo.planning.disk import checkpoint, saved_model
from cwdpo.planning.meta_models import Size

WHOLE = Size(**{field.name: 0 for field in fields(Size)} | {"weights": 1000, "trained": 900, "bytes": 4000})
LORA = Size(**{field.name: 0 for field in fields(Size)} | {"weights": 1000, "trained": 10, "bytes": 2040})


def test_sizes() -> None:
    """4 bytes a weight, and 8 of moments for each that is trained. With adapters the base is in no checkpoint."""
    assert saved_model(WHOLE, adapters=False) == 4000
    assert checkpoint(WHOLE, adapters=False) == 4000 + 7200
    assert checkpoint(LORA, adapters=True) == 40 + 80
