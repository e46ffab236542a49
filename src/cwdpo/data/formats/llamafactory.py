"""LLaMA-Factory's ranking rows, alpaca and sharegpt, with the column names and tags of `dataset_info.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cwdpo.data.messages import Message, read_answer, read_turns, refuse_tags, refuse_untrained, tagged_parts
from cwdpo.data.row_context import RowContext, build_group, read_images
from cwdpo.data.row_format import Format, columns_of
from cwdpo.data.row_values import RowError, as_list, as_mapping, as_text, kind_of, require_column, require_good
from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError, one_line

__all__ = ["INFO_NAME", "Layout", "LlamaFactory", "is_dataset_info", "read_llamafactory"]

INFO_NAME = "dataset_info.json"

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "images": "images",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
    "tools": "tools",
    "videos": "videos",
    "audios": "audios",
}

_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True)
class Layout:
    """One entry of `dataset_info.json`: how the rows of a file are spelled.

    Attributes:
        formatting: `alpaca` or `sharegpt`.
        columns: What each of LLaMA-Factory's column keys is called in the file.
        tags: What roles and keys of turns are called in the file.
    """

    formatting: str = "alpaca"
    columns: Mapping[str, str] = field(default_factory=lambda: dict(_COLUMNS))
    tags: Mapping[str, str] = field(default_factory=lambda: dict(_TAGS))

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], where: str) -> Layout:
        """Return the layout of an entry, LLaMA-Factory's defaults where it is silent.

        Raises:
            DataError: An unknown formatting, or columns and tags that are not texts.
        """
        formatting = entry.get("formatting", "alpaca")
        if formatting not in ("alpaca", "sharegpt"):
            raise DataError(one_line(f"{where}: formatting = {formatting!r}; must be alpaca or sharegpt"))
        try:
            columns, tags = (
                {k: as_text(v, f"{key}.{k}") for k, v in as_mapping(entry.get(key) or {}, key).items()}
                for key in ("columns", "tags")
            )
        except RowError as error:
            raise DataError(f"{where}: {error}") from error
        return cls(formatting, _COLUMNS | columns, _TAGS | tags)

    @classmethod
    def guess(cls, row: Mapping[str, Any]) -> Layout:
        """Return the layout that the columns of a row speak for, where no `dataset_info.json` tells."""
        if "conversations" in row:
            return cls("sharegpt")
        if "messages" in row:
            openai = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
            return cls("sharegpt", _COLUMNS | {"messages": "messages"}, _TAGS | openai)
        return cls("alpaca")


class LlamaFactory(Format):
    """LLaMA-Factory's rows, alpaca or sharegpt, with or without the names that `dataset_info.json` gives them."""

    name: ClassVar[str] = "llamafactory"
    hub: ClassVar[tuple[str, ...]] = ("llamafactory/RLHF-V", "Zhihui/VLFeedback")
    columns: ClassVar[Mapping[str, str]] = {
        "conversations, messages": "the prompt's turns (sharegpt); without `chosen` the last turn is the chosen answer",
        "instruction, input, history": "the prompt (alpaca)",
        "chosen, rejected": "the answers, text or a turn",
        "output": "the chosen answer where there is no pair",
        "images": "the images, in the order of their `<image>` tags",
        "system": "the system turn",
        "kto_tag": "a row whose answer is marked as bad is refused",
    }
    index: ClassVar[str] = INFO_NAME

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> Collection[str]:
        """Return the columns: a prompt of LLaMA-Factory's, and what belongs to it."""
        there = columns_of(row)
        if {"conversations", "instruction"} & there or {"messages", "chosen", "rejected"} <= there:
            return there & set(_COLUMNS.values()) | there & {"messages"}
        return ()

    @classmethod
    def holds(cls, document: Mapping[str, Any]) -> bool:
        """Return whether a document maps names of data sets to where they are."""
        return is_dataset_info(document)

    @classmethod
    def groups(cls, row: Mapping[str, Any], context: RowContext) -> list[PromptGroup]:
        """Return the group of a row, in the layout that its columns speak for."""
        return read_llamafactory(row, context)


def is_dataset_info(document: Any) -> bool:
    """Return whether a JSON document maps names of datasets to where they are."""
    places = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(entry, dict) and any(place in entry for place in places) for entry in document.values())
    )


def read_llamafactory(row: Mapping[str, Any], context: RowContext, layout: Layout | None = None) -> list[PromptGroup]:
    """Return the group of one row.

    Ranking rows have `chosen` and `rejected`; a row without them has its last answer (sharegpt) or `output` (alpaca)
    as the chosen response and no rejected one.
    """
    layout = layout or Layout.guess(row)
    require_good(row, layout.columns["kto_tag"])
    turns, chosen = (_sharegpt if layout.formatting == "sharegpt" else _alpaca)(row, layout)
    system = row.get(layout.columns["system"])
    if system and not any(turn["role"] == "system" for turn in turns):
        turns = [{"role": "system", "content": [{"type": "text", "text": as_text(system, "system")}]}, *turns]
    responses = [Response(chosen, CHOSEN)]
    rejected = row.get(layout.columns["rejected"])
    if rejected is not None:
        responses.append(Response(_answer(rejected, layout, layout.columns["rejected"]), REJECTED))
    refuse_untrained(row, *(layout.columns[name] for name in ("tools", "videos", "audios")))
    images = read_images(row, context, (layout.columns["images"],))
    return [build_group(context, turns, images, responses, name=row.get("id"))]


def _sharegpt(row: Mapping[str, Any], layout: Layout) -> tuple[list[Message], str]:
    name = layout.columns["messages"]
    values = [_renamed(turn, layout, f"{name}[{i}]") for i, turn in enumerate(as_list(require_column(row, name), name))]
    turns = read_turns(values, name)
    column = layout.columns["chosen"]
    if row.get(column) is not None:
        return turns, _answer(row[column], layout, column)
    if row.get(layout.columns["rejected"]) is not None:
        require_column(row, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError("no chosen answer", f"neither '{column}' nor a last turn of the assistant in '{name}'")
    return turns[:-1], refuse_tags(read_answer(turns[-1:], name), name)


def _alpaca(row: Mapping[str, Any], layout: Layout) -> tuple[list[Message], str]:
    columns = layout.columns
    turns: list[Message] = []
    for i, pair in enumerate(as_list(row.get(columns["history"]) or [], columns["history"])):
        texts = as_list(pair, f"{columns['history']}[{i}]")
        if len(texts) != 2:
            raise RowError("wrong type", f"{columns['history']}[{i}] must be a question and an answer")
        turns.append({"role": "user", "content": tagged_parts(as_text(texts[0], columns["history"]))})
        turns.append({"role": "assistant", "content": tagged_parts(as_text(texts[1], columns["history"]))})
    question = as_text(require_column(row, columns["prompt"]), columns["prompt"])
    query = as_text(row.get(columns["query"]) or "", columns["query"])
    turns.append({"role": "user", "content": tagged_parts("\n".join(text for text in (question, query) if text))})
    ranked = row.get(columns["chosen"]) is not None or row.get(columns["rejected"]) is not None
    answer = columns["chosen"] if ranked else columns["response"]
    return turns, _answer(require_column(row, answer), layout, answer)


def _answer(value: Any, layout: Layout, what: str) -> str:
    """Return an answer: text (alpaca) or one turn (sharegpt)."""
    if isinstance(value, Mapping):
        return refuse_tags(read_answer(read_turns([_renamed(value, layout, what)], what), what), what)
    if not isinstance(value, str):
        raise RowError("wrong type", f"{what} must be text or one turn, not {kind_of(value)}")
    return refuse_tags(as_text(value, what), what)


def _renamed(value: Any, layout: Layout, what: str) -> dict[str, Any]:
    """Return a turn in the words of a chat template."""
    turn, tags = as_mapping(value, what), layout.tags
    name = as_text(turn.get(tags["role_tag"]), f"{what}.{tags['role_tag']}")
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["observation_tag"]: "tool",
        tags["system_tag"]: "system",
    }
    if name == tags["function_tag"]:
        raise RowError("tool calls", f"{what} is a function call, which is not supported")
    if name not in roles:
        raise RowError("unknown role", f"{what}.{tags['role_tag']} = {name!r}; known: {', '.join(roles)}")
    others = {key: value for key, value in turn.items() if key not in (tags["role_tag"], tags["content_tag"])}
    return {**others, "role": roles[name], "content": turn.get(tags["content_tag"])}
