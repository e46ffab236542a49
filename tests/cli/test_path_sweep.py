"""Every path argument of every command, given what is no use there: one line, exit 2, nothing changed on disk."""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import typing
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from cwdpo.cli import main
from cwdpo.cli.app import app
from cwdpo.recipe import Recipe

TEXTS = {
    *(
        "freeze",
        "gpus",
        "judge_model",
        "judge_url",
        "metrics",
        "name",
        "objective",
        "overrides",
        "prompt",
        "push",
        "split",
    )
}
"""Arguments that are words; every other argument of text or of type Path is a path and is swept."""

WRITTEN = {"export", "html", "out", "run"}

GOOD = {
    **dict.fromkeys(("checkpoint_a", "checkpoint_b", "model"), "scenes"),
    **dict.fromkeys(("captions_a", "captions_b", "captions"), "captions.jsonl"),
    **{
        "data": "rows.jsonl",
        "images": "pictures",
        "name": "mmbench",
        "recipe": "recipe.yaml",
        "run": "made",
        "runs": "made",
    },
    **{"out": "new", "html": "new.html", "export": "new.jsonl"},
}
"""What an argument is given while another one is swept."""

USABLE = {(words, "images", "folder") for words in ("evaluate", "winrate")} | {("evaluate", "spice_jars", "folder")}
"""What is of use after all: captions are given, so no picture is read; SPICE says itself what the folder lacks."""

MORE: dict[str, dict[str, str]] = {
    "evaluate": {"captions": "captions.jsonl"},
    "benchmark": {"data": "questions.tsv", "model": "scenes", "out": "new"},
}
INSTEAD = {("evaluate", "model"): "captions"}
"""An argument that goes only without another one."""


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that is shown, by its words."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        if not below.hidden:
            yield from commands(below, f"{name} {word}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


def paths_of(command: Any) -> dict[str, Any]:
    """The arguments of a command that are paths."""
    kinds = typing.get_type_hints(inspect.unwrap(command.callback))
    found = {p.name: p for p in command.params if re.search(r"\b(Path|str)\b", str(kinds.get(p.name)))}
    return {name: param for name, param in found.items() if name not in TEXTS}


def sweep() -> Iterator[tuple[str, str, str]]:
    """Command, argument, kind; of commands that share a function, the first."""
    seen: set[Any] = set()
    for words, command in COMMANDS.items():
        function = inspect.unwrap(command.callback)
        if function not in seen:
            for name in paths_of(command):
                kinds = OUTPUT_KINDS if name in WRITTEN else INPUT_KINDS
                yield from ((words, name, kind) for kind in kinds if (words, name, kind) not in USABLE)
        seen.add(function)


# -- what is given ---------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": lambda path: [
        (path / name).write_text("mine")
        for name in ("notes", "metrics.json", "winrate.json")
        if not path.mkdir(exist_ok=True)
    ],
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "link": lambda path: (path.with_name("target").write_text("mine"), path.symlink_to("target")),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "foreign file": lambda path: path.write_text("mine\n"),
    "empty file": lambda path: path.touch(),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "long name": lambda path: None,
    "below a file": lambda path: path.write_text("mine"),
    "odd name": lambda path: None,
}
INPUT_KINDS = list(KINDS)
OUTPUT_KINDS = [*(kind for kind in KINDS if kind not in ("missing", "empty file", "bytes", "odd name")), "own input"]
PLACES = {"long name": "x" * 300, "below a file": "odd/below", "odd name": "[/INST]\x1b[31m\nx"}


def rows() -> list[dict[str, Any]]:
    colours = ("red", "blue", "green", "black")
    return [
        {
            "id": f"r{i}",
            "prompt": "what is this ?",
            "images": [f"pictures/{i}.png"],
            "chosen": f"a {colours[i % 4]} square",
            "rejected": "a star",
        }
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs for every command."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "pictures").mkdir()
    lines = [json.dumps(row) + "\n" for row in rows()]
    for i in range(len(lines)):
        Image.new("RGB", (28, 28), (20 * i, 9, 9)).save(folder / "pictures" / f"{i}.png")
    (folder / "rows.jsonl").write_text("".join(lines))
    captions = [json.dumps({"id": row["id"], "caption": "a star"}) + "\n" for row in rows()]
    (folder / "captions.jsonl").write_text("".join(captions))
    small = "{max_steps: 1, batch_size: 4, micro_batch_size: 4}"
    (folder / "recipe.yaml").write_text(
        f"data: {{path: rows.jsonl, held_out: 3}}\nstage1: {small}\nstage2: {small}\nevaluation: {{prompts: 0}}\n"
    )
    picture = io.BytesIO()
    Image.new("RGB", (28, 28)).save(picture, "PNG")
    row = ["1", "what ?", "a", "b", "A", "c", base64.b64encode(picture.getvalue()).decode()]
    head = ["index", "question", "A", "B", "answer", "category", "image"]
    (folder / "questions.tsv").write_text("\t".join(head) + "\n" + "\t".join(row) + "\n")
    (folder / "made").mkdir()
    (folder / "made" / "recipe.yaml").write_text("seed: 1\n")
    return folder


def argv_of(words: str, swept: str, value: str) -> list[str]:
    """A command line in which all is good but one argument."""
    command = COMMANDS[words]
    given = {p.name: MORE.get(words, {}).get(p.name) or GOOD[p.name] for p in command.params if p.required}
    given |= MORE.get(words, {})
    given.pop(INSTEAD.get((words, swept), ""), None)
    given[swept] = value
    argv = words.split()
    for param in command.params:
        if param.name in given:
            argv += [given[param.name]] if not param.opts[0].startswith("-") else [param.opts[0], given[param.name]]
    if words.startswith("paper") and words != "paper claims":
        argv += {"data": ["--scale", "full"], "model": ["--scale", "full", "--data", "rows.jsonl"]}.get(swept, [])
    return argv


def content(folder: Path) -> dict[str, Any]:
    """All that lies in a folder: kinds, bytes, links."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        kind = path.lstat()
        known: Any = (stat.S_IFMT(kind.st_mode), kind.st_rdev)
        if path.is_symlink():
            known = (*known, path.readlink())
        elif path.is_file():
            known = (*known, hashlib.sha256(path.read_bytes()).hexdigest())
        found[str(path.relative_to(folder))] = known
    return found


class Hang(BaseException):
    """A command that does not end."""


@pytest.fixture
def in_time() -> Generator[None]:
    """A minute, and 4 GiB more than are held already, for what reads a device for ever."""

    def strike(*_: object) -> None:
        raise Hang

    before, limits = signal.signal(signal.SIGALRM, strike), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32, limits[1]))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.slow
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize(("words", "swept", "kind"), list(sweep()))
def test_sweep(
    words: str,
    swept: str,
    kind: str,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    if kind == "own input":
        taken = [name for name in paths_of(COMMANDS[words]) if name not in WRITTEN and name in GOOD]
        given = argv_of(words, swept, "new")
        values = [v for name in taken if (v := MORE.get(words, {}).get(name, GOOD[name])) in given and v != "scenes"]
        values = [value for value in values if Path(value).is_file()]
        if not values:
            pytest.skip("reads no file")
    else:
        try:
            KINDS[kind](folder / "odd")
        except PermissionError:
            pytest.skip("needs the rights to make devices")
        values = [PLACES.get(kind, "odd")]
    for value in values:
        before = content(folder)
        monkeypatch.setattr(sys, "argv", ["cwdpo", *argv_of(words, swept, value)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert ended.value.code == 2, said
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert "Traceback" not in said and "\x1b" not in said
        assert content(folder) == before, said


def paths_of_recipe(values: dict[str, Any], place: str = "") -> Iterator[str]:
    """The keys of a recipe that name something to be read."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from paths_of_recipe(value, f"{place}{name}.")
        elif re.search(r"(^|_)(path|root)$", name):
            yield f"{place}{name}"


@pytest.mark.slow
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize("key", list(paths_of_recipe(Recipe().model_dump())))
def test_paths_in_a_recipe(
    key: str,
    kind: str,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    KINDS[kind](folder / "odd")
    before = content(folder)
    monkeypatch.setattr(sys, "argv", ["cwdpo", "check", "recipe.yaml", "--set", f"{key}={PLACES.get(kind, 'odd')}"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert content(folder) == before, said


def test_every_argument_is_swept() -> None:
    """A new command needs its good values here, and says what it writes."""
    for words, command in COMMANDS.items():
        assert not {p.name for p in command.params if p.required} - set(GOOD), words
        for name, param in paths_of(command).items():
            if re.search(r"\bto write\b", param.help or ""):
                assert name in WRITTEN, (words, name)
