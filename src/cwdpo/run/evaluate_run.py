"""Held-out prompts before and after the last stage: captions, likelihoods, calibration, drift."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.evaluation.captioning import caption_groups, captioner
from cwdpo.evaluation.intervals import mean_interval
from cwdpo.evaluation.metrics.cider import cider
from cwdpo.files import read_json, write_json, write_jsonl
from cwdpo.models.identity import folder_digest
from cwdpo.probes.reading import ProbeSet
from cwdpo.processes import processes
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import groups_of
from cwdpo.scenes.grammar import is_correct
from cwdpo.scenes.world import Scene
from cwdpo.scoring.scorer import AutoScorer

__all__ = ["evaluate", "summarise"]

_GROUNDING = 256
"""Prompts that are also scored with another prompt's picture."""


def evaluate(run: RunDirectory) -> dict[str, Any]:
    """Measure held-out prompts before and after the last stage; several processes write captions together.

    Where they share weights, all of them read the likelihoods too, each for itself.
    """
    before = run.stage_model("stage1") if run.recipe.stage2.enabled else run.model_path
    models = {"base": run.model_path, "before": before, "after": run.stage_model("stage2")}
    loaded = lru_cache(1)(run.inference_model)  # one model at a time

    def helper(path: str) -> Callable[[Sequence[PromptGroup]], list[dict[str, Any]]]:
        encoder = run.encoder(path)
        return captioner(lambda: loaded(path), encoder, run.recipe.evaluation.max_new_tokens)

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
    groups = _measured(run)
    run.reporter.step("evaluation", f"captions and scores of {len(groups)} held-out prompts")
    captions: dict[str, list[str]] = {}
    for name, path in models.items():
        captions[name] = captions.get(next((n for n in captions if models[n] == path), ""), [])
        captions[name] = captions[name] or caption_groups(
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
    asked = [models] if e.likelihoods else []
    readings = next(processes().map("readings", asked, lambda names: _readings(run, names)), {})
    summary, rows = summarise(groups, captions, readings, run.folder)
    write_jsonl(folder / "rows.jsonl", rows)
    write_json(folder / "summary.json", summary)
    run.finish("evaluation", {"prompts": len(groups)})
    return summary


def _measured(run: RunDirectory) -> list[PromptGroup]:
    return groups_of(run, "held_out")[-run.recipe.evaluation.prompts :]


def _readings(run: RunDirectory, models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Score the prompts under every model, with right and wrong pictures; the last model against the one before it."""
    groups, two, batch_size = _measured(run), run.recipe.stage2, run.recipe.evaluation.batch_size
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
    gap, low, high = mean_interval([a - b for a, b in pairs])
    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    return {"right": means[0], "shuffled": means[1], "gap": gap, "low": low, "high": high}


def summarise(
    groups: Sequence[PromptGroup],
    captions: Mapping[str, Sequence[str]],
    readings: Mapping[str, dict[str, Any]],
    folder: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Put captions and teacher-forced readings together.

    Args:
        groups: The held-out prompts.
        captions: By model (`base`, `before`, `after`), one caption per prompt.
        readings: Of `before` and `after`, with their `prompts`.
        folder: Run directory: paths of images inside it are given relative to it, so that it can be copied.

    Returns:
        The summary (a section per model), and a row per prompt.
    """
    rows: list[dict[str, Any]] = []
    references = [g.references or tuple(r.text for r in g.by_role(CHOSEN)) for g in groups]
    scored = [i for i, r in enumerate(references) if r]
    summary: dict[str, Any] = {"prompts": len(groups)}
    each: dict[str, dict[str, list[Any]]] = {}
    for name, texts in captions.items():
        part: dict[str, Any] = {}
        each[name] = {"caption": list(texts)}
        if scored:
            part["cider"], values = cider([texts[i] for i in scored], [references[i] for i in scored])
            each[name]["cider"] = [None] * len(groups)
            for i, value in zip(scored, values, strict=True):
                each[name]["cider"][i] = value
        if groups and all("scene" in g.facts for g in groups):
            right = [is_correct(t, Scene.from_json(g.facts["scene"])) for t, g in zip(texts, groups, strict=True)]
            part["correct"] = sum(right) / len(right)
            each[name]["correct"] = right
        if name in readings:
            reading = readings[name]
            part |= {k: reading[k] for k in ("ece", "entropy", "top1", "tv", "js") if k in reading}
            part["logp"] = {kind: values["logp_mean"] for kind, values in reading["kinds"].items()}
            part["cooling_weight"] = {kind: values["cooling_weight"] for kind, values in reading["kinds"].items()}
            part |= {key: reading[key] for key in ("reliability", "grounding") if key in reading}
            each[name]["logp"] = [{k: v for k, v in p.items() if k != "id"} for p in reading["prompts"]]
        summary[name] = part
    for i, group in enumerate(groups):
        row: dict[str, Any] = {"id": group.id, "image": _shown_path(group, folder)}
        row["references"] = list(references[i])
        with contextlib.suppress(OSError, IndexError):  # a picture elsewhere is shown if its content is still this
            row["image_digest"] = group.images[0].digest()
        row |= {name: {key: values[i] for key, values in columns.items()} for name, columns in each.items()}
        rows.append(row)
    return summary, rows


def _shown_path(group: PromptGroup, folder: Path | None) -> str | None:
    path = group.images[0].path if group.images else None
    if path is None or folder is None or not Path(path).is_relative_to(folder):
        return path
    return str(Path(path).relative_to(folder))
