"""Preference finetuning of vision-language models that shows its learning dynamics."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cwdpo._version import __version__

if TYPE_CHECKING:
    from cwdpo.training.configs import CWDPOConfig, SFTCConfig
    from cwdpo.training.trainers import CWDPOTrainer, SFTCTrainer

__all__ = ["CWDPOConfig", "CWDPOTrainer", "SFTCConfig", "SFTCTrainer", "__version__"]

_HOMES = {
    "CWDPOConfig": "cwdpo.training.configs",
    "CWDPOTrainer": "cwdpo.training.trainers",
    "SFTCConfig": "cwdpo.training.configs",
    "SFTCTrainer": "cwdpo.training.trainers",
}


def __getattr__(name: str) -> Any:
    """Import the trainers when they are asked for, so that the command line starts without torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
