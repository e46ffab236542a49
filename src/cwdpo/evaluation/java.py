"""Java, which the PTB tokenizer, METEOR and SPICE need: found, of a known version, or a reason that says what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cwdpo.errors import one_line

__all__ = ["Java", "Unavailable", "find_java", "java_first", "run_java"]

_GET = "install one (Debian: apt-get install openjdk-17-jre-headless) or set JAVA_HOME"
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


class Unavailable(Exception):
    """A measure cannot be had here. The text says why and how to get it; the measure is never 0 for that."""


@dataclass(frozen=True)
class Java:
    """A Java that runs.

    Attributes:
        path: Its executable.
        version: Its major version: 8, 11, 17, …
    """

    path: str
    version: int


def find_java() -> Java:
    """Return the Java of `JAVA_HOME`, else the one on the path.

    Raises:
        Unavailable: There is none, or it does not run.
    """
    home = os.environ.get("JAVA_HOME", "")
    path = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if path is None:
        raise Unavailable(f"no Java {f'in JAVA_HOME = {home}' if home else 'was found'}; {_GET}")
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{path} does not run ({one_line(error, 120)}); {_GET}") from error
    found = _VERSION.search(told)
    if found is None:
        raise Unavailable(f"{path} does not say its version ({one_line(told, 80)}); {_GET}")
    return Java(path, int(found[1]))


def run_java(arguments: Sequence[str], text: str = "") -> str:
    """Run Java on UTF-8 text and return what it writes to its output.

    Raises:
        Unavailable: There is no Java, or the program failed.
    """
    java = find_java()
    done = subprocess.run([java.path, "-Dfile.encoding=UTF-8", *arguments], input=text.encode(), capture_output=True)
    if done.returncode != 0:
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Unavailable(
            f"Java ended with code {done.returncode}: {one_line(told[0] if told else 'it says nothing', 200)}"
        )
    return done.stdout.decode()


@contextmanager
def java_first() -> Generator[Java]:
    """Let libraries that call `java` by name find this one, and read and write UTF-8, while the block runs.

    Raises:
        Unavailable: There is no Java.
    """
    java = find_java()
    before = {name: os.environ.get(name) for name in ("PATH", "JAVA_TOOL_OPTIONS")}
    os.environ["PATH"] = os.pathsep.join([str(Path(java.path).parent), before["PATH"] or ""])
    os.environ["JAVA_TOOL_OPTIONS"] = f"{before['JAVA_TOOL_OPTIONS'] or ''} -Dfile.encoding=UTF-8".strip()
    try:
        yield java
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
