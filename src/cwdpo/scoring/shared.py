"""Former place of `AutoScorer`, for scripts that import it from here."""

from cwdpo.scoring.scorer import AutoScorer

__all__ = ["AutoScorer"]
