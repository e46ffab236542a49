"""Each format from files as its tool documents them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from cwdpo.data import CHOSEN, REJECTED, DataSource, PromptGroup, detect_format, load_groups, open_image
from cwdpo.errors import DataError

QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}


def load(path: Any, **options: Any) -> tuple[PromptGroup, ...]:
    return load_groups(DataSource(path=path, **options)).groups


def texts(group: PromptGroup) -> tuple[list[str], list[str]]:
    return [r.text for r in group.by_role(CHOSEN)], [r.text for r in group.by_role(REJECTED)]


def colour(group: PromptGroup, index: int = 0) -> str:
    pixel = open_image(group.images[index]).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return ("red", "green", "blue")[max(range(3), key=lambda channel: pixel[channel])]


def test_ours(pictures: Path, jsonl) -> None:
    path = jsonl(
        pictures / "train.jsonl",
        [
            {
                "id": "a",
                "images": ["images/red.png"],
                "prompt": "What is it?",
                "chosen": "red",
                "negatives": [{"text": "green", "source": "beam", "difficulty": "hard"}],
                "references": ["red", "it is red"],
                "facts": {"colour": "red"},
            },
            "",
            {"image": "images/green.png", "prompt": "Look: <image> What?", "chosen": "g", "rejected": ["r", "b"]},
            {
                "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
                "chosen": "4",
            },
        ],
    )
    assert detect_format(path) == "cwdpo"
    a, b, c = load(path)
    assert a.id == "a"
    assert a.messages == (QUESTION,)
    assert [(r.text, r.role, r.source, r.difficulty) for r in a.responses] == [
        ("red", "chosen", "dataset", None),
        ("green", "rejected", "beam", "hard"),
    ]
    assert (a.references, a.facts, a.origin) == (("red", "it is red"), {"colour": "red"}, "train.jsonl:1")
    assert b.id == "train-3"  # the line as an editor counts: line 2 is blank
    assert b.messages[0]["content"] == [
        {"type": "text", "text": "Look: "},
        {"type": "image"},
        {"type": "text", "text": " What?"},
    ]
    assert texts(b) == (["g"], ["r", "b"])
    assert (colour(a), colour(b)) == ("red", "green")
    assert c.images == ()
    assert [m["role"] for m in c.messages] == ["system", "user"]


TRL_ROWS = {
    "plain text": {"images": ["images/red.png"], "prompt": "What is it?", "chosen": "red", "rejected": "blue"},
    "one image": {"image": "images/red.png", "prompt": "What is it?", "chosen": "red", "rejected": "blue"},
    "conversation": {
        "images": ["images/red.png"],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    },
    "typed parts": {
        "images": ["images/red.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "red"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "blue"}]}],
    },
    "implicit prompt": {
        "images": ["images/red.png"],
        "chosen": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "red"}],
        "rejected": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "blue"}],
    },
    "prompt twice": {
        "images": ["images/red.png"],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "red"}],
        "rejected": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "blue"}],
    },
    "image in the message": {
        "prompt": [
            {
                "role": "user",
                "content": [{"type": "image", "image": "images/red.png"}, {"type": "text", "text": "What is it?"}],
            }
        ],
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    },
}


@pytest.mark.parametrize("spelling", TRL_ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_trl(pictures: Path, spelling: str, suffix: str) -> None:
    row = TRL_ROWS[spelling]
    path = pictures / f"train.{suffix}"
    path.write_text(json.dumps(row) if suffix == "jsonl" else json.dumps([row], indent=1))
    assert detect_format(path) == "trl"
    (group,) = load(path, require="pair")
    assert group.messages == (QUESTION,)
    assert texts(group) == (["red"], ["blue"])
    assert colour(group) == "red"


def test_trl_keeps_earlier_turns(pictures: Path, jsonl) -> None:
    start = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "What is it?"},
    ]
    sides = {k: [*start, {"role": "assistant", "content": k}] for k in ("chosen", "rejected")}
    (group,) = load(jsonl(pictures / "t.jsonl", [{"images": ["images/red.png"], **sides}]))
    assert [m["role"] for m in group.messages] == ["system", "user", "assistant", "user"]
    assert group.messages[1]["content"] == [{"type": "image"}, {"type": "text", "text": "Hello"}]
    assert texts(group) == (["chosen"], ["rejected"])


def trl_table(pictures: Path) -> datasets.Dataset:
    """What `datasets` makes of TRL rows: every part of a content gets every key, images become `{bytes, path}`."""
    files = [pictures / "images" / name for name in ("red.png", "green.png")]
    rows = [dict(TRL_ROWS["typed parts"], images=[{"bytes": f.read_bytes(), "path": f.name}]) for f in files]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("quiet")
def test_trl_parquet_keeps_image_bytes_on_disk(pictures: Path) -> None:
    trl_table(pictures).to_parquet(pictures / "train.parquet")
    for name in ("red.png", "green.png"):
        (pictures / "images" / name).unlink()
    assert detect_format(pictures / "train.parquet") == "trl"
    red, green = load(pictures / "train.parquet")
    assert red.messages == (QUESTION,)
    assert (colour(red), colour(green)) == ("red", "green")
    assert red.images[0].data is None
    assert red.images[0].name == "train.parquet row 1 column 'images'"
    assert red.images[0].digest() != green.images[0].digest()


@pytest.mark.usefixtures("quiet")
def test_trl_saved_to_disk(pictures: Path) -> None:
    table = trl_table(pictures)
    table.save_to_disk(pictures / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(pictures / "two")
    assert detect_format(pictures / "one") == "trl"
    assert [colour(g) for g in load(pictures / "one")] == ["red", "green"]
    assert [colour(g) for g in load(pictures / "two")] == ["red", "green"]
    assert [colour(g) for g in load(pictures / "two", split="test")] == ["green"]
    with pytest.raises(DataError, match="no split 'val'; set split to one of train, test"):
        load(pictures / "two", split="val")


@pytest.mark.usefixtures("quiet")
def test_parquet_shards_of_the_hub(pictures: Path) -> None:
    folder = pictures / "hub" / "data"
    table = trl_table(pictures)
    for i in range(2):
        table.select([i]).to_parquet(folder / f"train-0000{i}-of-00002.parquet")
    table.select([0]).to_parquet(folder / "test-00000-of-00001.parquet")
    assert [colour(g) for g in load(pictures / "hub")] == ["red", "green"]
    assert len(load(pictures / "hub", split="test")) == 1


@pytest.mark.usefixtures("quiet")
def test_our_parquet_with_one_image_a_row(pictures: Path) -> None:
    row = {"image": str(pictures / "images/blue.jpg"), "prompt": "What?", "chosen": "blue", "facts": '{"n": 1}'}
    row["negatives"] = [{"text": "red", "source": "mix", "difficulty": None}]
    table = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
    table.to_parquet(pictures / "p.parquet")
    assert detect_format(pictures / "p.parquet") == "cwdpo"
    (group,) = load(pictures / "p.parquet")
    assert (colour(group), group.facts, texts(group)) == ("blue", {"n": 1}, (["blue"], ["red"]))


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi"},
        {"from": "human", "value": "<image>What is it?"},
    ],
    "chosen": {"from": "gpt", "value": "red"},
    "rejected": {"from": "gpt", "value": "blue"},
    "images": ["images/red.png"],
}


def dataset_info(folder: Path, **entries: Any) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def test_llamafactory_sharegpt(pictures: Path) -> None:
    (pictures / "rlhf.json").write_text(json.dumps([SHAREGPT]))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "rlhf.json", "ranking": True, "formatting": "sharegpt", "columns": columns}
    dataset_info(pictures, mine=entry, sft={"file_name": "sft.json"})
    info = pictures / "dataset_info.json"
    for path in (f"{info}:mine", info, pictures, f"{pictures}:mine", pictures / "rlhf.json"):
        assert detect_format(path) == "llamafactory"
        (group,) = load(path)
        assert [m["role"] for m in group.messages] == ["user", "assistant", "user"]
        assert group.messages[0]["content"] == [{"type": "text", "text": "Hello"}]
        assert group.messages[2] == QUESTION
        assert texts(group) == (["red"], ["blue"])
        assert colour(group) == "red"


def test_llamafactory_with_names_of_its_own(pictures: Path) -> None:
    row = {
        "talk": [
            {"who": "sys", "says": "Be brief."},
            {"who": "me", "says": "<image>What is it?"},
        ],
        "good": {"who": "you", "says": "red"},
        "bad": {"who": "you", "says": "blue"},
        "pics": ["red.png"],
    }
    (pictures / "d.jsonl").write_text(json.dumps(row))
    columns = {"messages": "talk", "chosen": "good", "rejected": "bad", "images": "pics"}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "you", "system_tag": "sys"}
    dataset_info(
        pictures,
        x={"file_name": "d.jsonl", "ranking": True, "formatting": "sharegpt"} | {"columns": columns, "tags": tags},
    )
    (group,) = load(pictures, image_root=pictures / "images")
    assert [m["role"] for m in group.messages] == ["system", "user"]
    assert group.messages[1] == QUESTION
    assert texts(group) == (["red"], ["blue"])


def test_llamafactory_alpaca(pictures: Path) -> None:
    row = {
        "instruction": "<image>What is it?",
        "input": "One word.",
        "chosen": "red",
        "rejected": "blue",
        "system": "Be brief.",
        "history": [["Hello", "Hi"]],
        "images": ["images/red.png"],
    }
    (pictures / "a.json").write_text(json.dumps([row]))
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    dataset_info(pictures, a={"file_name": "a.json", "ranking": True, "columns": columns | {"images": "images"}})
    (group,) = load(pictures)
    assert [m["role"] for m in group.messages] == ["system", "user", "assistant", "user"]
    assert group.messages[3]["content"] == [{"type": "image"}, {"type": "text", "text": "What is it?\nOne word."}]
    assert texts(group) == (["red"], ["blue"])


def test_llamafactory_file_without_a_dataset_info(pictures: Path, jsonl) -> None:
    assert texts(load(jsonl(pictures / "s.jsonl", [SHAREGPT]))[0]) == (["red"], ["blue"])
    openai = {
        "messages": [{"role": "user", "content": "<image>What is it?"}],
        "chosen": {"role": "assistant", "content": "red"},
        "rejected": {"role": "assistant", "content": "blue"},
        "images": ["images/red.png"],
    }
    path = jsonl(pictures / "o.jsonl", [openai])
    assert detect_format(path) == "llamafactory"
    assert load(path)[0].messages == (QUESTION,)


def test_llamafactory_rows_for_supervised_training_have_a_chosen_answer_only(pictures: Path, jsonl) -> None:
    rows = [
        {"instruction": "Say", "input": "", "output": "yes"},
        {"conversations": [{"from": "human", "value": "Say"}, {"from": "gpt", "value": "yes"}]},
    ]
    path = jsonl(pictures / "sft.jsonl", rows)
    assert [texts(g) for g in load(path)] == [(["yes"], [])] * 2


@pytest.mark.parametrize(
    ("entries", "name", "words"),
    [
        ({"a": {"file_name": "a.json"}}, ":b", "no dataset 'b'; it has a"),
        ({"a": {"file_name": "a.json"}, "b": {"file_name": "b.json"}}, "", "has several datasets"),
        ({"a": {"hf_hub_url": "x/y"}}, "", "has no file_name"),
        ({"a": {"file_name": "a.json", "formatting": "vicuna"}}, "", "must be alpaca or sharegpt"),
        ({"a": {"file_name": "a.json", "columns": {"prompt": 3}}}, "", "columns.prompt must be text"),
        ({"a": {"file_name": "none.json"}}, "", "none.json: no such file"),
    ],
)
def test_llamafactory_entry_that_cannot_be_used(pictures: Path, entries: Any, name: str, words: str) -> None:
    (pictures / "a.json").write_text("[]")
    dataset_info(pictures, **entries)
    with pytest.raises(DataError, match=words):
        load(f"{pictures / 'dataset_info.json'}{name}")


SWIFT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "red"},
    ],
    "images": ["images/red.png"],
}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"rejected_response": "blue"}, ["blue"]),
        ({"rejected_response": ["blue", "green"]}, ["blue", "green"]),
        ({"rejected_response": "blue", "rejected_images": ["images/red.png"]}, ["blue"]),
        ({"rejected_response": "blue", "label": True, "videos": []}, ["blue"]),
        ({"rejected_response": [{"role": "assistant", "content": "blue"}]}, ["blue"]),
        (
            {
                "rejected_messages": [*SWIFT["messages"][:-1], {"role": "assistant", "content": "blue"}],
                "rejected_images": ["images/red.png"],
            },
            ["blue"],
        ),
        ({}, []),
    ],
)
def test_swift(pictures: Path, jsonl, other: dict[str, Any], expected: list[str]) -> None:
    path = jsonl(pictures / "s.jsonl", [SWIFT | other])
    assert detect_format(path) == "swift"
    (group,) = load(path)
    assert [m["role"] for m in group.messages] == ["system", "user"]
    assert group.messages[1] == QUESTION
    assert texts(group) == (["red"], expected)
    assert colour(group) == "red"


@pytest.fixture
def karpathy(pictures: Path) -> Path:
    """The shape of `dataset_coco.json`; each image has two captions."""
    places = [("a", "red.png", "train"), ("b", "green.png", "restval"), ("c", "blue.jpg", "test")]
    images = []
    for number, (caption, filename, split) in enumerate(places):
        sentences = [{"raw": f"{caption} {i} .", "tokens": [caption, str(i)], "imgid": number} for i in (1, 2)]
        images.append(
            {"filepath": "images", "filename": filename, "split": split, "imgid": number, "sentences": sentences}
        )
    path = pictures / "dataset.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_karpathy(karpathy: Path) -> None:
    assert detect_format(karpathy) == "karpathy"
    red, green = load(karpathy)  # train, which restval joins
    assert (red.id, texts(red), red.references) == ("red.png", (["a 1 ."], []), ("a 1 .", "a 2 ."))
    assert red.messages[0]["content"][1]["text"] == "Describe the image in one sentence."
    assert (colour(red), colour(green)) == ("red", "green")
    assert [g.id for g in load(karpathy, split="test")] == ["blue.jpg"]
    assert len(load(karpathy, split="all")) == 3
    assert [(g.id, g.chosen.text) for g in load(karpathy, split="test", captions="each")] == [
        ("blue.jpg#1", "c 1 ."),
        ("blue.jpg#2", "c 2 ."),
    ]
    with pytest.raises(DataError, match="no image of split 'dev'; it has restval, test, train"):
        load(karpathy, split="dev")


def test_karpathy_without_filepath_finds_the_images_folder(karpathy: Path) -> None:
    document = json.loads(karpathy.read_text())
    for image in document["images"]:
        del image["filepath"]
    karpathy.write_text(json.dumps(document))
    assert colour(load(karpathy)[0]) == "red"
    assert colour(load(karpathy, image_root=karpathy.parent / "images")[0]) == "red"


@pytest.fixture
def nocaps(pictures: Path) -> Path:
    """The shape of NoCaps' validation file: captions beside the images, in any order, and domains."""
    images = [
        {"id": 7, "file_name": "red.png", "domain": "in-domain"},
        {"id": 8, "file_name": "green.png", "domain": "out-domain"},
        {"id": 9, "file_name": "blue.jpg", "domain": "near-domain"},
    ]
    notes = [{"id": i, "image_id": image, "caption": f"c {i}"} for i, image in enumerate((8, 7, 8))]
    path = pictures / "nocaps_val.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "info": {}, "licenses": []}))
    return path


def test_coco_and_nocaps(nocaps: Path) -> None:
    assert detect_format(nocaps) == "coco"
    red, green = load(nocaps)  # blue has no captions
    assert (red.id, red.references, red.facts) == ("7", ("c 1",), {"domain": "in-domain"})
    assert (green.id, texts(green), green.references) == ("8", (["c 0"], []), ("c 0", "c 2"))
    assert (colour(red), colour(green)) == ("red", "green")
    assert len(load(nocaps, captions="each")) == 3
    document = json.loads(nocaps.read_text())
    for image in document["images"]:
        del image["domain"]
    nocaps.write_text(json.dumps(document))
    assert load(nocaps)[0].facts == {}
    nocaps.write_text(json.dumps({**document, "annotations": [{"image_id": 7}]}))
    with pytest.raises(DataError, match="annotation 1 has no image_id or no caption"):
        load(nocaps)
    nocaps.write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(DataError, match="no image has an annotation"):
        load(nocaps)


def test_images_that_nobody_looks_at_may_be_missing(karpathy: Path) -> None:
    for file in (karpathy.parent / "images").iterdir():
        file.unlink()
    assert len(load(karpathy, need_images=False)) == 2
    with pytest.raises(DataError, match="no such file"):
        load(karpathy)


def test_random_captions_depend_on_seed_and_image_not_on_order(karpathy: Path) -> None:
    def picks(seed: int) -> dict[str, str]:
        return {g.id: g.chosen.text for g in load(karpathy, split="all", captions="random", seed=seed)}

    seen = [picks(seed) for seed in range(12)]
    assert {one["red.png"] for one in seen} == {"a 1 .", "a 2 ."}
    document = json.loads(karpathy.read_text())
    document["images"].reverse()
    karpathy.write_text(json.dumps(document))
    assert [picks(seed) for seed in range(12)] == seen


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\nred.png,one\nred.png,"two, with a comma"\ngreen.png,three\n',
        'file_name,text\nred.png,one\nred.png,"two, with a comma"\ngreen.png,three\n',
        "image_name| comment_number| comment\nred.png| 0| one\nred.png| 1| two, with a comma\ngreen.png| 0| three\n",
        "\ufeffimage\tcaption\nred.png\tone\nred.png\ttwo, with a comma\ngreen.png\tthree\n",
    ],
)
def test_captions(pictures: Path, text: str) -> None:
    (pictures / "captions.csv").write_text(text, encoding="utf-8")
    for path in (pictures, pictures / "captions.csv"):
        assert detect_format(path) == "captions"
        red, green = load(path, prompt="What do you see?")
        assert (red.id, red.references, red.origin) == ("red.png", ("one", "two, with a comma"), "captions.csv:2")
        assert red.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What do you see?"}]
        assert (green.chosen.text, colour(green)) == ("three", "green")


def test_images_beside_the_captions(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (0, 255, 0)).save(tmp_path / "x.png")
    (tmp_path / "captions.csv").write_text("image,caption\nx.png,green\n")
    assert colour(load(tmp_path)[0]) == "green"


def test_json_lines_named_json(pictures: Path, jsonl) -> None:
    rows = [TRL_ROWS["plain text"], dict(TRL_ROWS["plain text"], chosen="crimson")]
    assert [g.chosen.text for g in load(jsonl(pictures / "t.json", rows))] == ["red", "crimson"]


def test_a_folder_with_one_data_file(pictures: Path, jsonl) -> None:
    jsonl(pictures / "train.jsonl", [TRL_ROWS["plain text"]])
    assert detect_format(pictures) == "trl"
    assert len(load(pictures)) == 1


def test_a_reader_from_the_users_own_file(pictures: Path, jsonl) -> None:
    file = pictures / "my_rows.py"
    file.write_text(
        "def read(row):\n"
        "    return {'prompt': row['q'], 'image': row['pic'], 'chosen': row['a'][0], 'rejected': row['a'][1:]}\n"
        "class Reader:\n    pass\n"
    )
    rows = [
        {"q": "What?", "pic": "images/red.png", "a": ["red", "blue", "green"]},
        {"q": "What?", "pic": "x", "a": []},
        {"a": 1},
    ]
    path = jsonl(pictures / "t.jsonl", rows)
    options: dict[str, Any] = {"on_bad_row": "skip", "max_bad_share": 0.7}
    data = load_groups(DataSource(path=path, format=f"{file}:read", **options))
    assert texts(data.groups[0]) == (["red"], ["blue", "green"])
    assert colour(data.groups[0]) == "red"
    assert [(bad.row, bad.kind) for bad in data.bad_rows] == [(2, "refused by the reader"), (3, "missing column")]
    for name in ("none", "Reader"):
        with pytest.raises(DataError, match=name):
            load(path, format=f"{file}:{name}")
