"""75/25 by image."""

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.data import ImageRef, PromptGroup, Response, StageSplit, split_indices, split_stages, user_message
from cwdpo.errors import DataError


def group(name: str, *images: str | bytes) -> PromptGroup:
    refs = tuple(ImageRef(path=i) if isinstance(i, str) else ImageRef(data=i) for i in images)
    return PromptGroup(name, refs, (user_message(f"What {name}?", len(refs)),), (Response("x"),))


def ids(split: StageSplit[PromptGroup]) -> tuple[list[str], list[str], list[str]]:
    return [g.id for g in split.stage1], [g.id for g in split.stage2], [g.id for g in split.held_out]


HUNDRED = [group(f"g{i}", f"image {i}".encode()) for i in range(100)]


def test_counts_are_exact_where_no_image_repeats() -> None:
    # 100 rows, 20 held out, 80 left: 60 and 20.
    assert [len(part) for part in ids(split_stages(HUNDRED, held_out=20))] == [60, 20, 20]
    assert [len(part) for part in ids(split_stages(HUNDRED, held_out=0.2))] == [60, 20, 20]
    assert [len(part) for part in ids(split_stages(HUNDRED))] == [75, 25, 0]
    # 1 is one row and no share; half of the other 99 is 49.5: the lesser.
    assert [len(part) for part in ids(split_stages(HUNDRED, stage1_share=0.5, held_out=1))] == [49, 50, 1]


def test_the_same_seed_gives_the_same_split_in_any_order_and_another_seed_another() -> None:
    shuffled = HUNDRED.copy()
    random.Random(3).shuffle(shuffled)
    assert ids(split_stages(HUNDRED, held_out=10, seed=5)) == ids(split_stages(shuffled, held_out=10, seed=5))
    assert ids(split_stages(HUNDRED, held_out=10, seed=5)) != ids(split_stages(HUNDRED, held_out=10, seed=6))


def test_the_default_split_is_what_it_was() -> None:
    # A change here changes every run that is resumed: it belongs in the changelog.
    # SHA-256 of seed "0" and each image's SHA-256, each with its length before it, puts the images 1 2 6 7 4 5 0 3:
    # 2 held out, then round(0.75 * 6 = 4.5) = 4, then the rest.
    split = split_stages([group(f"g{i}", f"image {i}".encode()) for i in range(8)], held_out=2, seed=0)
    assert ids(split) == (["g6", "g7", "g4", "g5"], ["g0", "g3"], ["g1", "g2"])


def test_a_file_under_two_names_stays_in_one_part(pictures: Path) -> None:
    folder = pictures / "images"
    rows = []
    for seed in range(20):
        (folder / f"{seed}.bin").write_bytes(f"image {seed}".encode())
        shutil.copy(folder / f"{seed}.bin", folder / f"copy of {seed}.bin")
        rows += [group(f"{seed}a", str(folder / f"{seed}.bin")), group(f"{seed}b", str(folder / f"copy of {seed}.bin"))]
    split = split_stages(rows, held_out=8)
    parts = [{name[:-1] for name in part} for part in ids(split)]
    assert [len(part) for part in ids(split)] == [24, 8, 8]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_a_row_with_two_images_ties_the_rows_of_both() -> None:
    tied = [group("a", b"1"), group("b", b"1", b"2"), group("c", b"2")]
    for seed in range(10):
        parts = ids(split_stages([*tied, *HUNDRED[:9]], held_out=3, seed=seed))
        assert any({"a", "b", "c"} <= set(part) for part in parts)


def test_rows_without_images_go_by_their_prompt() -> None:
    rows = [group(name) for name in "abcdefgh"] + [group(name) for name in "abcdefgh"]
    split = split_indices(rows, held_out=4)
    for part in (split.stage1, split.stage2, split.held_out):
        assert {i + 8 for i in part if i < 8} == {i for i in part if i >= 8}
    assert len(split.held_out) == 4


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=12, max_size=30),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_parts_never_share_an_image(images: list[list[int]], seed: int, held_out: int) -> None:
    rows = [group(f"{i}", *(bytes([n]) for n in row)) for i, row in enumerate(images)]
    try:
        split = split_indices(rows, held_out=held_out, seed=seed)
    except DataError:
        return  # all rows tied together: one part would be empty, which is refused
    seen = [{n for i in part for n in images[i]} for part in (split.stage1, split.stage2, split.held_out)]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert sorted((*split.stage1, *split.stage2, *split.held_out)) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stage1_share": 1.5}, "data.stage1_share = 1.5"),
        ({"held_out": 100}, "data.held_out = 100: must be less than the 100 rows"),
        ({"held_out": 2.5}, "data.held_out = 2.5"),
        ({"held_out": -1}, "data.held_out = -1"),
    ],
)
def test_shares_that_cannot_be(options: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        split_stages(HUNDRED, **options)  # pyright: ignore[reportArgumentType]


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="10 rows with 1 different images leave nothing for stage2"):
        split_stages([group(f"{i}", b"same") for i in range(10)])


def test_one_stage_alone_is_allowed() -> None:
    assert [len(part) for part in ids(split_stages(HUNDRED, stage1_share=0))] == [0, 100, 0]
    assert [len(part) for part in ids(split_stages(HUNDRED, stage1_share=1))] == [100, 0, 0]


def test_an_image_that_is_gone_is_one_line() -> None:
    with pytest.raises(DataError, match=r"image /none/a\.png: cannot be read"):
        split_stages([group("a", "/none/a.png"), *HUNDRED])
