"""Golden captions, Java or a reason to skip, and a Java that only pretends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cwdpo.evaluation.java import find_java
from cwdpo.evaluation.metrics import METRICS, Captioned, Score, Unavailable

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "caption_golden.json").read_text(encoding="utf-8"))
"""Captions, their tokens, and what pycocoevalcap itself says of them."""

TOKENS: list[str] = [row["tokens"] for row in GOLDEN["rows"]]
GOLD: list[list[str]] = [row["reference_tokens"] for row in GOLDEN["rows"]]


def needs_java() -> None:
    try:
        find_java()
    except Unavailable as error:
        pytest.skip(str(error))


def measured(
    metric: str, captions: Sequence[str], references: Sequence[Sequence[str]], **settings: Any
) -> dict[str, Score]:
    """The figures of a metric, of captions that are tokenised already."""
    (chosen,) = METRICS.make([{metric: settings}], "test")
    return chosen.scores(Captioned([], captions, captions, references))


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, lines: Sequence[str] = ()) -> Path:
    """A `java` of a version in `JAVA_HOME`, that runs shell lines."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    told = f'if [ "$1" = -version ]; then echo \'openjdk version "{version}"\' >&2; exit 0; fi'
    program.write_text("\n".join(["#!/bin/sh", told, *lines]) + "\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(folder))
    return program
