"""What `evaluate` does, apart from parsing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import typer
import yaml
from rich.console import Console
from rich.table import Table

from cwdpo.cli.commands import inference_model
from cwdpo.data import DataSource, PromptGroup, detect_format, load_groups
from cwdpo.errors import DataError, RecipeError, one_line
from cwdpo.evaluation.java import Unavailable, find_java
from cwdpo.evaluation.metrics import METRICS, CaptionMetric
from cwdpo.evaluation.tokenize_captions import choose_tokenizer
from cwdpo.files import remove, text_digest, write_json, write_jsonl
from cwdpo.outputs import OwnedFolder, require_replaceable
from cwdpo.recipe.safe_yaml import parse_yaml
from cwdpo.run.progress import Reporter

__all__ = ["EvaluationData", "chosen_metrics", "folder_name", "run_evaluation"]

_DRAWN = 500
"""Pictures of `scenes` where no limit is given."""


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
            from cwdpo.scenes.scene_rows import write_rows

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


def run_evaluation(
    model: str | None,
    captions: Path | None,
    data: EvaluationData,
    out: Path | None,
    *,
    metrics: str | None,
    tokenizer: Literal["auto", "ptb", "words"],
    beams: int,
    batch_size: int,
    max_new_tokens: int,
    spice_jars: Path | None,
    force: bool,
) -> None:
    """Caption or read captions, measure, print a table, write `metrics.json` and `rows.jsonl`."""
    from cwdpo.cli.console import RichReporter
    from cwdpo.evaluation.caption_files import read_captions
    from cwdpo.evaluation.measure_captions import measure, references_of

    asked = chosen_metrics(metrics, spice_jars)
    if (model is None) == (captions is None):
        raise RecipeError("give either --model, to caption the pictures, or --captions, a file of captions")
    folder = out or Path("evaluation") / folder_name(str(model if captions is None else captions.with_suffix("")))
    for name in ("metrics.json", "rows.jsonl", *(["captions.jsonl"] if captions is None else [])):
        reads = [data.path, *([captions] if captions is not None else [])]
        require_replaceable(folder / name, "evaluate", reads=reads, force=force)
    with OwnedFolder(folder, "evaluate", alone=False, force=force), RichReporter() as reporter:
        way = choose_tokenizer(tokenizer, reporter.note, "--tokenizer")
        groups = data.read(folder, need_images=captions is None)
        references = references_of(groups)
        if captions is not None:
            texts = read_captions(captions, groups)
        else:
            assert model is not None
            texts = _captions(model, groups, folder, beams, batch_size, max_new_tokens, reporter)
        chosen = [metric for metric in asked if metrics is not None or metric.applies(groups)]
        reporter.step("metrics", f"{len(chosen)} metrics of {len(groups)} captions")
        kept = folder / ".measures.jsonl"
        found = measure(
            groups,
            texts,
            chosen,
            kept=kept,
            tokenizer=way,
            progress=lambda done, total: reporter.progress("measuring", done, total),
        )
        each = found.pop("each")
        rows = [
            {"id": g.id, "captions": list(said), "references": list(gold), "metrics": values}
            for g, said, gold, values in zip(groups, texts, references, each, strict=True)
        ]
        settings = {"model": model, "captions": None if captions is None else str(captions), "data": data.path}
        settings |= {"split": data.split, "limit": data.limit, "prompt": data.prompt}
        if model is not None:
            settings |= {"beams": beams, "max_new_tokens": max_new_tokens}
        write_jsonl(folder / "rows.jsonl", rows)
        write_json(folder / "metrics.json", {**settings, **found, "versions": _versions()})
        remove(kept)
    _print_measures(found)
    typer.echo(f"metrics: {folder / 'metrics.json'}")


def folder_name(path: str) -> str:
    """Return a folder's name from a model's path: `runs/a/stage2/model` is `runs-a-stage2-model`."""
    return "-".join(part for part in Path(path).parts if part.strip("./"))[-120:]


def _captions(
    model: str,
    groups: Sequence[PromptGroup],
    folder: Path,
    beams: int,
    batch_size: int,
    max_new_tokens: int,
    reporter: Reporter,
) -> list[list[str]]:
    from cwdpo.evaluation.captioning import caption_hypotheses
    from cwdpo.models.identity import folder_digest
    from cwdpo.scenes import base_path

    loaded, encoder = inference_model(model)
    asked = json.dumps([[[dict(m) for m in g.messages], [image.digest() for image in g.images]] for g in groups])
    reporter.step("captions", f"captions of {len(groups)} pictures by {model}")
    return caption_hypotheses(
        lambda: loaded,
        encoder,
        groups,
        folder / "captions.jsonl",
        key=text_digest(folder_digest(base_path() if model == "scenes" else model), asked),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        beams=beams,
        progress=lambda done, total: reporter.progress("captions", done, total),
    )


def _versions() -> dict[str, str]:
    packages = ("cwdpo", "pycocoevalcap", "torch", "transformers")
    found = {name: text for name in packages if (text := _version(name)) is not None}
    with contextlib.suppress(Unavailable):
        found["java"] = str(find_java().version)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def _print_measures(found: Mapping[str, Any]) -> None:
    """Print the table: all pictures with intervals, hypotheses of a beam, domains; then what could not be had."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=160, highlight=False)
    console.print(f"{found['pictures']} pictures, {found['references']} references; × 100, length in tokens")
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    beam, domains = found.get("beam"), found.get("domains", {})
    columns = ["", "all", "95 %"]
    columns += [f"mean of {beam['hypotheses']}", f"best of {beam['hypotheses']}"] if beam else []
    columns += [f"{name} ({part['pictures']})" for name, part in domains.items()]
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, score in found["metrics"].items():
        row = [name, _figure(score), _interval(score).replace("[", "\\[")]
        if beam:
            row += [_figure(beam["metrics"].get(name, {}).get(which, {})) for which in ("mean", "best")]
        table.add_row(*row, *(_figure(part["metrics"][name]) for part in domains.values()))
    console.print(table)
    console.print(f"tokens: {found['tokenizer']}", style="dim")
    for name, score in found["metrics"].items():
        if "unavailable" in score:
            console.print(f"{name}: unavailable: {score['unavailable']}", style="dim", soft_wrap=True, markup=False)


def _figure(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.2f}" if "value" in score else "–"


def _interval(score: Mapping[str, Any]) -> str:
    return f"[{score['low']:.2f}, {score['high']:.2f}]" if "low" in score else "–"
