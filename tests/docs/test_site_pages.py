"""Pages that are made from the code say all that the code has; pages that are written agree with it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_page import command_page, commands
from made_up_runs import made_up_run
from method_pages import findings_page, methods_page, rule_texts
from recipe_page import keys, recipe_page

from cwdpo.data import load_groups
from cwdpo.data.detect_format import detect_format
from cwdpo.data.read_source import DataSource
from cwdpo.methods import METHODS
from cwdpo.recipe import Recipe
from cwdpo.report import write_report
from tiny_models import tiny_image

DOCS = Path(__file__).parents[2] / "docs"


def leaves(values: dict, prefix: str = "") -> set[str]:
    """Dotted keys of a dumped recipe, sections and fields."""
    below = [leaves(v, f"{prefix}{k}.") for k, v in values.items() if isinstance(v, dict)]
    return {f"{prefix}{k}" for k in values}.union(*below)


def test_every_field_of_a_recipe_has_a_row():
    """Also those that are off by default: `model.lora`, `probes.influence`, the points of a schedule."""
    page = recipe_page()
    wanted = leaves(Recipe().model_dump()) | {"model.lora.r", "probes.influence.eta", "probes.early_stop.signal"}
    wanted |= {"negatives.stage2.refresh.every", "negatives.stage1.schedule.at"}
    assert set(keys()) >= wanted
    places = re.findall(r"^\| `\w+`\{ #([\w-]+) \} \| .+ \| .+ \| .+ \|$", page, flags=re.MULTILINE)
    places += re.findall(r"^## [\w.]+ \{ #([\w-]+) \}$", page, flags=re.MULTILINE)
    assert sorted(places) == sorted(key.replace(".", "-") for key in keys())


def test_every_command_has_its_options():
    page = command_page()
    assert {"demo", "init", "check", "train", "report", "winrate", "paper claims"} <= commands().keys()
    assert all(f"\n## {name}\n" in page for name in commands())
    assert "| `--seed` | `0` | Seed of data, order and training. |" in page
    assert "| `--set` `-s` |  | Override a key of the recipe, e.g. stage2.beta=0.2. |" in page
    assert "[bold]" not in page


def test_every_method_and_finding():
    page = methods_page()
    assert all(f"| `{name}` | " in page for name in METHODS.names())
    named = set(
        re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", (DOCS / "dynamics.md").read_text().split("## Diagnosis")[1], re.M)
    )
    rules = {name for pair in named for name in pair if name}
    assert {text.rule for text in rule_texts()} == rules
    assert all(text.remedy.strip("… ") and text.sentence.strip("… ") for text in rule_texts())
    assert {s for text in rule_texts() for s in text.severity.split(" | ")} == {"serious", "warning", "note"}
    assert "‹raise stage2.floor | stage2.objective=cw_dpo›" in findings_page()


def test_every_figure_of_the_report_is_explained(tmp_path: Path):
    page = write_report([made_up_run(tmp_path / o, o, prompts=6) for o in ("dpo", "cw_dpo")], tmp_path / "r.html")
    drawn = re.findall(r"<figcaption>\s*<h3>(.*?)</h3>", page.read_text(encoding="utf-8"))
    explained = re.findall(r"^\| ([A-Z][^|]+) \|", (DOCS / "report.md").read_text(), flags=re.MULTILINE)
    assert set(drawn) == set(explained)


FENCE = re.compile(r"```\w+ title=\"([^\"]+)\"\n(.*?)```", re.DOTALL)
SHOWN = dict(FENCE.findall((DOCS / "data.md").read_text(encoding="utf-8")))
FORMATS = {
    "photos/captions.csv": "captions",
    "dataset_flickr8k.json": "karpathy",
    "captions_val2014.json": "coco",
    "rows.jsonl": "cwdpo",
    "tagged.jsonl": "cwdpo",
    "rated.jsonl": "cwdpo",
    "trl.jsonl": "trl",
    "factory.json": "llamafactory",
    "swift.jsonl": "swift",
}


def test_every_format_is_shown():
    assert SHOWN.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "found"), FORMATS.items())
def test_the_rows_of_the_page_are_read(name: str, found: str, tmp_path: Path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(SHOWN[name], encoding="utf-8")
    for picture in ("beach.jpg", "kitchen.jpg", "street.jpg"):
        tiny_image(file.parent / picture, 28, 28)
    assert detect_format(file) == found
    groups = list(load_groups(DataSource(path=file)).groups)
    assert len(groups) == (3 if found == "captions" else 1)
    assert "dog" in groups[0].chosen.text.lower()
    assert bool(groups[0].by_role("rejected")) == (found not in ("captions", "karpathy", "coco"))


def test_keys_and_commands_in_the_guides_exist():
    """Every `--set key=value` names a field, every `cwdpo …` line a command, every `section.field` in code a field."""
    known, first = set(keys()), {key.split(".")[0] for key in keys() if "." in key}
    for page in ("start", "data", "choosing-negatives", "report", "from-others"):
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        named = re.findall(r"--set\s+([\w.]+)=", text)
        spelled = re.findall(rf"`((?:{'|'.join(first)})\.[\w.]+)[:`]", text)
        assert not {key for key in [*named, *spelled] if key not in known}, page
        fences = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        lines = [shlex.split(line) for line in re.findall(r"^cwdpo .*$", fences, flags=re.MULTILINE)]
        assert not {line[1] for line in lines if line[1] not in commands()}, page


def test_what_comes_from_another_host_is_seen():
    """Scripts, styles, fonts and pictures are; a link that a reader may follow is not."""
    pytest.importorskip("mkdocs")
    from hook import foreign_loads

    assert not foreign_loads('<a href="https://example.org">x</a><script src="assets/a.js"></script><img src="a.svg">')
    for tag in ('<script src="https://x.org/a.js">', "<img alt=a src=//x.org/a.png>"):
        assert foreign_loads(tag) == [tag]
    for kind in ("stylesheet", "preconnect"):
        assert foreign_loads(f'<link rel="{kind}" href="https://x.org/a.css">')
