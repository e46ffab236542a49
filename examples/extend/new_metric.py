"""A caption metric of your own."""

# --8<-- [start:captions]
from collections.abc import Sequence

from pydantic import Field

from cwdpo.evaluation.metrics import Captioned, CaptionMetric


def recall(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Share of the references' words that the caption has, × 100."""
    each: list[float] = []
    for caption, gold in zip(captions, references, strict=True):
        words = {word for text in gold for word in text.split()}
        each.append(100 * len(words & set(caption.split())) / len(words))
    return each


class LongWords(CaptionMetric):
    """Share × 100 of captions that have a long word."""

    name = "long_words"
    about = "share of captions that have a long word"

    least: int = Field(default=8, ge=1)
    """Letters that make a word long."""

    def measure(self, captioned: Captioned) -> list[float]:
        """Return 100 or 0 for each picture."""
        return [100.0 * any(len(word) >= self.least for word in text.split()) for text in captioned.tokens]


# --8<-- [end:captions]
