"""Public data sets, read with no configuration from rows in exactly their columns; the table in docs/data.md."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from published_rows import COLOURS, other, published, write

from cwdpo.cli.data import words
from cwdpo.data import CHOSEN, FORMATS, REJECTED, DataSource, PromptGroup, detect_format, load_groups, open_image
from cwdpo.errors import DataError, one_line

ROWS = published()
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
ALSO_TRL = ("mm_rlhf", "tr_vlm_dpo")
"""Their columns are TRL's."""


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(folder: Path, name: str, **options: Any) -> tuple[PromptGroup, ...]:
    path = write(folder, *ROWS[name])
    return load_groups(DataSource(path=path, require="pair", **options)).groups


def texts(group: PromptGroup, role: str) -> list[str]:
    return [response.text for response in group.by_role(role)]


def colours(group: PromptGroup) -> list[str]:
    pixels = [open_image(ref).getpixel((0, 0)) for ref in group.images]
    return [COLOURS[max(range(3), key=lambda c: pixel[c])] for pixel in pixels]  # type: ignore[index]


def prompt(group: PromptGroup) -> str:
    return "".join("<image>" if p["type"] == "image" else p["text"] for m in group.messages for p in m["content"])


@pytest.mark.parametrize("name", ROWS)
def test_published_rows(tmp_path: Path, name: str) -> None:
    """Row i is about the colour i: the chosen answer names it (or says that it is so), a rejected one does not."""
    path = write(tmp_path, *ROWS[name])
    found = detect_format(path)
    assert found == ("trl" if name in ALSO_TRL else name.partition(" ")[0])
    groups = load_groups(DataSource(path=path, require="pair")).groups
    about = [c for c in COLOURS for c in (c, other(c))] if name == "symmpo" else COLOURS
    assert [colours(group)[0] for group in groups] == list(about)
    for i, (group, colour) in enumerate(zip(groups, about, strict=True)):
        (chosen, *_), rejected = texts(group, CHOSEN), texts(group, REJECTED)
        assert prompt(group).count("<image>") == len(group.images) == (2 if (name, i) == ("mmpr", 0) else 1)
        if name == "nlvr":
            assert (chosen, rejected) == (("true", ["false"]) if i % 2 == 0 else ("false", ["true"]))
        else:
            assert colour in chosen and not any(colour in text for text in rejected) and rejected
    assert len({group.id for group in groups}) == len(groups)


def test_bytes_in_parquet_stay_there_whatever_their_column_is_called(tmp_path: Path) -> None:
    groups = read(tmp_path, "symmpo")
    names = [group.images[0].name.rpartition(" row ")[2] for group in groups]
    assert names == [f"{row} column 'image_{i}'" for row in (1, 2, 3) for i in (1, 2)]
    assert all(group.images[0].data is None for group in groups)


def test_rated_answers_by_hand(tmp_path: Path) -> None:
    """Means 2, 5, 5, 3. Best: 5 over 3, 2. Adjacent: 5 over 3 twice, 3 over 2. All: 5 over 3, 2 twice, 3 over 2."""
    one = write(tmp_path, *ROWS["vlfeedback"])

    def pairs(**options: Any) -> list[tuple[str, list[str]]]:
        groups = load_groups(DataSource(path=one, limit=1, **options)).groups
        return [(texts(g, CHOSEN)[0], texts(g, REJECTED)) for g in groups]

    high, tied, middle, low = "It is red.", "red!", "It is green.", "A colour."
    assert pairs() == [(high, [middle, low])]
    assert pairs(pairs="adjacent") == [(high, [middle]), (tied, [middle]), (middle, [low])]
    assert pairs(pairs="all") == [(high, [middle, low]), (tied, [middle, low]), (middle, [low])]
    assert pairs(pair_gap=2.5) == [(high, [low])]
    with pytest.raises(DataError, match="no pair: ratings 5, 5, 3, 2"):
        pairs(pair_gap=4)
    groups = load_groups(DataSource(path=one, limit=1, pairs="all")).groups
    assert [response.score for response in groups[0].responses] == [5.0, 3.0, 2.0]
    assert [group.id for group in groups] == ["v-0#1", "v-0#2", "v-0#3"]


def test_a_set_is_named_by_its_id_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache, which is what a download leaves."""
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    revision = "0" * 40
    for name, key in (("openbmb/RLAIF-V-Dataset", "rlaif_v"), ("me/mine", "align_anything")):
        repo = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(revision)
        file, rows = ROWS[key]
        write(repo / "snapshots" / revision, Path(file).name, rows)
        read = load_groups(DataSource(path=name))
        assert (read.format, [colours(g)[0] for g in read.groups]) == (key, list(COLOURS))
    with pytest.raises(DataError, match="you/yours: no such file or folder, and no data set"):
        load_groups(DataSource(path="you/yours"))
    (tmp_path / "rows").mkdir()
    with pytest.raises(DataError, match=r"rows/train: no such file or folder$"):  # a slip is not asked for on the hub
        load_groups(DataSource(path="rows/train"))


def test_mmpr_of_several_sets(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / "images" / name, f"../../annotations/{name}.jsonl", ROWS["mmpr"][1])
    sets = {n: {"root": f"images/{n}", "annotation": f"annotations/{n}.jsonl", "length": 3} for n in ("one", "two")}
    (tmp_path / "meta.json").write_text(json.dumps(sets))
    for path in (tmp_path, tmp_path / "meta.json"):
        assert detect_format(path) == "mmpr"
        groups = load_groups(DataSource(path=path)).groups
        assert [g.id for g in groups] == [f"{n}/{i}" for n in ("one", "two") for i in range(3)]
        assert [colours(g)[0] for g in groups] == [*COLOURS, *COLOURS]
    sets["two"]["annotation"] = "annotations/three.jsonl"
    (tmp_path / "meta.json").write_text(json.dumps(sets))
    with pytest.raises(DataError, match="'two': annotations/three"):
        load_groups(DataSource(path=tmp_path))


def test_columns_of_other_names(tmp_path: Path, jsonl: Any) -> None:
    write(tmp_path, *ROWS["mmpr"])
    path = jsonl(tmp_path / "x.jsonl", [{"q": "Which?", "pic": "red.png", "better": "red", "worse": "blue"}])
    with pytest.raises(DataError, match=r"set data.columns: \{prompt: …, images: pic, chosen: better, rej"):
        load_groups(DataSource(path=path))
    columns = {"prompt": "q", "images": "pic", "chosen": "better", "rejected": "worse"}
    data = load_groups(DataSource(path=path, columns=columns))
    (group,) = data.groups
    assert (data.format, prompt(group), colours(group)) == ("trl", "<image>Which?", ["red"])
    assert (texts(group, CHOSEN), texts(group, REJECTED)) == (["red"], ["blue"])
    with pytest.raises(DataError, match=r"x.jsonl row 1: missing column: 'bad' \(data.columns.rejected\)"):
        load_groups(DataSource(path=path, columns=columns | {"rejected": "bad"}, format="trl"))
    path = jsonl(tmp_path / "y.jsonl", [{"question_": "?", "image": "red.png", "chosen": "red", "rejected": "blue"}])
    with pytest.raises(DataError, match=r"'prompt' is not in the row.*which has question_, image.*set data.columns"):
        load_groups(DataSource(path=path))


def test_columns_that_fit_two_formats_are_refused(tmp_path: Path, jsonl: Any) -> None:
    row = {"messages": [], "sentence": "x", "identifier": "1", "label": "true", "directory": "1"}
    with pytest.raises(DataError, match=r"fit several formats \(nlvr by .*; swift by messages\); set data.format"):
        detect_format(jsonl(tmp_path / "x.jsonl", [row]))


def test_a_format_of_the_users_own(tmp_path: Path) -> None:
    """A function, and a class with an image in a column of another name."""
    path = write(tmp_path, *ROWS["rlaif_v"])
    (tmp_path / "mine.py").write_text(
        "from cwdpo.data import Format\n"
        "class Turned(Format):\n"
        "    @staticmethod\n"
        "    def read(row):\n"
        "        yield {'prompt': row['question'], 'image': row['image'], 'chosen': row['rejected']}\n"
        "        yield {'prompt': row['question'], 'chosen': row['nothing']}\n"
    )
    with pytest.raises(DataError, match="row 1: missing column: 'nothing' is not in the row"):
        load_groups(DataSource(path=path, format=f"{tmp_path / 'mine.py'}:Turned"))


def shape(value: Any) -> Any:
    """Return a value as the table shows it: bytes as such."""
    if isinstance(value, dict):
        return {key: shape(content) for key, content in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else "…" if isinstance(value, bytes) else value


def table(folder: Path) -> str:
    """Return the table of docs/data.md: of each data set, its columns and what its second row becomes."""
    lines = [
        "| `data.format` | columns as published | the second row: prompt, images, chosen, rejected |",
        "|---|---|---|",
    ]
    for name, (_, rows) in ROWS.items():
        group = read(folder / name.replace(" ", "_"), name)[2 if name == "symmpo" else 1]
        first = rows[0] if isinstance(rows, list) else {"image number": next(iter(rows.values()))}
        columns = ", ".join(
            f"{key} {{{', '.join(value)}}}" if isinstance(value, dict) and key != "image" else key
            for key, value in first.items()
        )
        answers = (f"“{'” “'.join(texts(group, role))}”" for role in (CHOSEN, REJECTED))
        shown = " · ".join((prompt(group).replace("\n", " ⏎ "), ", ".join(colours(group)), *answers))
        lines.append(f"| `{name}` | {one_line(columns, 200)} | {shown} |".replace("<image>", "🖼"))
    return "\n".join(lines) + "\n"


def test_the_table_of_the_docs(tmp_path: Path) -> None:
    """Every line of it is what the rows above are read as; printed where it differs, to be pasted."""
    made = table(tmp_path)
    assert made in DOCS.read_text(), f"docs/data.md does not hold this table:\n\n{made}"


def test_every_format_says_what_it_is() -> None:
    for name, kind in FORMATS.all().items():
        assert words(kind) and kind.columns, name
        assert len(kind.hub) == len(set(kind.hub))
    ids = [hub for kind in FORMATS.all().values() for hub in kind.hub]
    assert len(ids) == len(set(ids))


def test_settings_stand_in_the_recipe(tmp_path: Path) -> None:
    from cwdpo.recipe import Recipe
    from cwdpo.run.prepare_data import source_of

    text = "{name: x, data: {path: a, columns: {prompt: q}, pairs: all, pair_gap: 0.5, format: vlfeedback}}"
    source = source_of(Recipe.model_validate(yaml.safe_load(text)), "a")
    assert (source.columns, source.pairs, source.pair_gap) == ({"prompt": "q"}, "all", 0.5)
