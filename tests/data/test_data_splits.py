"""75/25 by image."""

import json
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.data import DataSource, ImageRef, PromptGroup, Response, user_message, write_groups
from cwdpo.data.read_source import read_source
from cwdpo.data.splits import PARTS
from cwdpo.errors import DataError


def group(name: str, *images: str | bytes) -> PromptGroup:
    refs = tuple(ImageRef(path=i) if isinstance(i, str) else ImageRef(data=i) for i in images)
    return PromptGroup(name, refs, (user_message(f"What {name}?", len(refs)),), (Response("x"),))


def split(groups: list[PromptGroup], **options: Any) -> tuple[list[str], ...]:
    """The ids of `stage1`, `stage2` and `held_out`, read and shared out as in a run."""
    with tempfile.TemporaryDirectory() as folder:
        write_groups(Path(folder) / "rows.jsonl", groups)
        source = DataSource(path=f"{folder}/rows.jsonl", check_images=False, workers=1)
        with read_source(source, contents=True) as rows:
            rows.store.share_out(**{"stage1_share": 0.75, "held_out": 0, "seed": 0, **options})
            return tuple([json.loads(line)["id"] for line in rows.store.lines(part, Path(folder))] for part in PARTS)


HUNDRED = [group(f"g{i}", f"image {i}".encode()) for i in range(100)]


def test_counts_are_exact_where_no_image_repeats() -> None:
    # 100 rows, 20 held out, 80 left: 60 and 20.
    assert [len(part) for part in split(HUNDRED, held_out=20)] == [60, 20, 20]
    assert [len(part) for part in split(HUNDRED, held_out=0.2)] == [60, 20, 20]
    assert [len(part) for part in split(HUNDRED)] == [75, 25, 0]
    # 1 is one row and no share; half of the other 99 is 49.5: the lesser.
    assert [len(part) for part in split(HUNDRED, stage1_share=0.5, held_out=1)] == [49, 50, 1]
    assert [len(part) for part in split(HUNDRED, stage1_share=0)] == [0, 100, 0]
    assert [len(part) for part in split(HUNDRED, stage1_share=1)] == [100, 0, 0]


def test_the_same_seed_gives_the_same_split_in_any_order_and_another_seed_another() -> None:
    shuffled = HUNDRED.copy()
    random.Random(3).shuffle(shuffled)
    assert split(HUNDRED, held_out=10, seed=5) == split(shuffled, held_out=10, seed=5)
    assert split(HUNDRED, held_out=10, seed=5) != split(HUNDRED, held_out=10, seed=6)


def test_the_default_split_is_what_it_was() -> None:
    # A change here changes every run that is resumed: it belongs in the changelog.
    # SHA-256 of seed "0" and each image's SHA-256, each with its length before it, puts the images 1 2 6 7 4 5 0 3:
    # 2 held out, then round(0.75 * 6 = 4.5) = 4, then the rest.
    found = split([group(f"g{i}", f"image {i}".encode()) for i in range(8)], held_out=2, seed=0)
    assert found == (["g6", "g7", "g4", "g5"], ["g0", "g3"], ["g1", "g2"])


def test_a_file_under_two_names_stays_in_one_part(pictures: Path) -> None:
    folder = pictures / "images"
    rows: list[PromptGroup] = []
    for seed in range(20):
        (folder / f"{seed}.bin").write_bytes(f"image {seed}".encode())
        shutil.copy(folder / f"{seed}.bin", folder / f"copy of {seed}.bin")
        rows += [group(f"{seed}a", str(folder / f"{seed}.bin")), group(f"{seed}b", str(folder / f"copy of {seed}.bin"))]
    found = split(rows, held_out=8)
    parts = [{name[:-1] for name in part} for part in found]
    assert [len(part) for part in found] == [24, 8, 8]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_a_row_with_two_images_ties_the_rows_of_both() -> None:
    tied = [group("a", b"1"), group("b", b"1", b"2"), group("c", b"2")]
    for seed in range(10):
        parts = split([*tied, *HUNDRED[:9]], held_out=3, seed=seed)
        assert any({"a", "b", "c"} <= set(part) for part in parts)


def test_rows_without_images_go_by_their_prompt() -> None:
    rows = [replace(group(name), id=f"{name}{i}") for i in range(2) for name in "abcdefgh"]
    found = split(rows, held_out=4)
    for part in found:
        assert {name[0] for name in part if name[1] == "0"} == {name[0] for name in part if name[1] == "1"}
    assert len(found[2]) == 4


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=12, max_size=30),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_parts_never_share_an_image(images: list[list[int]], seed: int, held_out: int) -> None:
    rows = [group(f"{i}", *(bytes([n]) for n in row)) for i, row in enumerate(images)]
    try:
        found = split(rows, held_out=held_out, seed=seed)
    except DataError:
        return  # all rows tied together: one part would be empty, which is refused
    seen = [{n for name in part for n in images[int(name)]} for part in found]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert sorted(int(name) for part in found for name in part) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"stage1_share": 1.5}, "data.stage1_share = 1.5"),
        ({"held_out": 100}, "data.held_out = 100"),
        ({"held_out": 2.5}, "data.held_out = 2.5"),
        ({"held_out": -1}, "data.held_out = -1"),
    ],
)
def test_shares_that_cannot_be(options: dict[str, float], key: str) -> None:
    with pytest.raises(DataError, match=key):
        split(HUNDRED, **options)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="10 rows with 1 different images leave nothing for stage2"):
        split([group(f"{i}", b"same") for i in range(10)])
