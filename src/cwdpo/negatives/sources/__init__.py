"""Sources of negatives, one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cwdpo.data.schema import PromptGroup
from cwdpo.negatives.candidates import Source
from cwdpo.negatives.policy import NegativePolicy
from cwdpo.negatives.sources.dataset import DatasetSource
from cwdpo.negatives.sources.edit import EditSource
from cwdpo.negatives.sources.on_policy import OnPolicySource
from cwdpo.negatives.sources.other import OtherSource
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
) -> dict[str, Source]:
    """Return the sources that have a share, by name."""
    found: dict[str, Source] = {}
    for name in mix.shares():
        if name in ("beam", "sample"):
            found[name] = OnPolicySource(name, mix, seed=seed, folder=folder, policy=policy, progress=progress)
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
