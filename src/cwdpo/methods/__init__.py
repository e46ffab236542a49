"""One file a method: its settings, formula, paper, and loss. `cwdpo methods` lists them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from cwdpo.methods.base import METHODS, Method, Needs

__all__ = ["METHODS", "Method", "Needs"]


def __getattr__(name: str) -> Any:
    """Import `RPO` from `cwdpo.methods.rpo` when it is asked for."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.replace("_", "") == name.lower():
            return getattr(importlib.import_module(f"{__name__}.{module.name}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
