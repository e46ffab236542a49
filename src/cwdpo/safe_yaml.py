"""YAML from files that anybody may have written: plain values, each key once, and no more than needed."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["parse_yaml"]

_MOST_VALUES = 20_000
"""Values that a document may have, an alias counted each time it stands: nine lines of aliases can mean billions."""
_DEEPEST = 40
"""Levels of nesting that a document may have."""
_LONGEST_NUMBER = {"tag:yaml.org,2002:int": 18, "tag:yaml.org,2002:float": 60}
"""Characters that a number may have: whole numbers beyond 64 bits stop torch, very long ones Python."""

_SURPRISING = re.compile(r"[-+]?(0[0-9_]+$|[0-9_]+:)")
"""Spellings that YAML 1.1 reads as octal (017) or in base 60 (1:30)."""


class _Loader(yaml.SafeLoader):
    """Reads plain YAML and refuses a key that is there twice, of which YAML would keep the last."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str = "<text>") -> Any:
    """Return what a YAML document says.

    Args:
        text: The document.
        name: What an error calls it.

    Raises:
        yaml.YAMLError: Not YAML, a tag that is not plain data, a key twice, or more values than a recipe can need.
    """
    loader = _Loader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of PyYAML: a date that is none, `!!int abc`
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; `known` holds 0 for nodes that are not done."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.MarkedYAMLError(problem="an alias stands within what it means", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _LONGEST_NUMBER and _SURPRISING.match(node.value):
            raise yaml.MarkedYAMLError(
                problem=f"{node.value} is octal or in base 60 to YAML: write a number without leading zeros or colons",
                problem_mark=node.start_mark,
            )
        if len(node.value) > _LONGEST_NUMBER.get(node.tag, len(node.value)):
            raise yaml.MarkedYAMLError(problem="a number with too many digits", problem_mark=node.start_mark)
        if "\0" in node.value or any("\ud800" <= c <= "\udfff" for c in node.value):
            raise yaml.MarkedYAMLError(problem="a text with characters that none has", problem_mark=node.start_mark)
        total = 1
    else:
        pairs = isinstance(node, yaml.MappingNode)
        below = [part for pair in node.value for part in pair] if pairs else list(node.value)
        total = 1 + sum(_count(part, known) for part in below)
    if total > _MOST_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"more than {_MOST_VALUES:,} values, with its aliases written out", problem_mark=node.start_mark
        )
    known[id(node)] = total
    return total
