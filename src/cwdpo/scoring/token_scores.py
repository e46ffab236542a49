"""Former place of `scores_from_logits`, for scripts that import it from here."""

from cwdpo.scoring.logprobs import scores_from_logits

__all__ = ["scores_from_logits"]
