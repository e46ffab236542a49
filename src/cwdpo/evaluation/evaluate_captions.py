"""Captions of a data set, by a model or from a file, measured."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from cwdpo.data import DataSource, PromptGroup, detect_format, load_groups
from cwdpo.errors import DataError, RecipeError, one_line
from cwdpo.evaluation.caption_files import read_captions
from cwdpo.evaluation.captioning import caption_hypotheses
from cwdpo.evaluation.java import Unavailable, find_java
from cwdpo.evaluation.measure_captions import measure, references_of
from cwdpo.evaluation.metrics import METRICS, CaptionMetric
from cwdpo.evaluation.tokenize_captions import choose_tokenizer
from cwdpo.files import remove, write_json, write_jsonl
from cwdpo.models.identity import folder_digest
from cwdpo.safe_yaml import parse_yaml
from cwdpo.scenes import base_path
from cwdpo.scenes.scene_rows import write_rows
from cwdpo.scoring.open_model import open_model

__all__ = ["EvaluationData", "Listener", "chosen_metrics", "evaluate_captions"]

_DRAWN = 500
"""Pictures of `scenes` where no limit is given."""


class Listener(Protocol):
    """Who is told how far an evaluation is."""

    def step(self, name: str, text: str) -> None:
        """Announce a step."""
        ...

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        ...

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far a step is."""
        ...


@dataclass(frozen=True)
class EvaluationData:
    """Which pictures and references are taken.

    Attributes:
        path: File or folder in a known format, or `scenes`.
        split: Split of a file that has several; None is `test` of a Karpathy file.
        images: Folder that image paths start from.
        prompt: The question, for formats that hold captions only.
        limit: Pictures to take, from the first on.
    """

    path: str
    split: str | None = None
    images: Path | None = None
    prompt: str | None = None
    limit: int | None = None

    def read(self, folder: Path, *, need_images: bool) -> tuple[PromptGroup, ...]:
        """Return the prompts with their references.

        Args:
            folder: Where pictures of `scenes` are drawn.
            need_images: Whether somebody will look at them.

        Raises:
            DataError: One line.
        """
        if self.path == "scenes":
            write_rows(folder / "scenes", self.limit or _DRAWN, 0, "test")
            return load_groups(DataSource(path=folder / "scenes" / "test.jsonl")).groups
        found = detect_format(self.path, self.split)
        whole = found in ("captions", "coco") or (found != "karpathy" and Path(self.path).is_file())
        if self.split is not None and whole:
            raise DataError(f"{self.path}: has no splits ({found}); leave --split out")
        settings: dict[str, Any] = {"prompt": self.prompt} if self.prompt is not None else {}
        split = self.split or ("test" if found == "karpathy" else None)
        source = DataSource(
            path=self.path, split=split, image_root=self.images, limit=self.limit, need_images=need_images, **settings
        )
        return load_groups(source).groups


def chosen_metrics(asked: str | None, spice_jars: Path | None) -> list[CaptionMetric]:
    """Return the metrics of `--metrics`: names with commas, or a YAML list with settings; by default all.

    Raises:
        RecipeError: One is not known.
    """
    names: Any = METRICS.names() if asked is None else [name.strip() for name in asked.split(",")]
    if asked is not None and asked.lstrip().startswith("["):
        try:
            names = parse_yaml(asked)
        except yaml.YAMLError as error:
            raise RecipeError(f"--metrics {one_line(asked, 80)}: is no YAML list: {one_line(error, 120)}") from None
    jars = {"spice": {"jars": spice_jars}} if spice_jars is not None else {}
    return METRICS.make([jars if name == "spice" and jars else name for name in names], "--metrics")


def evaluate_captions(
    model: str | None,
    captions: Path | None,
    data: EvaluationData,
    folder: Path,
    *,
    metrics: str | None,
    tokenizer: Literal["auto", "ptb", "words"],
    beams: int,
    batch_size: int,
    max_new_tokens: int,
    spice_jars: Path | None,
    listener: Listener,
) -> dict[str, Any]:
    """Caption pictures, or read captions, and measure them; write `metrics.json` and `rows.jsonl`.

    Args:
        model: Model that captions the pictures; None where captions are given.
        captions: File of captions; None where a model is given.
        data: Pictures and references.
        folder: Where files go.
        metrics: As `chosen_metrics` takes them.
        tokenizer: As `choose_tokenizer` takes it.
        beams: Width of a beam search; 1 is greedy.
        batch_size: Pictures at once.
        max_new_tokens: Longest caption, in tokens.
        spice_jars: Stanford CoreNLP, for SPICE.
        listener: Told how far it is.

    Returns:
        What `metrics.json` holds of the captions.

    Raises:
        UserError: A model, a file or a setting cannot be used.
    """
    asked, way = chosen_metrics(metrics, spice_jars), choose_tokenizer(tokenizer, listener.note, "--tokenizer")
    groups = data.read(folder, need_images=captions is None)
    if captions is not None:
        texts = read_captions(captions, groups)
    else:
        assert model is not None
        listener.step("captions", f"captions of {len(groups)} pictures by {model}")
        texts = _captions(model, groups, folder / "captions.jsonl", beams, batch_size, max_new_tokens, listener)
    chosen = [metric for metric in asked if metrics is not None or metric.applies(groups)]
    listener.step("metrics", f"{len(chosen)} metrics of {len(groups)} captions")
    kept = folder / ".measures.jsonl"
    measured = measure(
        groups,
        texts,
        chosen,
        kept=kept,
        tokenizer=way,
        progress=lambda done, total: listener.progress("measuring", done, total),
    )
    rows = [
        {"id": g.id, "captions": list(said), "references": list(gold), "metrics": values}
        for g, said, gold, values in zip(groups, texts, references_of(groups), measured.pop("each"), strict=True)
    ]
    settings = {"model": model, "captions": None if captions is None else str(captions), "data": data.path}
    settings |= {"split": data.split, "limit": data.limit, "prompt": data.prompt}
    settings |= {"beams": beams, "max_new_tokens": max_new_tokens} if model is not None else {}
    write_jsonl(folder / "rows.jsonl", rows)
    write_json(folder / "metrics.json", {**settings, **measured, "versions": _versions()})
    remove(kept)
    return measured


def _captions(
    model: str,
    groups: Sequence[PromptGroup],
    path: Path,
    beams: int,
    batch_size: int,
    max_new_tokens: int,
    listener: Listener,
) -> list[list[str]]:
    loaded, encoder = open_model(model)
    return caption_hypotheses(
        lambda: loaded,
        encoder,
        groups,
        path,
        key=folder_digest(base_path() if model == "scenes" else model),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        beams=beams,
        progress=lambda done, total: listener.progress("captions", done, total),
    )


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in ("cwdpo", "pycocoevalcap", "torch", "transformers"):
        with contextlib.suppress(ImportError):
            versions[package] = version(package)
    with contextlib.suppress(Unavailable):
        versions["java"] = str(find_java().version)
    return versions
