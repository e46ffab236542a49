"""Rows of a dataset in memory, converted one at a time."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from cwdpo.data import GroupDataset, ImageRef, PromptGroup, Response, groups_from_dataset, open_image, user_message
from cwdpo.errors import DataError

TURN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


def trl_dataset(pictures: Path, **extra: Any) -> datasets.Dataset:
    files = [str(pictures / "images" / name) for name in ("red.png", "green.png")]
    rows = [{"images": [file], "prompt": "What?", "chosen": "yes", "rejected": "no", **extra} for file in files]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def test_rows_are_converted_when_asked_and_not_decoded(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = trl_dataset(pictures)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_: pytest.fail("an image was decoded"))
    groups = groups_from_dataset(dataset)
    assert len(groups) == 2
    assert groups[1].messages == (TURN,)
    assert [(r.text, r.role) for r in groups[-1].responses] == [("yes", "chosen"), ("no", "rejected")]
    assert open_image(groups[0].images[0]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(IndexError):
        groups[2]


def test_order_and_selection_of_the_dataset_are_kept(pictures: Path) -> None:
    groups = groups_from_dataset(trl_dataset(pictures).select([1]))
    assert open_image(groups[0].images[0]).getpixel((0, 0)) == (0, 255, 0)


def test_a_transform_of_the_users_is_applied(pictures: Path) -> None:
    dataset = trl_dataset(pictures).with_transform(lambda rows: rows | {"chosen": ["changed"] * len(rows["chosen"])})
    assert groups_from_dataset(dataset)[0].chosen.text == "changed"


def test_pictures_in_memory() -> None:
    rows = [{"images": [Image.new("RGB", (2, 2), (1, 2, 3))], "prompt": "What?", "chosen": "a", "rejected": "b"}]
    groups = groups_from_dataset(rows)
    assert open_image(groups[0].images[0]).getpixel((0, 0)) == (1, 2, 3)


def test_a_list_of_groups_and_a_dataset_of_them() -> None:
    group = PromptGroup("a", (ImageRef(path="x.png"),), (user_message("What?"),), (Response("y"),))
    groups = groups_from_dataset([group])
    assert groups[0] is group
    assert groups_from_dataset(groups) is groups


def test_workers_can_hold_it(pictures: Path) -> None:
    groups = groups_from_dataset(trl_dataset(pictures))
    again = pickle.loads(pickle.dumps(groups))
    assert again[0].messages == groups[0].messages
    loader = DataLoader(groups, batch_size=2, collate_fn=list, num_workers=1)
    assert [group.id for batch in loader for group in batch] == ["row-1", "row-2"]


def test_a_bad_row_says_which(pictures: Path) -> None:
    groups = groups_from_dataset(trl_dataset(pictures, rejected="yes"))
    with pytest.raises(DataError, match="dataset row 2: chosen equals rejected"):
        groups[1]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], "the dataset has no rows"),
        ("train.jsonl", "must have a length and rows by index, not str"),
        ({"train": []}, "not dict; pass one of its splits"),
        (iter([]), "must have a length"),
        ([{"q": 1}], "from the columns q"),
        ([3], "must be an object or a PromptGroup, not int"),
    ],
)
def test_what_is_no_dataset(dataset: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        groups_from_dataset(dataset)


def test_an_empty_group_dataset() -> None:
    assert len(GroupDataset([])) == 0
