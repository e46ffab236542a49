"""What fuzz tests share: how many cases, how long one may take, and values that nobody expects.

`CWDPO_FUZZ=2000` asks for so many cases a test instead of the quick few.
"""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

MANY = int(os.environ.get("CWDPO_FUZZ", "0"))


def cases(quick: int, seconds: float = 10.0) -> settings:
    """Settings of a fuzz test: `quick` cases, or those that CWDPO_FUZZ asks for; a case over `seconds` hangs."""
    return settings(
        max_examples=MANY or quick,
        deadline=timedelta(seconds=seconds),
        derandomize=not MANY,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "\0",
            "\ud800",
            "<image>",
            "<image><image>",
            "../../etc/passwd",
            "/etc/passwd",
            "/dev/zero",
            "a" * 300,
            "https://x/y.png",
            "data:image/png;base64,AA",
            "~",
            "nan",
            "{{7*7}}",
            "%s%n",
            "\u202e",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, float("nan"), float("inf"), -0.0, 1e308, 5e-324]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(TEXTS, v, max_size=3)), max_leaves=6
)
"""Any JSON value."""


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one to three of its places changed: exchanged, taken away, doubled, or with a key put in."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["exchange", "exchange", "drop", "add", "double", "deep"]))
        if how == "drop":
            del holder[key]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = nested(30) if how == "deep" else draw(VALUES)
    return value


def _places(value: Any) -> Any:
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, with some exchanged, with garbage between, or other bytes altogether."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "insert", "drop", "other", "empty"]))
    if how == "empty" or not content:
        return b""
    if how == "other":
        return draw(st.binary(max_size=200))
    at = draw(st.integers(0, len(content) - 1))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=40)) + content[at:]
    if how == "drop":
        return content[:at] + content[at + draw(st.integers(1, 64)) :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)
