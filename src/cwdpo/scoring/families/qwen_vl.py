"""Qwen-VL: positions on three axes, which the model counts itself."""

from __future__ import annotations

from cwdpo.scoring.family import Family

__all__ = ["QwenVL"]


class QwenVL(Family):
    """Qwen2-VL, 2.5-VL and 3-VL; Qwen3.5 has linear attention, which runs through all responses of a row."""

    name = "qwen_vl"
    model_types = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
    shares_prefix = True
    windows = frozenset({"qwen2_vl", "qwen2_5_vl"})
