"""Whether two models are one: their logits on rows of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cwdpo.data.jsonl_dataset import StoredGroups
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import ModelError, RunError
from cwdpo.models.modes import inference
from cwdpo.models.processors import load_processor
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.full_sequence import OneByOneScorer

__all__ = ["Logits", "logits_of", "rows_to_check"]


@dataclass(frozen=True)
class Logits:
    """A model's logits at the response tokens of some rows.

    Attributes:
        values: Float[tokens, vocabulary], one a row.
        tokens: The tokens of prompt and response of each row.
    """

    values: Sequence[Tensor]
    tokens: Sequence[tuple[int, ...]]

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(float(v.abs().max()) for v in self.values)

    def difference(self, other: Logits) -> float:
        """Return the largest absolute difference.

        Raises:
            ModelError: The two were given other tokens, or one is not finite.
        """
        if self.tokens != other.tokens:
            raise ModelError("the exported processor makes other tokens of a row than the trained one; report this")
        differences = [float((a - b).abs().max()) for a, b in zip(self.values, other.values, strict=True)]
        if not all(d < float("inf") for d in differences):
            raise ModelError("the logits are not finite; train with a lower learning rate before you export")
        return max(differences)


def rows_to_check(run: Path, count: int) -> list[PromptGroup]:
    """Return rows of a run with one response each: held-out ones, or where there are none those of its last stage.

    Raises:
        RunError: There are none.
    """
    for part in ("held_out", "stage2", "stage1"):
        path = run / "data" / f"{part}.jsonl"
        if path.is_file() and path.stat().st_size:
            groups = StoredGroups(path, run / "data")[:count]
            return [group.with_responses(group.responses[:1]) for group in groups]
    raise RunError(f"{run / 'data'}: holds no rows to check the model on; export from the folder that was trained in")


def logits_of(model: Any, folder: Path, groups: Sequence[PromptGroup]) -> Logits:
    """Return a model's logits on rows, each read by itself, as the processor of a folder encodes them."""
    encoder, score = PromptEncoder(load_processor(folder)), OneByOneScorer()
    values: list[Tensor] = []
    tokens: list[tuple[int, ...]] = []
    for group in groups:
        encoded = encoder.encode(group)
        with inference(model):
            values.append(score(model, Batch((encoded,))).logits.float().cpu())
        tokens.append((*encoded.prefix_ids, *encoded.responses[0].ids))
    return Logits(values, tokens)
