"""A caption metric of your own."""

# --8<-- [start:captions]
from collections.abc import Sequence

from cwdpo.evaluation.caption_metrics import Score


def recall(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Share of the references' words that the caption has, × 100, mean over pictures with its interval."""
    each: list[float] = []
    for caption, gold in zip(captions, references, strict=True):
        words = {word for text in gold for word in text.split()}
        each.append(100 * len(words & set(caption.split())) / len(words))
    return {"recall": Score.of_mean(each)}


# --8<-- [end:captions]
