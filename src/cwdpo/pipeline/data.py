"""The data of a run: read once, shared out by image, given negatives."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cwdpo.data import (
    DataSource,
    ImageLimits,
    LoadedData,
    load_groups,
    split_stages,
    with_image_files,
    write_rejected,
)
from cwdpo.data.schema import CHOSEN, REJECTED, ImageRef, PromptGroup
from cwdpo.data.stored import LazyGroups, MappedGroups, StoredGroups
from cwdpo.errors import DataError, RunError
from cwdpo.files import file_digest, read_json, write_json, write_jsonl
from cwdpo.models.loading import folder_digest
from cwdpo.negatives import NegativePolicy, build_negatives
from cwdpo.pipeline.rundir import RunDirectory
from cwdpo.processes import processes
from cwdpo.recipe import ON_POLICY, STAGE2_METHODS, Recipe, SourceMix
from cwdpo.scenes.rows import write_rows
from cwdpo.scoring.shared import AutoScorer

__all__ = [
    "data_groups",
    "groups_of",
    "load_source",
    "negative_policy",
    "prepare_data",
    "read_part",
    "require_negatives",
    "takes_negatives",
    "takes_pairs",
    "with_every_chosen",
    "with_negatives",
    "write_part",
]


_TABLES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""Endings of the files that hold rows."""


def load_source(
    recipe: Recipe, path: str, *, progress: Callable[[int, int], None] | None = None, **changes: Any
) -> LoadedData:
    """Read one data file as the recipe says; `progress` is told of images checked and their number."""
    d = recipe.data
    settings: dict[str, Any] = {
        "format": "auto" if d.format == "scenes" else d.format,
        "image_root": d.image_root,
        "prompt": d.prompt,
        "captions": d.captions,
        "seed": d.split_seed,
        "split": d.split,
        "on_bad_row": d.on_bad_row,
        "max_bad_share": d.max_bad_share,
        "limits": ImageLimits(max_pixels=d.image_pixel_limit),
        "check_images": d.check_images,
        "limit": d.limit,
    }
    return load_groups(DataSource(path=path, **{**settings, **changes}), progress=progress)


def prepare_data(run: RunDirectory) -> None:
    """Read, check and share out the data, once."""
    folder, d = run.folder / "data", run.recipe.data
    if run.done("data"):
        _check_unchanged(run)
        return
    held_out: tuple[PromptGroup, ...] = ()
    bad: list[Any] = []

    def checked(done: int, total: int) -> None:
        # Not the last one: an error may follow, and its line stands alone.
        run.reporter.progress("looking at images", min(done, total - 1), total)

    if d.path == "scenes":
        train, held_out = _draw_scenes(run, folder)
    else:
        loaded = load_source(run.recipe, d.path, progress=checked)
        train, bad = loaded.groups, list(loaded.bad_rows)
        if d.held_out_path is not None:
            other = load_source(run.recipe, d.held_out_path, progress=checked)
            held_out, bad = other.groups, [*bad, *other.bad_rows]
    share = 0 if held_out else (int(d.held_out) if d.held_out >= 1 else d.held_out)
    split = split_stages(train, stage1_share=d.stage1_share, held_out=share, seed=d.split_seed)
    parts = {"stage1": split.stage1, "stage2": split.stage2, "held_out": held_out or split.held_out}
    require_negatives(run.recipe, parts)
    for name, groups in parts.items():
        write_part(run, folder / f"{name}.jsonl", [with_image_files(g, folder / "images") for g in groups])
    run.reporter.step("data", f"data: {d.path}")
    if bad:
        write_rejected(run.folder / "rejected_rows.jsonl", bad)
        run.reporter.note(f"{len(bad)} rows set aside in {run.folder / 'rejected_rows.jsonl'}")
    counts = {name: len(groups) for name, groups in parts.items()}
    run.finish("data", {"counts": counts, "bad_rows": len(bad), "sources": _source_digests(run)})
    run.reporter.note(", ".join(f"{n} {name}" for name, n in counts.items()))


def _source_digests(run: RunDirectory) -> dict[str, str]:
    """Return the content of the data files; of a folder, of the tables in it."""
    found: dict[str, str] = {}
    for path in (Path(p) for p in (run.recipe.data.path, run.recipe.data.held_out_path) if p is not None):
        files = sorted(p for p in path.iterdir() if p.suffix in _TABLES) if path.is_dir() else [path]
        found |= {str(file): file_digest(file) for file in files if file.is_file()}
    return found


def _check_unchanged(run: RunDirectory) -> None:
    now = _source_digests(run)
    for path, digest in read_json(run.folder / "data" / "done.json", sources=dict)["sources"].items():
        if now.get(path, digest) != digest:
            raise RunError(f"{path}: the data file has changed since this run began; choose another --out")


def takes_negatives(recipe: Recipe) -> bool:
    """Whether Stage 1 is run with negatives."""
    s = recipe.stage1
    return s.enabled and s.objective == "sft_c" and s.regularizer != "label_smoothing"


def takes_pairs(recipe: Recipe) -> bool:
    """Whether Stage 2 is run, on chosen and rejected responses; on-policy methods sample their own."""
    return recipe.stage2.enabled and not STAGE2_METHODS[recipe.stage2.objective].on_policy


def require_negatives(recipe: Recipe, parts: Mapping[str, Sequence[PromptGroup]]) -> None:
    """Find out before any training whether a stage that needs negatives can get some.

    Args:
        recipe: The recipe.
        parts: Rows of `stage1` and `stage2`.

    Raises:
        DataError: The recipe takes negatives from the data alone, and the data has none.
    """
    if recipe.negatives.correction.by != "none":
        return  # the model's own answers are the rejected ones
    for stage, needed in (("stage1", takes_negatives(recipe)), ("stage2", takes_pairs(recipe))):
        mix: SourceMix = getattr(recipe.negatives, stage)
        if needed and mix.sources() == ["dataset"] and not any(g.by_role(REJECTED) for g in parts[stage]):
            raise DataError(
                f"{recipe.data.path}: no row of {stage} has a rejected response, and negatives.{stage} takes them from "
                f"the data alone; set another source, for instance negatives.{stage}.beam=1 (written by the model) or "
                f"negatives.{stage}.other=1 (answers of other images)"
            )


def write_part(run: RunDirectory, path: Path, groups: Iterable[PromptGroup]) -> None:
    """Write rows with image paths relative to `data` where the image lies in it: the run can be copied elsewhere."""
    write_jsonl(path, (_with_relative_images(group, run.folder / "data").to_json() for group in groups))


def _with_relative_images(group: PromptGroup, root: Path) -> PromptGroup:
    paths = [Path(ref.path) for ref in group.images if ref.path is not None]
    assert len(paths) == len(group.images)
    inside = (p.relative_to(root) if p.is_relative_to(root) else p.absolute() for p in paths)
    return replace(group, images=tuple(ImageRef(path=str(p)) for p in inside))


def read_part(run: RunDirectory, path: Path, require: Literal["chosen", "response"]) -> StoredGroups:
    """Return rows that `write_part` wrote; they stay in the file until they are asked for."""
    return StoredGroups(path, run.folder / "data", require)


def _draw_scenes(run: RunDirectory, folder: Path) -> tuple[tuple[PromptGroup, ...], tuple[PromptGroup, ...]]:
    d = run.recipe.data
    held_out = int(d.held_out) if d.held_out >= 1 else max(1, round(d.held_out * d.size))
    write_rows(folder / "scenes", d.size, d.split_seed, "train")
    write_rows(folder / "scenes", held_out, d.split_seed, "test")
    files = [folder / "scenes" / name for name in ("train.jsonl", "test.jsonl")]
    train, test = (load_source(run.recipe, str(f), format="cwdpo", check_images=False).groups for f in files)
    return train, test


def groups_of(run: RunDirectory, part: str) -> StoredGroups:
    """Return the rows of `stage1`, `stage2` or `held_out`; with the model's own answers corrected, if that is asked."""
    corrected = run.folder / "correction" / f"{part}.jsonl"
    if run.recipe.negatives.correction.by != "none" and corrected.is_file():
        return read_part(run, corrected, "response")
    return data_groups(run, part)


def data_groups(run: RunDirectory, part: str) -> StoredGroups:
    """Return the rows of a part as the data have them."""
    return read_part(run, run.folder / "data" / f"{part}.jsonl", "response")


def negative_policy(run: RunDirectory, stage: str, model_path: str) -> NegativePolicy:
    """Return the model that writes a stage's on-policy negatives and weighs all of them."""
    return NegativePolicy(
        load=lambda: run.inference_model(model_path),
        encoder=run.encoder(model_path, include_eos=getattr(run.recipe, stage).include_eos),
        digest=folder_digest(model_path),
        scorer=AutoScorer(run.recipe.model.scorer, bfloat16=run.recipe.model.dtype == "bfloat16"),
    )


def with_negatives(run: RunDirectory, stage: str, mix: SourceMix, model_path: str) -> StoredGroups:
    """Give a stage's prompts their negatives, written by the model that the stage starts from."""
    path = run.folder / "negatives" / stage / "groups.jsonl"

    def made() -> bool:
        return path.is_file() and not _written_by_another(path.parent, mix, folder_digest(model_path))

    team = processes()
    if not team.lead(made):
        policy = negative_policy(run, stage, model_path)
        team.lead(lambda: _make_negatives(run, stage, mix, policy), generate=policy.write)
    return read_part(run, path, "chosen")


def _make_negatives(run: RunDirectory, stage: str, mix: SourceMix, policy: NegativePolicy) -> None:
    folder = run.folder / "negatives" / stage
    run.reporter.step("negatives", f"negatives of {stage}")
    built = build_negatives(
        groups_of(run, stage),
        mix,
        seed=run.recipe.negatives.seed,
        folder=folder,
        policy=policy,
        editor=run.recipe.negatives.editor,
        progress=lambda done, total: run.reporter.progress("generating negatives", done, total),
        note=run.reporter.note,
    )
    write_json(folder / "counts.json", built.counts)
    write_json(folder / "tallies.json", {"policy": policy.digest, "sources": built.tally_rows()})
    write_part(run, folder / "groups.jsonl", built.groups)
    kept = " to draw from at every update" if mix.pooled else ""
    run.reporter.note(", ".join(f"{n} from {source}" for source, n in built.counts.items()) + kept)
    if built.dropped:
        run.reporter.note(f"{len(built.dropped)} candidates dropped, listed in {folder / 'dropped.jsonl'}")


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
        assert row.id == group.id, "negatives and data are in another order"
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
    assert wanted is None, "negatives of a row that is not in the data"
    return found


def _written_by_another(folder: Path, mix: SourceMix, digest: str) -> bool:
    """Whether negatives were made with another model than the one the stage now starts from (`cwdpo negatives`)."""
    if not (set(mix.sources()) & set(ON_POLICY) or mix.filter.logp is not None):
        return False
    made = read_json(folder / "tallies.json", sources=dict) if (folder / "tallies.json").is_file() else {}
    return made.get("policy", digest) != digest
