"""Prompt groups to token ids: what the template writes, nothing cut, images read late, keys by content."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oracle import image_counts, whole_inputs

from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError, ModelError
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


def test_end_of_turn_where_the_tokenizer_forgot_its_own(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without tokenizer_config.json: the template's special token ends an answer; where it writes none, refused."""
    for family, known in (("qwen2_5_vl", True), ("llava", False)):
        processor = copy.deepcopy(tiny_pair(family)[1])
        group = PromptGroup("a", (), (user_message("what?", 0),), (Response("a star"),))
        wanted = PromptEncoder(processor).encode(group).responses[0].ids
        monkeypatch.setattr(processor.tokenizer, "_special_tokens_map", {}, raising=False)
        assert processor.tokenizer.eos_token is None
        if known:
            assert PromptEncoder(processor).encode(group).responses[0].ids == wanted
        else:
            with pytest.raises(ModelError, match="ends an answer"):
                PromptEncoder(processor)


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
    named = (*processor.tokenizer.special_tokens_map.items(), *vars(processor).items())
    tokens = {str(token) for name, token in named if name in ("image_token", "boi_token", "fake_image_token")}
    tokens.add(processor.tokenizer.convert_ids_to_tokens(processor.image_token_id))
    image = tiny_image(tmp_path / "a.png")
    for token in tokens:
        for asked, answer in ((f"what {token}?", "a star"), ("what?", f"a {token}"), ("what?", f"a{token}star")):
            group = PromptGroup("a", (image,), (user_message(asked),), (Response(answer),), origin="f.jsonl:7")
            with pytest.raises(DataError, match=r"^f\.jsonl:7: .*placeholder") as caught:
                PromptEncoder(processor).encode(group)
            assert token in str(caught.value)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENS{% endif %}"
)
THINKS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set t = m['content'][0]['text'] %}{% set r = '' %}"
    "{% if '</think>' in t %}{% set r = t.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set t = t.split('</think>')[-1].strip() %}{% endif %}"
    "{{ '<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + t }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
TEMPLATES = {
    "plain": CHATML.replace("OPENS", ""),
    "opens thinking": CHATML.replace("OPENS", "<think>\n"),
    "opens and writes thinking": THINKS,
    "writes thinking that it does not open": THINKS.replace(
        "assistant\n<think>\n' }}{% endif", "assistant\n' }}{% endif"
    ),
    "answers are strings": CHATML.replace("OPENS", "").replace(
        "{% if m['content'] is string", "{% if m['role'] == 'assistant' or m['content'] is string"
    ),
    "answers and system turns are strings": CHATML.replace("OPENS", "").replace(
        "{% if m['content'] is string %}{{ m['content'] }}",
        "{% if m['role'] != 'user' %}{{ '' + m['content'] }}{% elif m['content'] is string %}{{ m['content'] }}",
    ),
    "trims": CHATML.replace("OPENS", "").replace("c['text']", "c['text'] | trim"),
}
ANSWERS = (
    "<think>\nit is red\n</think>\n\na red square",
    "a blue circle",
    "  two words ",
    "<think>\n</think>\n\na star",
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", ["", "be short"])
def test_what_is_trained_is_what_the_template_writes(
    template: str, system: str, tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt and answer together are the rendering of the whole conversation, token by token, for every answer."""
    _, processor = tiny_pair("qwen2_5_vl")
    monkeypatch.setattr(processor, "chat_template", TEMPLATES[template])
    before = ({"role": "system", "content": [{"type": "text", "text": system}]},) if system else ()
    turns = (*before, user_message("what is this?"))
    group = PromptGroup("a", (tiny_image(tmp_path / "a.png"),), turns, tuple(map(Response, ANSWERS)))
    encoded = PromptEncoder(processor).encode(group)
    strings = "strings" in template
    for answer, response in zip(ANSWERS, encoded.responses, strict=True):
        told = [
            {**m, "content": m["content"][0]["text"]} if strings and m["role"] != "user" else m
            for m in (*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]})
        ]
        text = processor.apply_chat_template(told, tokenize=False).removesuffix("\n")
        assert "'text'" not in text and text.endswith("<|im_end|>")
        decoded = processor.tokenizer.decode([*encoded.prefix_ids, *response.ids])
        assert re.sub(r"(<.image_pad.>)+", "<|image_pad|>", decoded) == text
    opened = processor.apply_chat_template(told[:-1], tokenize=False, add_generation_prompt=True)
    assert opened.startswith(
        re.sub(r"(<.image_pad.>)+", "<|image_pad|>", processor.tokenizer.decode(encoded.prefix_ids))
    )


RAISES = "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}"


@pytest.mark.parametrize(
    "change",
    [
        ("<|im_end|>", "{% if loop.index0 == 1 and m['role'] == 'user' %}" + RAISES + "{% endif %}<|im_end|>"),
        ("<|im_end|>", "{% if loop.index0 == 1 and m['role'] == 'user' %}{{ '' + m['content'] }}{% endif %}<|im_end|>"),
        ("<|im_end|>", "{% if loop.index0 == 1 and m['role'] == 'user' %}{{ m.no.such }}{% endif %}<|im_end|>"),
        (
            "{{ m['role'] }}",
            "{% if loop.last and m['role'] == 'assistant' and messages | length > 2 %}x{% endif %}{{ m['role'] }}",
        ),
    ],
)
def test_a_template_that_refuses_names_the_row(
    change: tuple[str, str], tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = tiny_pair("qwen2_5_vl")
    monkeypatch.setattr(processor, "chat_template", TEMPLATES["plain"].replace(*change))
    encoder = PromptEncoder(processor)
    one = PromptGroup("a", (), (user_message("what?", 0),), (Response("a star"),), origin="f.jsonl:7")
    assert encoder.encode(one).responses
    with pytest.raises(DataError, match=r"^f\.jsonl:7: the chat template") as caught:
        encoder.encode(replace(one, messages=(*one.messages, *one.messages)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", [None, "{{ messages.no.such }}", "{% for", "{{ messages[0]['content'][0]['text'] }}"]
)
def test_templates_that_cannot_be_used(template: str | None, tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost in copying, broken, or without a place for answers; a family that never had one goes without."""
    _, processor = tiny_pair("qwen2_5_vl")
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(ModelError, match="chat template"):
        PromptEncoder(processor)
    PromptEncoder(tiny_pair("paligemma")[1])


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
