"""Sources of negatives, one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Source
from cwdpo.negatives.generating_model import NegativePolicy
from cwdpo.negatives.sources.dataset import DatasetSource
from cwdpo.negatives.sources.edit import EditSource
from cwdpo.negatives.sources.on_policy import OnPolicySource
from cwdpo.negatives.sources.openai_server import ServedSource
from cwdpo.negatives.sources.other_image import OtherSource
from cwdpo.negatives.sources.perturb import PerturbSource
from cwdpo.negatives.sources.shuffle import ShuffleSource
from cwdpo.recipe import EditorSection, SourceMix

__all__ = ["make_sources"]


def make_sources(
    groups: Sequence[PromptGroup],
    mix: SourceMix,
    *,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    editor: EditorSection,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Source]:
    """Return the sources that have a share, or those of `names`, by name."""
    found: dict[str, Source] = {}
    for name in names if names is not None else mix.sources():
        if name in ("beam", "sample"):
            found[name] = _on_policy(name, mix, seed, folder, policy, progress, note)
        elif name == "dataset":
            found[name] = DatasetSource()
        elif name == "other":
            found[name] = OtherSource(groups, seed)
        elif name == "shuffle":
            found[name] = ShuffleSource(seed)
        elif name == "edit":
            found[name] = EditSource(editor, seed=seed, folder=folder, progress=progress, note=note)
        else:
            assert name == "perturb", name
            found[name] = PerturbSource(mix.perturb_difficulty, seed)
    return found


def _on_policy(
    name: Literal["beam", "sample"],
    mix: SourceMix,
    seed: int,
    folder: Path,
    policy: NegativePolicy,
    progress: Callable[[int, int], None] | None,
    note: Callable[[str], None] | None,
) -> Source:
    common: dict[str, Any] = {"seed": seed, "folder": folder, "progress": progress}
    if mix.generator.base_urls:
        return ServedSource(name, mix, digest=policy.digest, note=note, **common)
    return OnPolicySource(name, mix, policy=policy, **common)
