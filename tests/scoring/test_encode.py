"""Prompt groups to token ids: what the template writes, nothing cut, images read late, keys by content."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oracle import image_counts, whole_inputs

from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from tiny_models import FAMILIES, MORE_FAMILIES, end_of_answer, sample_groups, tiny_image

Pair = Callable[[str], tuple[Any, Any]]
ALL = (*FAMILIES, *MORE_FAMILIES)


@pytest.mark.parametrize("family", ALL)
def test_prefix_and_response_are_the_whole_chat(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair(family)
    encoder = PromptEncoder(processor)
    for group in sample_groups(4, tmp_path, images=image_counts(family, 1, 0, 2)):
        encoded = encoder.encode(group)
        for response, ids in zip(group.responses, encoded.responses, strict=True):
            whole = whole_inputs(processor, family, group, response)["input_ids"][0].tolist()
            assert [*encoded.prefix_ids, *ids.ids] == whole
            assert (ids.role, ids.source, ids.difficulty) == (response.role, response.source, response.difficulty)


@pytest.mark.parametrize("family", ALL)
def test_end_of_turn(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair(family)
    (group,) = sample_groups(1, tmp_path)
    end = processor.tokenizer.convert_tokens_to_ids(end_of_answer(family))
    with_end = PromptEncoder(processor).encode(group).responses[0].ids
    without = PromptEncoder(processor, include_eos=False).encode(group).responses[0].ids
    assert with_end == (*without, end)
    assert end not in without


def test_start_token_once(tiny_pair: Pair, tmp_path: Path) -> None:
    """LLaVA's tokenizer adds it, Idefics3's template writes it."""
    for family in ("llava", "idefics3"):
        _, processor = tiny_pair(family)
        (group,) = sample_groups(1, tmp_path)
        prefix = PromptEncoder(processor).encode(group).prefix_ids
        assert prefix[0] == processor.tokenizer.bos_token_id
        assert prefix.count(prefix[0]) == 1


def test_earlier_turns(tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    turns = (
        {"role": "system", "content": [{"type": "text", "text": "describe"}]},
        user_message("what is this?", 1),
        {"role": "assistant", "content": [{"type": "text", "text": "a star"}]},
        user_message("how large?", 0),
    )
    image = tiny_image(tmp_path / "a.png")
    group = PromptGroup("a", (image,), turns, (Response("small"),))
    encoded = PromptEncoder(processor).encode(group)
    text = processor.tokenizer.decode(encoded.prefix_ids)
    image_part = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"  # (28 / 14)^2
    assert text == (
        "<|im_start|>system\ndescribe<|im_end|>\n"
        f"<|im_start|>user\n{image_part}what is this?<|im_end|>\n"
        "<|im_start|>assistant\na star<|im_end|>\n<|im_start|>user\nhow large?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.tokenizer.decode(encoded.responses[0].ids) == "small<|im_end|>"


def test_too_long_names_row_and_need(tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    (group,) = sample_groups(1, tmp_path)
    encoded = PromptEncoder(processor).encode(group)
    need = len(encoded.prefix_ids) + max(len(r.ids) for r in encoded.responses)
    assert PromptEncoder(processor, max_length=need).encode(group).responses == encoded.responses
    with pytest.raises(DataError, match=rf"sample\.jsonl:1: needs {need} tokens .* the limit is {need - 1}"):
        PromptEncoder(processor, max_length=need - 1).encode(group)


def test_images_are_read_by_the_collator(tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    collator = GroupCollator(PromptEncoder(processor))
    late = tmp_path / "late.png"
    group = PromptGroup("a", (ImageRef(path=str(late)),), (user_message("what?"),), (Response("a star"),), origin="f:7")
    with pytest.raises(DataError, match=r"late\.png"):
        collator([group])
    tiny_image(late)
    assert collator([group])["batch"].groups[0].vision["image_grid_thw"].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("family", ALL)
def test_wrong_images_name_the_row(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    encoder = PromptEncoder(tiny_pair(family)[1])
    image = tiny_image(tmp_path / "a.png")
    for places in (0, 2):
        group = PromptGroup("a", (image,), (user_message("what?", places),), (Response("a star"),), origin="f.jsonl:7")
        with pytest.raises(DataError, match=rf"f\.jsonl:7: {places} image\(s\) in the prompt's text but 1 image file"):
            encoder.encode(group)


@pytest.mark.parametrize("family", ALL)
def test_placeholders_in_text_are_refused(family: str, tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair(family)
    image, token = tiny_image(tmp_path / "a.png"), processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    in_prompt = PromptGroup("a", (image,), (user_message(f"what {token}?"),), (Response("a star"),), origin="f.jsonl:7")
    in_answer = PromptGroup("a", (image,), (user_message("what?"),), (Response(f"a {token}"),), origin="f.jsonl:7")
    with pytest.raises(DataError, match=r"f\.jsonl:7: the processor cannot encode"):
        PromptEncoder(processor).encode(in_prompt)
    with pytest.raises(DataError, match=r"f\.jsonl:7: a chosen response holds the image placeholder"):
        PromptEncoder(processor).encode(in_answer)


def test_empty_response_is_refused_without_end_of_turn(tiny_pair: Pair) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    group = PromptGroup("a", (), (user_message("what?", 0),), (Response("", role="rejected"),), origin="f.jsonl:7")
    with pytest.raises(DataError, match=r"f\.jsonl:7: a rejected response has no token"):
        PromptEncoder(processor, include_eos=False).encode(group)
    assert len(PromptEncoder(processor).encode(group).responses[0].ids) == 1  # the end of turn alone


def test_keys_follow_content(tiny_pair: Pair, tmp_path: Path) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    encoder = PromptEncoder(processor)
    image = tiny_image(tmp_path / "a.png", seed=1)
    group = PromptGroup("a", (image,), (user_message("what?"),), (Response("a star"),), origin="x:1")

    def key(changed: PromptGroup, with_encoder: PromptEncoder = encoder) -> str:
        return with_encoder.encode(changed).responses[0].key

    first = key(group)
    assert len(first) == 64 and int(first, 16) >= 0
    data = (tmp_path / "a.png").read_bytes()
    same = [
        replace(group, id="b", origin="y:2", references=("a",)),
        replace(group, responses=(Response("a star", role="rejected", source="beam"),)),
        replace(group, images=(ImageRef(data=data),)),
    ]
    assert {key(g) for g in same} == {first}
    other = [
        replace(group, images=(tiny_image(tmp_path / "b.png", seed=2),)),
        replace(group, messages=(user_message("who?"),)),
        replace(group, responses=(Response("a line"),)),
        group.with_responses([Response("a star.")]),
    ]
    keys = {key(g) for g in other}
    assert len(keys) == 4 and first not in keys
    assert key(group, PromptEncoder(processor, include_eos=False)) not in {first, *keys}


def test_collator_travels_to_workers(tiny_pair: Pair, tmp_path: Path) -> None:
    for family in ALL:
        collator = GroupCollator(PromptEncoder(tiny_pair(family)[1]))
        groups = sample_groups(2, tmp_path, images=1)
        there = pickle.loads(pickle.dumps(collator))
        ours, theirs = collator(groups)["batch"], there(groups)["batch"]
        assert [r.key for r in ours.responses] == [r.key for r in theirs.responses]
