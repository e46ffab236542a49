"""Where rejected responses come from."""

from cwdpo.negatives.build import Negatives, Tally, build_negatives
from cwdpo.negatives.policy import NegativePolicy

__all__ = ["NegativePolicy", "Negatives", "Tally", "build_negatives"]
