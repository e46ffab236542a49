"""Where prompts, images and responses are."""

from __future__ import annotations

import importlib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cwdpo.plugins import user_file
from cwdpo.section import Section

__all__ = ["DataSection"]


class MixSource(Section):
    """One source of a mixture: a path with a weight, or with a number of rows."""

    path: str
    """As `data.path`."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """How often each of its rows is there: 2 is twice, 0.5 every other row, drawn by `data.split_seed`."""
    rows: int | None = Field(default=None, ge=1)
    """Draw this many of its rows by `data.split_seed`; not together with a weight."""

    @model_validator(mode="after")
    def _weight_or_rows(self) -> Self:
        if self.rows is not None and self.weight != 1:
            raise ValueError("give weight or rows, not both")
        return self


class DataSection(Section):
    """Where the prompts, images and responses are, and how they are shared out."""

    path: str = "scenes"
    """A file or folder in one of the known formats, the id of a data set on the hub (`openbmb/RLAIF-V-Dataset`), or
    `scenes` for pictures drawn on the spot. Shards are a folder or
    a pattern (`data/train-{000..099}.tar`, `data/*.parquet`), image tars are WebDataset's; an address (`s3://`,
    `hf://`, `https://`) is read through fsspec."""
    sources: list[MixSource] = Field(default=[])
    """Several sources in place of `path`, shared out together by the content of their images:
    `[{path: a.jsonl, weight: 2}, {path: b.parquet, rows: 5000}]`."""
    format: str = "auto"
    """How to read it: `auto` (looks at the columns), a format that `cwdpo data` lists, or a function of yours that
    makes a row of ours of a row of the file, `my_rows.py:read`."""
    columns: dict[str, str] = Field(default={})
    """What columns are called in the file: `{prompt: question, images: image, chosen: better, rejected: worse}`."""
    pairs: Literal["best", "adjacent", "all"] = "best"
    """What rated answers become: the best one against all lower ones, each against the next lower one, or each against
    all lower ones."""
    pair_gap: float = Field(default=0.0, ge=0)
    """Least difference of the ratings of such a pair, in their own units; equal ratings never make one."""
    pair_unpaired: bool = False
    """Rows are answers that are each marked good or bad (KTO: `label`, `kto_tag`): those to the same prompt become
    pairs."""
    private_addresses: bool = False
    """Fetch images also from http(s) addresses of private networks and of this machine."""
    image_root: str | None = None
    """Folder that relative image paths start from; default: the data file's folder. Not asked for images in tars and
    Parquet."""
    prompt: str = "Describe the image in one sentence."
    """The question for formats that hold captions only (karpathy, coco, captions)."""
    split: str | None = None
    """Which split of the file to read where it has several (karpathy: train includes restval)."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows."""
    held_out_path: str | None = None
    """A file of its own for the rows set aside for probes and evaluation; `held_out` is then not taken from `path`."""
    captions: Literal["first", "random", "each"] = "first"
    """Which caption of a picture is the chosen response, for formats that hold captions only."""
    size: int = Field(default=4000, ge=8)
    """For `scenes`: how many training pictures to draw."""
    held_out: int | float = Field(default=0.1, gt=0)
    """Rows set aside for probes and evaluation: a count (≥ 1) or a share (< 1). By image, like the stages."""
    stage1_share: float = Field(default=0.75, gt=0, lt=1)
    """Share of the remaining images that Stage 1 sees; Stage 2 gets the rest. By image, disjoint (paper, §4.1)."""
    split_seed: int = 0
    """Seed of that division."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be used: stop and say which, or set it aside in rejected_rows.jsonl."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """With `skip`: stop all the same when more than this share of the rows is bad."""
    check_images: bool = True
    """Decode every image once before training, so that a truncated file is found now and not in the third hour."""
    image_pixel_limit: int = Field(default=64_000_000, ge=1)
    """Images with more pixels than this are refused before they are decoded (decompression bombs)."""
    text_limit: int = Field(default=1_000_000, ge=1)
    """Rows with more characters than this, prompt and answers together, are refused before they are tokenised."""
    row_limit: int = Field(default=64 << 20, ge=1)
    """Lines of JSON with more bytes than this are refused before they are read whole."""
    workers: int = Field(default=0, ge=0)
    """Processes that decode and process images beside training; 0 does it in the training process."""
    group_by_length: bool = False
    """Put prompts of about equal length (image, text and responses) into the same update: less padding, and an order
    that is less random."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_the_mixture(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("sources"):
            return values
        parts = [part if isinstance(part, dict) else dict(part) for part in values["sources"]]
        name = " + ".join(str(part.get("path")) for part in parts)
        if values.get("path", "scenes") not in ("scenes", name):
            raise ValueError("path and sources: give one of the two")
        return {**values, "path": name}

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        formats: Any = importlib.import_module("cwdpo.data.row_format").FORMATS  # recipes import no data
        if value not in ("auto", "scenes") and user_file(value) is None and value not in formats.names():
            known = ", ".join(("auto", "scenes", *formats.names()))
            raise ValueError(f"must be one of {known}, or a reader of your own as my_rows.py:read")
        return value
