"""The model's own answers, and the same answers corrected (OPA-DPO's first stage; Yang et al., 2025)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwdpo.chat.language_model import LanguageModel
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError
from cwdpo.negatives.generating_model import NegativePolicy
from cwdpo.negatives.llm_rewrites import correct_by_llm
from cwdpo.negatives.policy_texts import write_texts
from cwdpo.negatives.sources.perturb import caption_of
from cwdpo.negatives.text import normalise
from cwdpo.recipe import CorrectionSection, EditorSection
from cwdpo.scenes.scene_correction import corrected
from cwdpo.scenes.world import Scene

__all__ = ["CORRECTED", "OWN", "Corrections", "correct_answers"]

OWN, CORRECTED = "own", "corrected"
"""Sources of the responses that are made here."""


@dataclass(frozen=True)
class Corrections:
    """Prompts with the model's own answers beside the data's chosen responses.

    Attributes:
        groups: All prompts. If the answer was wrong, the corrected one is a chosen response and the answer the only
            rejected one; otherwise a prompt has the data's chosen responses alone.
        counts: Answers by outcome: `corrected`, `right`, and `lost` if no correction was usable.
    """

    groups: list[PromptGroup]
    counts: dict[str, int]


def correct_answers(
    groups: Sequence[PromptGroup],
    settings: CorrectionSection,
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    editor: EditorSection,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Corrections:
    """Let the model answer every prompt once, and correct its answers.

    Args:
        groups: Prompts with chosen responses.
        settings: How it answers, and who corrects.
        seed: Seed of the sampling.
        folder: Where answers are kept as they come, so that a killed run resumes.
        policy: The model.
        editor: The language model that corrects with `by: editor`.
        progress: Called with prompts answered and their number.
        note: Told what is about to be asked of the editor.

    Raises:
        DataError: `by: exact`, and rows that are not of `scenes`.
        ServiceError: The editor's endpoint cannot be used, or its cap is reached; what was answered is kept.
    """
    if settings.by == "exact" and (foreign := next((g for g in groups if "scene" not in g.facts), None)) is not None:
        raise DataError(
            f"{foreign.origin}: negatives.correction.by: exact knows the grammar of scenes only, and this row has no "
            "scene; use by: editor"
        )
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "num_return_sequences": 1}
    said = write_texts(
        "sample",
        groups,
        {"max_new_tokens": settings.max_new_tokens, **sampling},
        seed=str(seed),
        folder=folder,
        policy=policy,
        batch_size=settings.batch_size,
        progress=progress,
    )
    answers = {identity: texts[0] for identity, texts in said.items() if texts}
    if settings.by == "exact":
        right = _corrected_exactly(groups, answers)
    else:
        right = correct_by_llm(LanguageModel(editor, folder / "rewrites.jsonl", note=note), groups, answers)
    counts = {CORRECTED: 0, "right": 0, "lost": 0}
    corrections: list[PromptGroup] = []
    for group in groups:
        text, responses = right.get(group.id), group.by_role(CHOSEN)
        same = text is not None and normalise(text) == normalise(answers[group.id])
        counts["lost" if text is None else "right" if same else CORRECTED] += 1
        if text is not None and not same:
            own = Response(answers[group.id], REJECTED, OWN)
            responses = (*responses, Response(text, CHOSEN, CORRECTED), own)
        corrections.append(group.with_responses(responses))
    return Corrections(corrections, {name: count for name, count in counts.items() if count})


def _corrected_exactly(groups: Sequence[PromptGroup], answers: Mapping[str, str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for group in groups:
        caption = caption_of(answers.get(group.id, ""))
        right = corrected(caption, Scene.from_json(group.facts["scene"])) if caption is not None else None
        if right is not None:
            texts[group.id] = right.text
    return texts
