"""Negatives made in memory, for tests that look at what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.files import read_jsonl
from cwdpo.negatives.build import BuildCounts, SourceCounts, make_negatives
from cwdpo.negatives.source import Candidate, SourceContext
from cwdpo.recipe import EditorSection, SourceMix


@dataclass
class Built:
    groups: list[PromptGroup]
    counts: dict[str, int]
    sources: dict[str, SourceCounts]
    dropped: list[dict[str, Any]]

    def texts(self) -> dict[str, list[str]]:
        return {g.id: [r.text for r in g.by_role(REJECTED)] for g in self.groups}


def context(groups: Sequence[PromptGroup], mix: SourceMix, folder: Path, **more: Any) -> SourceContext:
    return SourceContext(groups, mix, **{"seed": 0, "folder": folder, "policy": None} | more)


def build(groups: Sequence[PromptGroup], mix: SourceMix, folder: Path, policy: Any = None, **more: Any) -> Built:
    counts = BuildCounts()
    made = list(make_negatives(context(groups, mix, folder, policy=policy, **more), counts))
    used = {name: count for name, count in counts.used.items() if count}
    return Built(made, used, counts.by_source, list(read_jsonl(folder / "dropped.jsonl")))


def propose(
    name: str, groups: Sequence[PromptGroup], count: int, folder: Path, settings: dict[str, Any], **more: Any
) -> dict[str, list[Candidate]]:
    """What one source proposes, with settings of the mix."""
    mix = SourceMix.model_validate({"dataset": 0, name: 1, **settings})
    editor = more.pop("editor", EditorSection())
    told = context(groups, mix, folder, editor=editor, **more)
    (source,) = mix.sources.values()
    found = source.propose(groups, {g.id: count for g in groups}, told)
    return {identity: list(candidates) for identity, candidates in found.items()}
