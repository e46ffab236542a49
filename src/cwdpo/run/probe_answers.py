"""The probe figures that the model's own answers give: length, CIDEr, and on `scenes` exact correctness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cwdpo.data.schema import PromptGroup
from cwdpo.evaluation.metrics.cider import cider
from cwdpo.models.generation import generate
from cwdpo.probes.figures import OVERALL, Figure, ProbeFigure
from cwdpo.probes.reading import Probed
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene
from cwdpo.scoring.collator import PromptEncoder

__all__ = ["Answers"]

_BEAMS = 5
"""Width of the beam search, and answers kept of it (paper, §4.2)."""


class Answers(ProbeFigure):
    """The five best answers of a beam search to some probe prompts."""

    name = "answers"

    def __init__(
        self, encoder: PromptEncoder, groups: Sequence[PromptGroup], batch_size: int, max_new_tokens: int
    ) -> None:
        super().__init__()
        self._encoder, self._groups = encoder, groups
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens

    def figures(self) -> Sequence[Figure]:
        """Return the descriptions of what it measures."""
        return [OVERALL[name] for name in ("answer_words", "cider_top5", "correct_top5")]

    def values(self, probed: Probed) -> Mapping[str, float | Mapping[str, float]]:
        """Return the figures, means over ranks."""
        ranks: list[list[str]] = [[] for _ in range(_BEAMS)]
        for start in range(0, len(self._groups), self._batch_size):
            answers = generate(
                probed.model,
                self._encoder.tokenizer,
                lambda prompts: self._encoder.prompt_inputs(prompts, padding=True),
                self._groups[start : start + self._batch_size],
                max_new_tokens=self._max_new_tokens,
                num_beams=_BEAMS,
                num_return_sequences=_BEAMS,
            )
            for texts in answers:
                for rank, text in zip(ranks, texts, strict=True):
                    rank.append(text)
        references = [g.references or (g.chosen.text,) for g in self._groups]
        values = {
            "answer_words": sum(len(text.split()) for text in ranks[0]) / len(self._groups),
            "cider_top5": sum(cider(rank, references)[0] for rank in ranks) / _BEAMS,
        }
        scenes = [Scene.from_json(g.facts["scene"]) for g in self._groups if "scene" in g.facts]
        if len(scenes) == len(self._groups):
            right = [is_correct(text, scene) for rank in ranks for text, scene in zip(rank, scenes, strict=True)]
            values["correct_top5"] = sum(right) / len(right)
        return values
