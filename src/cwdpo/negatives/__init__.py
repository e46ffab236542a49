"""Where rejected responses come from."""

from cwdpo.negatives.build import Negatives, Tally, Totals, build_negatives, make_negatives
from cwdpo.negatives.generating_model import NegativePolicy

__all__ = ["NegativePolicy", "Negatives", "Tally", "Totals", "build_negatives", "make_negatives"]
