"""The data of a run: read once, shared out by image, given negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cwdpo.data import (
    DataSource,
    ImageLimits,
    LoadedData,
    load_groups,
    split_stages,
    with_image_files,
    write_groups,
    write_rejected,
)
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import RunError
from cwdpo.files import file_digest, read_json, write_json
from cwdpo.models.loading import folder_digest
from cwdpo.negatives.sources import NegativePolicy, build_negatives
from cwdpo.pipeline.rundir import RunDirectory
from cwdpo.recipe import Recipe, SourceMix
from cwdpo.scenes.rows import write_rows

__all__ = ["groups_of", "load_source", "prepare_data", "with_negatives"]


def load_source(recipe: Recipe, path: str, **changes: Any) -> LoadedData:
    """Read one data file as the recipe says."""
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
    return load_groups(DataSource(path=path, **{**settings, **changes}))


def prepare_data(run: RunDirectory) -> None:
    """Read, check and share out the data, once."""
    folder, d = run.folder / "data", run.recipe.data
    if run.done("data"):
        _check_unchanged(run)
        return
    run.reporter.step("data", f"reading {d.path}")
    held_out: tuple[PromptGroup, ...] = ()
    bad: list[Any] = []
    if d.path == "scenes":
        train, held_out = _draw_scenes(run, folder)
    else:
        loaded = load_source(run.recipe, d.path)
        train, bad = loaded.groups, list(loaded.bad_rows)
        if d.held_out_path is not None:
            other = load_source(run.recipe, d.held_out_path)
            held_out, bad = other.groups, [*bad, *other.bad_rows]
    share = 0 if held_out else (int(d.held_out) if d.held_out >= 1 else d.held_out)
    split = split_stages(train, stage1_share=d.stage1_share, held_out=share, seed=d.split_seed)
    parts = {"stage1": split.stage1, "stage2": split.stage2, "held_out": held_out or split.held_out}
    for name, groups in parts.items():
        write_groups(folder / f"{name}.jsonl", [with_image_files(g, folder / "images") for g in groups])
    if bad:
        write_rejected(run.folder / "rejected_rows.jsonl", bad)
        run.reporter.note(f"{len(bad)} rows set aside in {run.folder / 'rejected_rows.jsonl'}")
    sources = [p for p in (d.path, d.held_out_path) if p is not None and Path(p).is_file()]
    counts = {name: len(groups) for name, groups in parts.items()}
    facts = {"counts": counts, "bad_rows": len(bad), "sources": {p: file_digest(Path(p)) for p in sources}}
    run.finish("data", facts)
    run.reporter.note(", ".join(f"{n} {name}" for name, n in counts.items()))


def _check_unchanged(run: RunDirectory) -> None:
    for path, digest in read_json(run.folder / "data" / "done.json")["sources"].items():
        if Path(path).is_file() and file_digest(Path(path)) != digest:
            raise RunError(f"{path}: the data file has changed since this run began; choose another --out")


def _draw_scenes(run: RunDirectory, folder: Path) -> tuple[tuple[PromptGroup, ...], tuple[PromptGroup, ...]]:
    d = run.recipe.data
    held_out = int(d.held_out) if d.held_out >= 1 else max(1, round(d.held_out * d.size))
    write_rows(folder / "scenes", d.size, d.split_seed, "train")
    write_rows(folder / "scenes", held_out, d.split_seed, "test")
    files = [folder / "scenes" / name for name in ("train.jsonl", "test.jsonl")]
    train, test = (load_source(run.recipe, str(f), format="cwdpo", check_images=False).groups for f in files)
    return train, test


def groups_of(run: RunDirectory, part: str) -> tuple[PromptGroup, ...]:
    """Return the rows of `stage1`, `stage2` or `held_out`."""
    path = run.folder / "data" / f"{part}.jsonl"
    if path.stat().st_size == 0:
        return ()
    return load_groups(DataSource(path=path, format="cwdpo", check_images=False, require="response")).groups


def with_negatives(run: RunDirectory, stage: str, mix: SourceMix, model_path: str) -> list[PromptGroup]:
    """Give a stage's prompts their negatives, written by the model that the stage starts from."""
    folder = run.folder / "negatives" / stage
    path = folder / "groups.jsonl"
    if not path.is_file():
        run.reporter.step("negatives", f"negatives of {stage}")
        policy = NegativePolicy(
            load=lambda: run.inference_model(model_path),
            encoder=run.encoder(model_path),
            digest=folder_digest(model_path),
        )
        found, counts = build_negatives(
            groups_of(run, stage),
            mix,
            seed=run.recipe.negatives.seed,
            folder=folder,
            policy=policy,
            progress=lambda done, total: run.reporter.progress("generating negatives", done, total),
        )
        write_json(folder / "counts.json", counts)
        write_groups(path, found)
        run.reporter.note(", ".join(f"{n} from {source}" for source, n in counts.items()))
    return list(load_groups(DataSource(path=path, format="cwdpo", check_images=False)).groups)
