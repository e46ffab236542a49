"""What is trained for the paper's tables: starts (Stage 1), and arms (Stage 2 from one of them); see `arms.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from cwdpo.safe_yaml import parse_yaml

__all__ = ["ARMS", "BASE", "STARTS", "Arm", "Start", "data_of"]

BASE = "base"
"""The start that is not trained."""


def data_of(name: str) -> Any:
    """Return what a YAML file of this package says."""
    return parse_yaml((files("cwdpo.paper") / name).read_text(encoding="utf-8"), name)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A Stage 1.

    Attributes:
        title: What people call it.
        stage1: Keys of the recipe's section; the rest are the scale's.
        followed: It is probed while it trains, for the figures.
        corrected: It also learns the base's own answers, corrected.
    """

    title: str
    stage1: Mapping[str, Any]
    followed: bool = False
    corrected: bool = False


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A Stage 2 from a start.

    Attributes:
        start: Key of `STARTS`, or `BASE`.
        title: What people call it.
        stage2: Keys of the recipe's section; the rest are the scale's.
        negatives: Keys of `negatives.stage2`.
        tuned: It is compared across methods, so its learning rate is chosen as every method's is.
        followed: It is probed while it trains, for the figures.
        corrected: It compares with the base's own answers, and takes them corrected for chosen ones too.
    """

    start: str
    title: str
    stage2: Mapping[str, Any]
    negatives: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tuned: bool = False
    followed: bool = False
    corrected: bool = False


_DATA = data_of("arms.yaml")
STARTS: Mapping[str, Start] = {name: Start(**start) for name, start in _DATA["starts"].items()}
ARMS: Mapping[str, Arm] = {name: Arm(**arm) for name, arm in _DATA["arms"].items()}
