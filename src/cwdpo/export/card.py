"""The card beside a model: what it was made of and with, what came out, what was found, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cwdpo.errors import one_line
from cwdpo.files import write_text
from cwdpo.methods.base import METHODS
from cwdpo.probes.figures import BY_KIND, LOGGED, OVERALL, Figure
from cwdpo.report.read_run import read_runs
from cwdpo.report.run_record import STAGES, RunRecord
from cwdpo.report.ticks import text_of, whole
from cwdpo.report.values import as_list, as_map, number
from cwdpo.report.verdict import describe_run
from cwdpo.safe_yaml import parse_yaml

__all__ = ["card_of", "write_cards"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_LOAD = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
model = AutoModelForImageTextToText.from_pretrained({base}, dtype="auto")
{adapter}processor = AutoProcessor.from_pretrained(folder)
asked = [{{"type": "image", "url": "picture.jpg"}}, {{"type": "text", "text": {prompt}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": asked}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64)
new = answer[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(new, skip_special_tokens=True)[0])
```"""

_ADAPTER = "model = PeftModel.from_pretrained(model, folder)  # from peft import PeftModel\n"


def write_cards(folder: Path) -> None:
    """Write the card of every finished stage of a run beside its model."""
    (run,) = read_runs([folder])
    for stage in STAGES:
        model = folder / stage / "model"
        if not run.json(f"{stage}/done.json"):
            continue
        path, card = model / "README.md", card_of(run, stage, adapter=(model / "adapter_config.json").is_file())
        if not path.is_file() or path.read_text(encoding="utf-8") != card:
            write_text(path, card)


def card_of(run: RunRecord, stage: str, *, adapter: bool, notes: Sequence[str] = ()) -> str:
    """Return the card of a stage's model as Markdown, with the header that the Hugging Face Hub reads.

    Args:
        run: The run.
        stage: The stage that ended with the model.
        adapter: Whether the folder holds an adapter, and not a whole model.
        notes: What else there is to say of these files: how they were exported.
    """
    path = str(run.manifest.get("model", {}).get("path") or run.recipe.get("model", {}).get("path", "?"))
    base, licence = _without_folders(path), _licence(path)
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    header["pipeline_tag"] = "image-text-to-text"
    header["tags"] = [
        "cwdpo",
        *(o for s in _stages(run, stage) if isinstance(o := run.recipe[s].get("objective"), str)),
    ]
    header |= {"base_model": base} if _HUB_ID.fullmatch(base) else {}
    header |= {"license": licence} if licence else {}
    method = " → ".join(run.objective(s) for s in _stages(run, stage))
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {one_line(run.name, 80)}: {method}",
        f"`{base}` after {STAGES[stage]} of a run of cwdpo {run.manifest.get('cwdpo', '?')}, seed {run.seed}."
        + (f" Licence of the model that it starts from: {licence or 'not known; see its source'}."),
        *notes,
        *_section("Results", _results(run, stage)),
        *_section("Findings", _findings(run, stage)),
        *_section("Data", _data(run, stage)),
        *_section("Training", _training(run, stage)),
        *_section("Known limits", _limits(run, stage)),
        "## How to load",
        _LOAD.format(
            base=repr(base) if adapter else "folder",
            adapter=_ADAPTER if adapter else "",
            prompt=repr(str(run.recipe.get("data", {}).get("prompt", "Describe the image."))),
        ),
        "<details><summary>Recipe</summary>",
        f"```yaml\n{yaml.safe_dump(_without_folders(run.recipe), sort_keys=False, allow_unicode=True)}```",
        "</details>",
        *_section("Citation", _papers(run, stage)),
    ]
    return "\n\n".join(parts) + "\n"


def _without_folders(value: Any) -> Any:
    """Return a value of the recipe with the name alone of whatever is an absolute path: a card is made to be shown."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _section(title: str, lines: Iterator[str]) -> list[str]:
    text = "\n".join(lines)
    return [f"## {title}", text] if text else []


def _stages(run: RunRecord, last: str) -> list[str]:
    """Return the stages that made a model."""
    return [s for s in STAGES if s <= last and run.enabled(s)]


def _licence(path: str) -> str | None:
    """Return the licence that a folder's own card names."""
    card = Path(path) / "README.md"
    if not card.is_file():
        return None
    parts = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        named: Any = as_map(parse_yaml(parts[1])).get("license") if parts else None
    except yaml.YAMLError:
        return None
    return one_line(named, 60) if isinstance(named, str) else None


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield "| " + " | ".join(heads) + " |"
        yield "|---" * len(heads) + "|"
        yield from ("| " + " | ".join(row) + " |" for row in rows)
        yield ""


def _results(run: RunRecord, stage: str) -> Iterator[str]:
    """What the evaluation says of the last stage, then where the curves of held-out probes end."""
    if stage == run.last_stage and (verdict := describe_run(run)) is not None:
        yield verdict.sentence + "\n"
        yield from (f"- **{s.measure}**: {s.text}" for s in verdict.statements)
        yield ""
    rows: list[list[str]] = []
    for name in _stages(run, stage):
        record = run.stages.get(name)
        if record is None:
            continue
        for figure in LOGGED.values():
            rows += _ends(f"{STAGES[name]}, training", figure, record.metric(figure.name))
        for kind in record.kinds:
            figure = BY_KIND["logp_mean"]
            rows += _ends(f"{STAGES[name]}, held out, {kind}", figure, record.probe("kinds", kind, figure.name))
        for figure in OVERALL.values():
            rows += _ends(f"{STAGES[name]}, held out", figure, record.probe(figure.name))
    yield from _table(["curve", "figure", "first", "last", "at update"], rows)


def _ends(where: str, figure: Figure, points: Sequence[tuple[float, float]]) -> list[list[str]]:
    if not points:
        return []
    ends = [text_of(figure.scaled(value), figure.decimals) for _, value in (points[0], points[-1])]
    return [[where, figure.title + (f" ({figure.unit})" if figure.unit else ""), *ends, f"{points[-1][0]:g}"]]


def _findings(run: RunRecord, stage: str) -> Iterator[str]:
    for name in _stages(run, stage):
        diagnosis = run.json(f"{name}/diagnosis.json")
        rows = [as_map(row) for row in as_list(diagnosis.get("findings"))]
        for row in rows:
            said = f"**{row.get('rule')}**. {row.get('sentence')} {row.get('remedy')}"
            yield f"- {STAGES[name]}, {row.get('severity')}: {said}"
        if diagnosis and not rows:
            yield f"- {STAGES[name]}: no rule found anything in {diagnosis.get('readings')} readings of the probes."


def _data(run: RunRecord, stage: str) -> Iterator[str]:
    data = as_map(run.recipe, "data")
    paths = [str(p) for p in (as_list(data.get("path")) or [data.get("path")])]
    for path in paths:
        yield f"- `{one_line(_without_folders(path), 200)}`; licence: {_licence(path) or 'not known; see its source'}"
    done = run.json("data/done.json")
    for part in (*_stages(run, stage), "held_out"):
        if (count := number(done, "counts", part)) is not None:
            yield f"- {STAGES.get(part, 'Held out')}: {whole(count)} prompts"
        if drawn := run.json(f"negatives/{part}/counts.json"):
            yield f"- Negatives of {STAGES[part]}: " + ", ".join(f"{whole(number(n))} {s}" for s, n in drawn.items())
    if set_aside := number(done, "bad_rows"):
        yield f"- Rows set aside: {whole(set_aside)}"


_SHOWN = ("learning_rate", "batch_size", "epochs", "max_steps", "beta", "floor", "tau")


def _training(run: RunRecord, stage: str) -> Iterator[str]:
    for name in _stages(run, stage):
        settings, done = as_map(run.recipe, name), run.json(f"{name}/done.json")
        shown = [f"{key} {settings[key]:g}" for key in _SHOWN if number(settings, key) is not None]
        updates = number(done, "updates")
        yield f"- {STAGES[name]}: {run.objective(name)}, {whole(updates)} updates; " + ", ".join(shown)
    model = as_map(run.recipe, "model")
    lora = as_map(model, "lora")
    how = f"adapters of rank {lora.get('r')}{', DoRA' if lora.get('dora') else ''}" if lora else "all weights"
    yield f"- Trained: {how}; base in {model.get('quantization') or model.get('dtype')}; seed {run.seed}"
    packages = {"Python": run.manifest.get("python"), **as_map(run.manifest, "packages")}
    yield "- Versions: " + ", ".join(f"{name} {version}" for name, version in packages.items())
    gpus = as_list(run.manifest.get("machine", {}).get("gpus"))
    yield f"- Computed on: {', '.join(map(str, gpus)) or 'CPU'}"


def _limits(run: RunRecord, stage: str) -> Iterator[str]:
    prompts = number(run.summary, "prompts")
    if prompts and stage == run.last_stage:
        yield f"- One seed, {whole(prompts)} held-out prompts of the training data's kind; nothing else was measured."
    else:
        yield "- Probes on held-out prompts of the training data's kind; nothing else was measured."
    yield "- Not tested for safety, bias, or languages and pictures unlike those of the data."


def _papers(run: RunRecord, stage: str) -> Iterator[str]:
    yield "- Learning Dynamics of VLM Finetuning: Cooling-Weighted DPO with Mixed Negatives"
    for name in _stages(run, stage):
        objective = as_map(run.recipe, name).get("objective")
        terms: list[Any] = [*objective] if isinstance(objective, list) else [objective]
        for term in terms:
            keys: Mapping[str, Any] = term if isinstance(term, dict) else {str(term): None}
            for method in (METHODS.installed(key) for key in keys if key != "weight"):
                if method is not None and method.paper:
                    yield f"- {method.title}: {method.paper}" + (f", arXiv:{method.arxiv}" if method.arxiv else "")
