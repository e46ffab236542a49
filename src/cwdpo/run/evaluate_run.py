"""Held-out prompts before and after the last stage: captions, likelihoods, calibration, drift."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.evaluation.captioning import caption_groups, captioner
from cwdpo.evaluation.intervals import mean_row
from cwdpo.evaluation.measure_captions import captioned
from cwdpo.evaluation.metrics import METRICS, Captioned, CaptionMetric, Score, Unavailable
from cwdpo.evaluation.tokenize_captions import Tokenizer, choose_tokenizer
from cwdpo.files import read_json, write_json, write_jsonl
from cwdpo.models.identity import folder_digest
from cwdpo.probes.figures import EVALUATED, Figure
from cwdpo.probes.reading import ProbeSet
from cwdpo.processes import processes
from cwdpo.recipe import Recipe
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import groups_of
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene
from cwdpo.scoring.scorer import AutoScorer

__all__ = ["evaluate", "require_metrics", "summarise"]

_GROUNDING = 256
"""Prompts that are also scored with another prompt's picture."""


def require_metrics(recipe: Recipe) -> list[CaptionMetric]:
    """Return the caption metrics of a recipe, without `correct`, which is measured on `scenes` anyway.

    Raises:
        RecipeError: One is unknown, or its settings are wrong.
    """
    asked = METRICS.make(recipe.evaluation.metrics, "evaluation.metrics")
    return [metric for metric in asked if metric.name != "correct"]


def evaluate(run: RunDirectory) -> dict[str, Any]:
    """Measure held-out prompts before and after the last stage; several processes write captions together.

    Where they share weights, all of them read the likelihoods too, each for itself.
    """
    before = run.stage_model("stage1") if run.recipe.stage2.enabled else run.model_path
    models = {"base": run.model_path, "before": before, "after": run.stage_model("stage2")}
    loaded = lru_cache(1)(run.inference_model)  # one model at a time

    def helper(path: str) -> Callable[[Sequence[PromptGroup]], list[dict[str, Any]]]:
        return captioner(lambda: loaded(path), run.encoder(path), run.recipe.evaluation.max_new_tokens)

    def read(_: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        loaded.cache_clear()
        return _readings(run, models)

    team = processes()
    helpers = {name: helper(path) for name, path in models.items()} if team.size > 1 else {}
    return team.lead(lambda: _evaluate(run, models), **helpers, readings=read)


def _evaluate(run: RunDirectory, models: Mapping[str, str]) -> dict[str, Any]:
    folder, e = run.folder / "evaluation", run.recipe.evaluation
    if run.done("evaluation"):
        return read_json(folder / "summary.json", after=dict)
    groups = _held_out(run)
    run.reporter.step("evaluation", f"captions and scores of {len(groups)} held-out prompts")
    captions: dict[str, list[str]] = {}
    for name, path in models.items():
        same = next((other for other in captions if models[other] == path), None)
        captions[name] = (
            captions[same]
            if same is not None
            else caption_groups(
                lambda path=path: run.inference_model(path),
                run.encoder(path),
                groups,
                folder / f"captions_{name}.jsonl",
                key=folder_digest(path),
                batch_size=e.batch_size,
                max_new_tokens=e.max_new_tokens,
                progress=lambda done, total, name=name: run.reporter.progress(f"captions {name}", done, total),
                name=name,
            )
        )
    asked = [models] if e.likelihoods else []
    readings = next(processes().map("readings", asked, lambda names: _readings(run, names)), {})
    tokenizer = choose_tokenizer(e.tokenizer, run.reporter.note, "evaluation.tokenizer:")
    metrics = require_metrics(run.recipe)
    summary, rows = summarise(groups, captions, readings, metrics, tokenizer, run.folder, run.reporter.note)
    write_jsonl(folder / "rows.jsonl", rows)
    write_json(folder / "summary.json", summary)
    run.finish("evaluation", {"prompts": len(groups)})
    return summary


def _held_out(run: RunDirectory) -> list[PromptGroup]:
    return groups_of(run, "held_out")[-run.recipe.evaluation.prompts :]


def _readings(run: RunDirectory, models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Score the prompts under every model, with right and wrong pictures; the last model against the one before it."""
    groups, two, batch_size = _held_out(run), run.recipe.stage2, run.recipe.evaluation.batch_size
    encoder = run.encoder(models["before"], include_eos=two.include_eos)
    wrong_rows = with_wrong_images(groups[:_GROUNDING])
    probes, shuffled = (
        ProbeSet(rows, encoder, batch_size=batch_size, floor=two.floor, tau=two.tau) if rows else None
        for rows in (groups, wrong_rows)
    )
    assert probes is not None
    scorer = AutoScorer.of(run.recipe.model)
    readings: dict[str, dict[str, Any]] = {}
    previous: Any = None
    for name, path in models.items():
        if name == "before" and path == models["base"]:
            readings[name] = readings["base"]
            continue
        model = run.inference_model(path)
        drift_from = previous if name == "after" else None
        reading, _ = probes.read(model, scorer, before=drift_from, per_prompt=True)
        if shuffled is not None:
            wrong, _ = shuffled.read(model, scorer, per_prompt=True)
            reading["grounding"] = _grounding(reading["prompts"], wrong["prompts"])
        readings[name], previous = reading, model
    return readings


def with_wrong_images(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """Return each prompt's chosen response beside the next prompt's images; prompts without images are left out."""
    seeing = [g for g in groups if g.images and g.by_role(CHOSEN)]
    pairs = zip(seeing, [*seeing[1:], *seeing[:1]], strict=True)
    return [
        replace(group, images=other.images, responses=group.by_role(CHOSEN)[:1])
        for group, other in pairs
        if len(group.images) == len(other.images) and group is not other
    ]


def _grounding(right: Sequence[Mapping[str, Any]], wrong: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how much more likely the gold response is with its own picture than with another (nats per token)."""
    known = {row["id"]: row[CHOSEN] for row in right}
    pairs = [(known[row["id"]], row[CHOSEN]) for row in wrong]
    interval = mean_row([a - b for a, b in pairs])
    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    return {"right": means[0], "shuffled": means[1], "gap": interval.pop("mean"), **interval}


def summarise(
    groups: Sequence[PromptGroup],
    captions: Mapping[str, Sequence[str]],
    readings: Mapping[str, dict[str, Any]],
    metrics: Sequence[CaptionMetric],
    tokenizer: Tokenizer = "words",
    folder: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Put captions and teacher-forced readings together.

    Args:
        groups: The held-out prompts.
        captions: By model (`base`, `before`, `after`), one caption per prompt.
        readings: Of `before` and `after`, with their `prompts`.
        metrics: What is measured of captions, where prompts have references.
        tokenizer: How captions and references are tokenised.
        folder: Run directory: paths of images inside it are given relative to it, so that it can be copied.
        note: Told why a metric is unavailable.

    Returns:
        The summary (a section per model), and a row per prompt.
    """
    references = [g.references or tuple(r.text for r in g.by_role(CHOSEN)) for g in groups]
    scored = [i for i, r in enumerate(references) if r]
    summary: dict[str, Any] = {"prompts": len(groups), "tokenizer": tokenizer}
    columns: dict[str, dict[str, list[Any]]] = {}
    figures: dict[str, Figure] = {}
    for name, texts in captions.items():
        part: dict[str, Any] = {}
        columns[name] = {"caption": list(texts)}
        if scored and metrics:
            gold = [references[i] for i in scored]
            (sample,) = captioned([groups[i] for i in scored], [[texts[i]] for i in scored], gold, tokenizer)
            for metric in metrics:
                for figure, score in _scores(metric, sample, note).items():
                    figures[figure] = metric.figure(figure)
                    part[figure] = score.value
                    values = dict(zip(scored, score.each or (), strict=False))
                    columns[name] |= {figure: [values.get(i) for i in range(len(groups))]} if values else {}
        if groups and all("scene" in g.facts for g in groups):
            right = [is_correct(t, Scene.from_json(g.facts["scene"])) for t, g in zip(texts, groups, strict=True)]
            part["correct"] = sum(right) / len(right)
            columns[name]["correct"] = right
        if name in readings:
            reading = readings[name]
            part |= {k: reading[k] for k in ("ece", "entropy", "top1", "tv", "js") if k in reading}
            part["logp"] = {kind: values["logp_mean"] for kind, values in reading["kinds"].items()}
            part["cooling_weight"] = {kind: values["cooling_weight"] for kind, values in reading["kinds"].items()}
            part |= {key: reading[key] for key in ("reliability", "grounding") if key in reading}
            columns[name]["logp"] = [{k: v for k, v in p.items() if k != "id"} for p in reading["prompts"]]
        summary[name] = part
    summary["figures"] = [asdict(figure) for name, figure in figures.items() if name not in EVALUATED]
    rows: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        row: dict[str, Any] = {"id": group.id, "image": _shown_path(group, folder), "references": list(references[i])}
        with contextlib.suppress(OSError, IndexError):  # a picture elsewhere is shown if its content is still this
            row["image_digest"] = group.images[0].digest()
        rows.append(row | {name: {key: values[i] for key, values in own.items()} for name, own in columns.items()})
    return summary, rows


def _scores(metric: CaptionMetric, sample: Captioned, note: Callable[[str], None]) -> dict[str, Score]:
    try:
        return metric.scores(sample)
    except Unavailable as reason:
        note(f"{metric.name}: unavailable: {reason}")
        return {}


def _shown_path(group: PromptGroup, folder: Path | None) -> str | None:
    path = group.images[0].path if group.images else None
    if path is None or folder is None or not Path(path).is_relative_to(folder):
        return path
    return str(Path(path).relative_to(folder))
