"""What we write reads back equal."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cwdpo.data import DIFFICULTIES, DataSource, ImageRef, PromptGroup, Response, load_groups, open_image, write_groups
from cwdpo.errors import DataError

said = st.text(min_size=1, max_size=40).filter(lambda t: t.strip() != "")
image_part = st.just({"type": "image"})
text_part = st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=40))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def groups(draw: st.DrawFn) -> PromptGroup:
    last = [*draw(st.lists(image_part | text_part, max_size=4)), {"type": "text", "text": draw(said)}]
    roles = draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=3))
    turns = [{"role": r, "content": draw(st.lists(image_part | text_part, max_size=2))} for r in roles]
    turns.append({"role": "user", "content": last})
    images = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    names = st.text(string.ascii_letters, min_size=1, max_size=5)
    responses = draw(
        st.lists(
            st.builds(
                Response,
                text=said,
                role=st.sampled_from(["probe", "random words", "paraphrase"]) | names,
                source=names,
                difficulty=st.none() | st.sampled_from(DIFFICULTIES),
            ),
            max_size=4,
        )
    )
    return PromptGroup(
        id=draw(said),
        images=tuple(ImageRef(path=f"/pictures/{draw(names)}.png") for _ in range(images)),
        messages=tuple(turns),
        responses=(Response("the chosen one"), *responses),
        references=tuple(draw(st.lists(said, max_size=3))),
        origin=draw(said),
        facts=draw(st.dictionaries(st.text(max_size=4), values, max_size=3)),
    )


@given(group=groups())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_group_reads_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: PromptGroup) -> None:
    monkeypatch.setattr("cwdpo.data.read_source.missing_file", lambda ref: None)  # the pictures are names only
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(group.to_json(), ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_groups(DataSource(path=path, format="cwdpo", check_images=False)).groups == (group,)


def test_images_that_are_no_files_are_written_beside_and_read_back(tmp_path: Path) -> None:
    red = Image.new("RGB", (3, 3), (255, 0, 0))
    red.save(tmp_path / "r.png")
    refs = (
        ImageRef(picture=red),
        ImageRef(data=(tmp_path / "r.png").read_bytes()),
        ImageRef(path=str(tmp_path / "r.png")),
    )
    turn = {"role": "user", "content": [{"type": "image"}] * 3}
    write_groups(tmp_path / "out.jsonl", [PromptGroup("a", refs, (turn,), (Response("red"),))])
    (group,) = load_groups(DataSource(path=tmp_path / "out.jsonl")).groups
    assert [open_image(ref).getpixel((1, 1)) for ref in group.images] == [(255, 0, 0)] * 3
    assert group.images[2] == refs[2]


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        (tmp_path / name).write_bytes(content)
        try:
            load_groups(DataSource(path=tmp_path / name))
        except DataError as error:
            assert "\n" not in str(error)
