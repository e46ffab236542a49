"""How many negatives on `scenes` are right after all, and which of them do the filters find?

    python benchmarks/filters_on_scenes.py --out benchmarks/results/filters_on_scenes.json

The exact meaning of a picture says which candidates are right. Candidates are what each source proposes before any
filter; beam and sample are written by the shipped base. Precision and recall are of "may be right" for right ones,
over all, and over those that are not word for word a gold response, which are always dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import arguments, hardware, report, start
from cwdpo.data import DataSource, load_groups
from cwdpo.data.schema import PromptGroup
from cwdpo.models.identity import folder_digest
from cwdpo.models.loading import load_model
from cwdpo.models.processors import load_processor
from cwdpo.negatives.filters import CandidateFilter
from cwdpo.negatives.generating_model import NegativePolicy
from cwdpo.negatives.source import Candidate, SourceContext
from cwdpo.recipe import FilterSection, ModelSection, SourceMix
from cwdpo.scenes import base_path
from cwdpo.scenes.scene_rows import write_rows
from cwdpo.scoring.collator import PromptEncoder

FILTERS = [("support", 1.0), ("support", 0.9), ("support", 0.75), ("rouge_l", 0.95), ("rouge_l", 0.8), ("rouge_l", 0.6)]
SOURCES = ("beam", "sample", "perturb", "dataset", "other")


def judged(candidates: Sequence[tuple[PromptGroup, Candidate]], measure: Any, threshold: float) -> dict[str, Any]:
    """Precision and recall of one filter."""
    judge = CandidateFilter(FilterSection(similarity=threshold, measure=measure))
    found = [judge(group, candidate) for group, candidate in candidates]
    return {
        "measure": measure,
        "similarity": threshold,
        "all": rates([(bool(f.right), f.suspect) for f in found]),
        "not identical": rates([(bool(f.right), f.suspect) for f in found if not f.identical]),
    }


def rates(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    right, suspect = sum(r for r, _ in pairs), sum(s for _, s in pairs)
    both = sum(r and s for r, s in pairs)
    return {
        "candidates": len(pairs),
        "right": right,
        "suspects": suspect,
        "precision": both / suspect if suspect else None,
        "recall": both / right if right else None,
        "wrong_ones_dropped": (suspect - both) / (len(pairs) - right) if len(pairs) > right else None,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__ or "")
    parser.add_argument("--pictures", type=int, default=500)
    options = start(parser, argv)
    if options.tiny:
        options.pictures = 12
    machine = hardware()

    def load() -> Any:
        model = load_model(ModelSection(path=str(base_path())), trainable=False)
        return model.to("cuda") if torch.cuda.is_available() else model

    policy = NegativePolicy(load, PromptEncoder(load_processor(str(base_path()))), folder_digest(base_path()))
    shares = dict.fromkeys(SOURCES, 1.0)
    mix = SourceMix.model_validate({**shares, "max_new_tokens": 24, "batch_size": 64})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.pictures, 1, "train")
        groups = load_groups(DataSource(path=Path(folder) / "train.jsonl", format="cwdpo")).groups
        context = SourceContext(groups, mix, seed=0, folder=Path(folder), policy=policy)
        for name, source in mix.sources.items():
            proposed: Mapping[str, Sequence[Candidate]] = source.propose(groups, {g.id: 1 for g in groups}, context)
            candidates = [(group, replace(c, source=name)) for group in groups for c in proposed.get(group.id, ())]
            judges = [judged(candidates, measure, threshold) for measure, threshold in FILTERS]
            right, total = judges[0]["all"]["right"], len(candidates)
            rows.append({"source": name, "candidates": total, "share_right": right / max(1, total), "filters": judges})
    return report("which negatives on scenes are right, and which do the filters find", options, machine, rows)


if __name__ == "__main__":
    main()
