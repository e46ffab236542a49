"""The data of a run, read once, checked, and shared out by image. Memory does not grow with the rows."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cwdpo.data import DataSource, ImageLimits, LoadedData, load_groups, write_rejected
from cwdpo.data.open_source import shards_of
from cwdpo.data.read_source import BadRow, Progress, SourceRows, read_source
from cwdpo.data.schema import REJECTED, ImageRef
from cwdpo.data.source_parts import Share
from cwdpo.data.splits import PARTS
from cwdpo.data.tables.image_tar import TarMember
from cwdpo.data.tables.remote_files import is_remote
from cwdpo.errors import DataError, RunError
from cwdpo.files import file_digest, read_json, read_jsonl, write_jsonl, write_lines
from cwdpo.methods.sft_c import SFTC
from cwdpo.plugins import user_file
from cwdpo.recipe import Recipe, SourceMix
from cwdpo.run.row_fit import RowFit, row_fit
from cwdpo.run.run_dir import RunDirectory
from cwdpo.scenes.scene_rows import write_rows

__all__ = [
    "SharedRows",
    "load_source",
    "prepare_data",
    "require_negatives",
    "share_rows",
    "source_of",
    "takes_negatives",
    "takes_pairs",
]

_TABLES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""Endings of the files that hold rows."""

_PICTURES = "pictures.jsonl"
"""File in `data` with the content of every picture."""

_TOLD_EVERY = 100_000
"""Rows between two lines that say how far reading is."""


def source_of(recipe: Recipe, path: str | Path, **changes: Any) -> DataSource:
    """Return how a recipe reads a data file."""
    d = recipe.data
    settings: dict[str, Any] = {
        "format": "auto" if d.format == "scenes" else d.format,
        "columns": d.columns,
        "pairs": d.pairs,
        "pair_gap": d.pair_gap,
        "pair_unpaired": d.pair_unpaired,
        "private_addresses": d.private_addresses,
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
        "text_limit": d.text_limit,
        "row_limit": d.row_limit,
    }
    if path == d.path and d.sources:
        settings["sources"] = tuple(Share(path=part.path, weight=part.weight, rows=part.rows) for part in d.sources)
    return DataSource(path=path, **{**settings, **changes})


def load_source(recipe: Recipe, path: str, **changes: Any) -> LoadedData:
    """Read one data file into memory as the recipe says."""
    return load_groups(source_of(recipe, path, **changes))


@dataclass(frozen=True)
class SharedRows:
    """The rows of a recipe's data, shared out.

    Attributes:
        train: The rows of `data.path`.
        held_out: The rows of `data.held_out_path`; None where some of `train` are held out.
        roles: For each part, its responses by role, and under `prompts` its rows.
    """

    train: SourceRows
    held_out: SourceRows | None
    roles: Mapping[str, Counter[str]]

    def lines(self, part: str, root: Path) -> Iterator[str]:
        """Yield the rows of a part as JSON lines, paths of images relative to `root` where they lie in it."""
        if part == "held_out" and self.held_out is not None:
            return self.held_out.store.lines(None, root)
        return self.train.store.lines(part, root)

    def bad_rows(self) -> Iterator[BadRow]:
        """Yield what was set aside."""
        return chain(self.train.bad_rows(), self.held_out.bad_rows() if self.held_out is not None else ())


@contextlib.contextmanager
def share_rows(
    recipe: Recipe,
    train: DataSource,
    held_out: DataSource | float,
    *,
    progress: Progress,
    fit: RowFit | None = None,
    folder: Path | None = None,
    scratch: Path | None = None,
) -> Generator[SharedRows]:
    """Read data, share it out between the stages, and see that every stage has the negatives that it needs.

    Args:
        recipe: Shares and seed.
        train: The data.
        held_out: Data to hold out, or a number or a share of the rows of `train`.
        progress: Who is told.
        fit: Says of a row why the model cannot be trained on it; None: rows are not asked.
        folder: Where images that are no files are written, named by content; None: they stay where they are.
        scratch: Folder for scratch files; None: the system's for temporary files.

    Raises:
        DataError: One line.
    """
    d = recipe.data
    with contextlib.ExitStack() as stack:

        def read(source: DataSource) -> SourceRows:
            settings: Any = {"progress": progress, "contents": True, "folder": folder, "scratch": scratch}
            rows = stack.enter_context(read_source(source, **settings))
            if fit is not None:
                rows.fit(fit, progress)
            return rows

        rows = read(train)
        other = read(held_out) if isinstance(held_out, DataSource) else None
        share = 0.0 if isinstance(held_out, DataSource) else held_out
        rows.store.share_out(stage1_share=d.stage1_share, held_out=share, seed=d.split_seed)
        roles = {part: rows.store.roles(part) for part in PARTS}
        if other is not None:
            roles["held_out"] = other.store.roles(None)
        require_negatives(recipe, roles)
        yield SharedRows(rows, other, roles)


def prepare_data(run: RunDirectory) -> None:
    """Read, check and share out the data, once."""
    folder, d = run.folder / "data", run.recipe.data
    if run.done("data"):
        _check_unchanged(run)
        return

    began: dict[str, float] = {}

    def told(what: str, done: int, total: int | None) -> None:
        if total is not None:
            seconds = time.monotonic() - began.setdefault(what, time.monotonic())
            rate = f", {done / seconds:,.0f} a second" if seconds > 1 else ""
            # Not the last one: an error may follow, and its line stands alone.
            label = "looking at images" if what == "images" else "encoding rows"
            run.reporter.progress(f"{label}{rate}", min(done, total - 1), total)
            if done == total and what == "fits" and rate:
                run.reporter.note(f"{total:,} rows encoded in {seconds:.0f} s{rate}")
        elif done % _TOLD_EVERY == 0:
            run.reporter.note(f"{done:,} rows read")

    fit = None if d.path == "scenes" else row_fit(run)
    settings: Any = {"progress": told, "fit": fit, "folder": folder / "images", "scratch": run.folder}
    with share_rows(run.recipe, *_sources(run.recipe, folder), **settings) as shared:
        for part in PARTS:
            write_lines(folder / f"{part}.jsonl", shared.lines(part, folder))
        write_jsonl(folder / _PICTURES, _pictures(shared, folder))
        run.reporter.step("data", f"data: {d.path}")
        bad = sum(1 for _ in shared.bad_rows())
        if bad:
            write_rejected(run.folder / "rejected_rows.jsonl", shared.bad_rows())
            run.reporter.note(f"{bad} rows set aside in {run.folder / 'rejected_rows.jsonl'}")
        counts = {part: shared.roles[part]["prompts"] for part in PARTS}
    files = _source_files(run.recipe)
    facts = {"sources": {str(f): _content(f) for f in files}, "stamps": {str(f): _stamp(f) for f in files}}
    run.finish("data", {"counts": counts, "bad_rows": bad, "room": None if fit is None else fit.room, **facts})
    run.reporter.note(", ".join(f"{n} {name}" for name, n in counts.items()))


def _sources(recipe: Recipe, folder: Path) -> tuple[DataSource, DataSource | float]:
    """Return the data to train on, and the data to hold out or how much of it."""
    d = recipe.data
    if d.path == "scenes":
        held_out = int(d.held_out) if d.held_out >= 1 else max(1, round(d.held_out * d.size))
        write_rows(folder / "scenes", d.size, d.split_seed, "train")
        write_rows(folder / "scenes", held_out, d.split_seed, "test")
        files = (folder / "scenes" / name for name in ("train.jsonl", "test.jsonl"))
        train, test = (source_of(recipe, file, format="cwdpo", check_images=False) for file in files)
        return train, test
    train = source_of(recipe, d.path)
    return train, d.held_out if d.held_out_path is None else source_of(recipe, d.held_out_path)


def _source_files(recipe: Recipe) -> list[Path]:
    """Return the data files on this machine, of a folder the tables in it; and the file of the user's own reader."""
    found: list[Path] = []
    paths = [part.path for part in recipe.data.sources] or [recipe.data.path]
    for path in (*paths, recipe.data.held_out_path):
        if path is None or is_remote(path):
            continue
        files = [Path(file) for file in shards_of(path) or [path]]
        for file in files:
            tables = sorted(p for p in file.iterdir() if p.suffix in _TABLES) if file.is_dir() else [file]
            found += [table for table in tables if table.is_file()]
    if (reader := user_file(recipe.data.format)) is not None:
        found.append(reader[0])
    return found


def _content(file: Path) -> str:
    """Return what tells a data file from another: its SHA-256, of a tar its size."""
    return f"{file.stat().st_size} bytes" if file.suffix == ".tar" else file_digest(file)


def _stamp(file: Path) -> list[int]:
    """Return size and times of the last change: as long as they stay, the content need not be read."""
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _check_unchanged(run: RunDirectory) -> None:
    """Compare the data with what they were; what has kept size and times is not read again.

    Raises:
        RunError: A data file or a picture has changed.
    """
    folder = run.folder / "data"
    known = read_json(folder / "done.json", sources=dict)
    stamps: dict[str, Any] = known.get("stamps", {})
    for path, digest in known["sources"].items():
        file = Path(path)
        if file.is_file() and stamps.get(path) != _stamp(file) and _content(file) != digest:
            raise RunError(f"{path}: the data file has changed since this run began; choose another --out")
    for row in read_jsonl(folder / _PICTURES) if (folder / _PICTURES).is_file() else ():
        image = row["image"]
        file = folder / (image if isinstance(image, str) else image["tar"])
        if not file.is_file() or row["stamp"] == _stamp(file):
            continue
        ref = ImageRef(path=str(file)) if isinstance(image, str) else ImageRef(stored=TarMember(**image))
        if _digest(ref) != row["sha256"]:
            raise RunError(
                f"{ref.name}: the picture has changed since this run began; put it back, or choose another --out"
            )


def _pictures(shared: SharedRows, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the pictures of the data, with what tells that one has changed; not those that the run drew itself."""
    for rows in (shared.train, shared.held_out):
        for ref, digest in rows.store.pictures() if rows is not None else ():
            image = ref.to_json(folder)
            file = folder / (image if isinstance(image, str) else image["tar"])
            if file.is_file() and not file.is_relative_to(folder / "scenes"):
                inside = file.is_relative_to(folder)  # where a copy of the run has other times
                yield {"image": image, "sha256": digest, "stamp": None if inside else _stamp(file)}


def _digest(ref: ImageRef) -> str | None:
    try:
        return ref.digest()
    except OSError:
        return None


def takes_negatives(recipe: Recipe) -> bool:
    """Whether Stage 1 is run with negatives."""
    s = recipe.stage1
    return s.enabled and isinstance(s.method, SFTC) and s.method.penalised


def takes_pairs(recipe: Recipe) -> bool:
    """Whether Stage 2 is run, on chosen and rejected responses; on-policy methods sample their own."""
    return recipe.stage2.enabled and not recipe.stage2.method.on_policy


def require_negatives(recipe: Recipe, roles: Mapping[str, Mapping[str, int]]) -> None:
    """Find out before any training whether a stage that needs negatives can get some.

    Args:
        recipe: The recipe.
        roles: The responses of `stage1` and `stage2`, counted by role.

    Raises:
        DataError: The recipe takes negatives from the data alone, and the data has none.
    """
    if recipe.negatives.correction.by != "none":
        return  # the model's own answers are the rejected ones
    for stage, needed in (("stage1", takes_negatives(recipe)), ("stage2", takes_pairs(recipe))):
        mix: SourceMix = getattr(recipe.negatives, stage)
        if needed and [*mix.sources] == ["dataset"] and not roles[stage][REJECTED]:
            raise DataError(
                f"{recipe.data.path}: no row of {stage} has a rejected response, and negatives.{stage} takes them from "
                f"the data alone; set another source, for instance negatives.{stage}.beam=1 (written by the model) or "
                f"negatives.{stage}.other=1 (answers of other images)"
            )
