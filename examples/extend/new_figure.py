"""Figures of the model while it trains, for `probes.figures`."""

# --8<-- [start:function]
import torch
from pydantic import Field

from cwdpo.probes.diagnosis.stage_history import Finding, StageFacts, Stream
from cwdpo.probes.figures import ProbeFigure
from cwdpo.probes.reading import Probed


def median(probed: Probed) -> float:
    """Median log-probability of gold tokens."""
    return float(torch.cat([response.logps for response in probed.responses("chosen")]).median())


# --8<-- [end:function]


# --8<-- [start:class]
class Unsure(ProbeFigure):
    """Share of tokens with a low probability, by kind of response."""

    name = "unsure"
    title = "Tokens it would not have said"
    unit = "share"
    better = "lower"

    below: float = Field(default=0.1, gt=0, lt=1)
    """Probability below which a token counts."""

    def measure(self, probed: Probed) -> dict[str, float]:
        """Return a number for each kind; a plain number is a figure of the whole reading."""
        shares: dict[str, list[float]] = {}
        for response in probed.responses(None):
            shares.setdefault(response.kind, []).append(float((response.logps.exp() < self.below).float().mean()))
        return {kind: sum(values) / len(values) for kind, values in shares.items()}

    def rule(self, stream: Stream, facts: StageFacts) -> Finding | None:
        """Speak when gold tokens have become unlikely."""
        change = stream.change("chosen", self.name)
        if stream.later < 2 or min(change[-2:]) < 0.05:
            return None
        return Finding(
            "gold_tokens_lost",
            "warning",
            f"{change[-1]:.0%} more of the gold tokens are below {self.below:g} than at the start.",
            f"Lower {facts.stage}.learning_rate.",
            stream.first_step(lambda i: change[i] >= 0.05),
            {"change": change[-1]},
        )


# --8<-- [end:class]
