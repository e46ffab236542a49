"""Several sources as one."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from published_rows import COLOURS, published, write

from cwdpo.data import DataSource, load_groups, open_image
from cwdpo.data.read_source import read_source
from cwdpo.data.source_parts import Share
from cwdpo.errors import RecipeError
from cwdpo.recipe.load_recipe import load_recipe
from cwdpo.run.prepare_data import source_of

ROWS = published()


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def mixture(tmp_path: Path, *shares: tuple[str, dict[str, Any]]) -> DataSource:
    parts = [Share(path=str(write(tmp_path / str(i), *ROWS[name])), **more) for i, (name, more) in enumerate(shares)]
    return DataSource(path="a + b", sources=tuple(parts))


def test_two_tables_keep_their_images_apart(tmp_path: Path) -> None:
    """RLAIF-V's and RLHF-V's rows are of two tables with a column `image` each; the second is read backwards."""
    source = mixture(tmp_path, ("rlaif_v", {}), ("rlhf_v", {}))
    data = load_groups(source)
    assert data.format == "rlaif_v, rlhf_v"
    assert [g.id.partition("/")[0] for g in data.groups] == ["1"] * 3 + ["2"] * 3
    assert len({g.images[0].name for g in data.groups}) == 6
    for group, colour in zip(data.groups, COLOURS * 2, strict=True):
        pixel: Any = open_image(group.images[0]).getpixel((0, 0))
        assert COLOURS[max(range(3), key=lambda c: pixel[c])] == colour and colour in group.chosen.text


def test_weights_and_rows(tmp_path: Path) -> None:
    """Twice three rows and two of three; a third of a hundred rows is near a third, and the same again."""
    groups = load_groups(mixture(tmp_path, ("mmpr", {"weight": 2}), ("povid", {"rows": 2}))).groups
    assert [g.id for g in groups][:6] == ["1/0", "1/0~2", "1/1", "1/1~2", "1/2", "1/2~2"]
    assert [g.id[:4] for g in groups][6:] == ["2/p-"] * 2
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"prompt": "q{i}", "chosen": "a"}}\n' for i in range(300)))
    drawn = [load_groups(DataSource(path="x", sources=(Share(path=str(path), weight=1 / 3),))).groups for _ in range(2)]
    assert drawn[0] == drawn[1] and 70 < len(drawn[0]) < 130


def test_one_split_over_all(tmp_path: Path) -> None:
    """The same three pictures in both sources: whatever part one goes to, both of its rows do."""
    with read_source(mixture(tmp_path, ("mmpr", {}), ("povid", {"weight": 2})), contents=True) as rows:
        rows.store.share_out(stage1_share=0.5, held_out=0, seed=1)
        counts = [rows.store.roles(part) for part in ("stage1", "stage2")]
    assert sum((Counter(c) for c in counts), Counter())["prompts"] == 9
    assert all(c["prompts"] % 3 == 0 and c["prompts"] for c in counts)


def test_in_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(overrides=["data.sources=[{path: a.jsonl, weight: 2}, {path: b.jsonl, rows: 5}]"])
    source = source_of(recipe, recipe.data.path)
    assert source.sources == (Share(path="a.jsonl", weight=2.0), Share(path="b.jsonl", rows=5))
    assert recipe.files() == ["a.jsonl", "b.jsonl"]
    assert type(recipe).model_validate(recipe.model_dump()) == recipe
    for wrong in ("[{path: a, weight: 2, rows: 5}]", "[{path: a, weight: 0}]", "[{weight: 1}]"):
        with pytest.raises(RecipeError, match=r"sources|not both"):
            load_recipe(overrides=[f"data.sources={wrong}"])
    with pytest.raises(RecipeError, match="one of the two"):
        load_recipe(overrides=["data.sources=[{path: a}]", "data.path=b"])
