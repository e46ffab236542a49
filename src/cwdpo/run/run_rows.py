"""The rows of a run, which stay in their files, and their negatives."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from cwdpo.data.jsonl_dataset import LazyGroups, MappedGroups, StoredGroups
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup
from cwdpo.errors import RunError
from cwdpo.files import file_digest, read_json, write_json, write_jsonl
from cwdpo.models.identity import folder_digest
from cwdpo.negatives.build import BuildCounts, make_negatives
from cwdpo.negatives.generating_model import NegativePolicy
from cwdpo.negatives.source import SourceContext
from cwdpo.processes import processes
from cwdpo.recipe import SourceMix
from cwdpo.run.row_fit import negative_fit
from cwdpo.run.run_dir import RunDirectory
from cwdpo.scoring.scorer import AutoScorer

__all__ = [
    "data_groups",
    "groups_of",
    "negative_policy",
    "read_part",
    "with_every_chosen",
    "with_negatives",
    "write_part",
]

_SHOWN = 400
"""Rows with negatives among which a report chooses those that it shows."""


def write_part(run: RunDirectory, path: Path, groups: Iterable[PromptGroup]) -> None:
    """Write rows with image paths relative to `data` where the image lies in it: the run can be copied elsewhere."""
    root = run.folder / "data"
    write_jsonl(path, (group.to_json(root=root) for group in groups))


def read_part(
    run: RunDirectory, path: Path, require: Literal["chosen", "response"], rows: int | None = None
) -> StoredGroups:
    """Return rows that `write_part` wrote, `rows` of them; they stay in the file until they are asked for."""
    return StoredGroups(path, run.folder / "data", require, rows)


def groups_of(run: RunDirectory, part: str) -> StoredGroups:
    """Return the rows of `stage1`, `stage2` or `held_out`; with the model's own answers corrected, if that is asked."""
    corrected = run.folder / "correction" / f"{part}.jsonl"
    if run.recipe.negatives.correction.by != "none" and corrected.is_file():
        return read_part(run, corrected, "response")
    return data_groups(run, part)


def data_groups(run: RunDirectory, part: str) -> StoredGroups:
    """Return the rows of a part as the data have them."""
    counts = read_json(run.folder / "data" / "done.json", counts=dict)["counts"]
    return read_part(run, run.folder / "data" / f"{part}.jsonl", "response", counts.get(part))


def negative_policy(run: RunDirectory, stage: str, model_path: str) -> NegativePolicy:
    """Return the model that writes a stage's on-policy negatives and weighs all of them."""
    return NegativePolicy(
        load=lambda: run.inference_model(model_path),
        encoder=run.encoder(model_path, include_eos=getattr(run.recipe, stage).include_eos),
        digest=folder_digest(model_path),
        scorer=AutoScorer.of(run.recipe.model),
    )


def with_negatives(run: RunDirectory, stage: str, mix: SourceMix, model_path: str) -> StoredGroups:
    """Give a stage's prompts their negatives, written by the model that the stage starts from."""
    path = run.folder / "negatives" / stage / "groups.jsonl"

    def made() -> bool:
        run.require_unchanged(f"negatives/{stage}")
        return path.is_file() and not _written_by_another(path.parent, mix, folder_digest(model_path))

    team = processes()
    if not team.lead(made):
        policy = negative_policy(run, stage, model_path)
        team.lead(lambda: _make_negatives(run, stage, mix, policy, model_path), **policy.help)
    return read_part(run, path, "chosen", _tallies(path.parent).get("rows"))


def _make_negatives(run: RunDirectory, stage: str, mix: SourceMix, policy: NegativePolicy, model_path: str) -> None:
    folder = run.folder / "negatives" / stage
    run.reporter.step("negatives", f"negatives of {stage}")
    counts = BuildCounts()

    def made() -> Iterator[PromptGroup]:
        rows, digests = 0, dict[str, str]()
        context = SourceContext(
            rows=groups_of(run, stage),
            mix=mix,
            seed=run.recipe.negatives.seed,
            folder=folder,
            policy=policy,
            editor=run.recipe.negatives.editor,
            progress=lambda done, total: run.reporter.progress("generating negatives", done, total),
            note=run.reporter.note,
            unfit=negative_fit(run, model_path),
        )
        for group in make_negatives(context, counts):
            rows += 1
            if rows <= _SHOWN:
                digests |= _pictures_elsewhere(run, group)
            yield group
        # Before the groups stand: whoever finds these, finds the counts too.
        write_json(folder / "counts.json", {source: n for source, n in counts.used.items() if n})
        write_json(folder / "pictures.json", digests)
        write_json(folder / "tallies.json", {"policy": policy.digest, "rows": rows, "sources": counts.to_json()})

    write_part(run, folder / "groups.jsonl", made())
    run.seal(f"negatives/{stage}")
    kept = " to draw from at every update" if mix.pooled else ""
    run.reporter.note(", ".join(f"{n} from {source}" for source, n in counts.used.items() if n) + kept)
    if counts.dropped:
        run.reporter.note(f"{counts.dropped} candidates dropped, listed in {folder / 'dropped.jsonl'}")


def _pictures_elsewhere(run: RunDirectory, group: PromptGroup) -> dict[str, str]:
    """Return the content of a prompt's pictures that lie outside the run, by path: a report shows no others."""
    paths = [Path(image.path).absolute() for image in group.images if image.path]
    return {str(path): file_digest(path) for path in paths if path.is_file() and not path.is_relative_to(run.folder)}


def with_every_chosen(groups: LazyGroups, data: LazyGroups) -> LazyGroups:
    """Give prompts that have their negatives all chosen responses of the data back, each once.

    Args:
        groups: Prompts with negatives.
        data: The rows that they were made of, in the same order; those that got no negative are not among `groups`.
    """
    return MappedGroups(groups, _EveryChosen(groups, data), f"every chosen of {data.stamp}")


class _EveryChosen:
    """Looks the row of the data up that a prompt was made of."""

    def __init__(self, groups: LazyGroups, data: LazyGroups) -> None:
        self._data = data
        self._rows = None if len(groups) == len(data) else _places(groups, data)

    def __call__(self, group: PromptGroup, index: int) -> PromptGroup:
        row = self._data[index if self._rows is None else int(self._rows[index])]
        if row.id != group.id:
            raise _strangers(group.id)
        texts = {r.text: r for r in (*group.by_role(CHOSEN), *row.by_role(CHOSEN))}
        return group.with_responses((*texts.values(), *group.by_role(REJECTED)))


def _places(groups: Iterable[PromptGroup], data: Iterable[PromptGroup]) -> Any:
    """Return where each of `groups` is in `data`, which has them all in the same order."""
    ids = (group.id for group in groups)
    wanted, found = next(ids, None), array("q")
    for place, row in enumerate(data):
        if row.id == wanted:
            found.append(place)
            wanted = next(ids, None)
    if wanted is not None:
        raise _strangers(wanted)
    return found


def _strangers(row: str) -> RunError:
    return RunError(f"negatives of row {row!r}: data/ does not have it there; delete the folder negatives/stage2")


def _written_by_another(folder: Path, mix: SourceMix, digest: str) -> bool:
    """Whether negatives were made with another model than the one the stage now starts from (`cwdpo negatives`)."""
    if not mix.on_policy and mix.filter.logp is None:
        return False
    return _tallies(folder).get("policy", digest) != digest


def _tallies(folder: Path) -> dict[str, Any]:
    path = folder / "tallies.json"
    return read_json(path, sources=dict) if path.is_file() else {}
