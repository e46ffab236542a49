"""Small whole runs through the real command line: recipes, data, kills at chosen moments, bitwise comparison.

`CliServer` is one process that has imported everything and forks for every call, so that a call costs what it does and
not what torch's import takes. Run as a script, this file is that process.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_TIMES = {"seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
"""Fields that tell how long something took; so do those that begin with `speed/`."""

_OF_ONE_CALL = {"report.html", "throughput.json"}
"""Files that tell how long something took."""


def tiny_recipe(model: Path | str, /, **changes: dict[str, Any]) -> dict[str, Any]:
    """Both stages, on-policy negatives too, in some seconds. `changes` are merged into the sections."""
    stage = {"max_steps": 5, "batch_size": 8, "micro_batch_size": 4, "log_steps": 2, "save_steps": 2}
    mix = {"dataset": 1, "other": 1, "beam": 1, "sample": 1, "max_new_tokens": 5, "beam_width": 2, "batch_size": 4}
    recipe: dict[str, Any] = {
        "name": "tiny",
        "seed": 5,
        "model": {"path": str(model)},
        "data": {"path": "scenes", "size": 40, "held_out": 10},
        "negatives": {"stage1": mix, "stage2": mix},
        "stage1": {**stage, "learning_rate": 3e-3},
        "stage2": {**stage, "learning_rate": 3e-3, "max_steps": 4},
        "probes": {"every": 2, "prompts": 4},
        "evaluation": {"prompts": 6, "batch_size": 3, "max_new_tokens": 5},
    }
    for section, values in changes.items():
        recipe[section] = {**recipe[section], **values} if isinstance(values, dict) else values
    return recipe


def write_yaml(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@dataclass
class Said:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr of a command that the user has got wrong."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err and "Traceback" not in self.out
        assert self.err.count("\n") == 1 and self.err.startswith("error: "), self.err
        return self.err.strip()

    @property
    def good(self) -> str:
        """What a command that ended well wrote to stdout."""
        assert self.code == 0, self.err
        return self.out


Cli = Callable[..., Said]


# -- the server ------------------------------------------------------------------------------------------------------


class Call:
    """A command under way, in one process or in several that work together."""

    def __init__(self, server: CliServer, pids: list[int], out: Path) -> None:
        self._server, self.pids, self._out = server, pids, out
        self._codes: list[int] | None = None

    @property
    def pid(self) -> int:
        return self.pids[0]

    def signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def wait(self) -> int:
        """The exit code of the first process; minus the signal's number where one ended it."""
        return self.codes()[0]

    def codes(self) -> list[int]:
        """The exit codes of all processes."""
        if self._codes is None:
            self._codes = self._server.reply()["statuses"]
        return self._codes

    def end(self) -> None:
        """Kill it where it is still under way: a test that fails must not spoil the next one."""
        if self._codes is None:
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()

    @property
    def stdout(self) -> str:
        return (self._out / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What all processes wrote there."""
        return (self._out / "stderr").read_text(encoding="utf-8")

    @property
    def event(self) -> str:
        """What the run was about to do to its files when `kill_at` struck."""
        return (self._out / "event").read_text(encoding="utf-8")

    @property
    def events(self) -> int:
        """How many things the run did to its files."""
        return int((self._out / "events").read_text(encoding="utf-8"))


class CliServer:
    """Runs `cwdpo …` in forked children, one at a time."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._calls = scratch, list[Call]()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(
        self,
        *argv: str | Path,
        cwd: Path | None = None,
        kill_at: int = 0,
        kill_on: str = "",
        watch: Path | None = None,
        ranks: int = 1,
        sharding: str = "",
        full_at: int = 0,
        fill: Path | None = None,
        spare: int = 0,
        clock_jumps: bool = False,
    ) -> Call:
        """Begin a call.

        Args:
            *argv: The command line after `cwdpo`.
            cwd: Where.
            kill_at: SIGKILL at the n-th thing that the call does to files under `watch`; 0 never.
            kill_on: SIGKILL when it has done something to a file there whose path holds this, at the next thing.
            watch: The run directory.
            ranks: How many processes work together, as under `torchrun`.
            sharding: What else they share: a key of `sharding_on_cpu.SETTINGS`; nothing where it is empty.
            full_at: From the n-th thing on that the call does to files under `watch`, opening one for writing fails as
                on a full disk; 0 never.
            fill: At the moment of `kill_at` or `kill_on` the call is not killed: this file is made so large that its
                disk is full indeed.
            spare: Bytes that are left there.
            clock_jumps: Every look at the clock finds it a day off, to and fro.
        """
        for call in self._calls[-1:]:
            call.end()
        out = self._scratch / f"call-{len(self._calls)}"
        out.mkdir(parents=True)
        request = {"argv": [str(a) for a in argv], "cwd": str(cwd or self._scratch), "out": str(out)}
        request |= {"kill_at": kill_at, "kill_on": kill_on, "watch": str(watch or "")}
        request |= {
            "ranks": ranks,
            "sharding": sharding,
            "full_at": full_at,
            "fill": str(fill or ""),
            "spare": spare,
            "clock_jumps": clock_jumps,
            "port": _free_port(),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._calls.append(Call(self, self.reply()["pids"], out))
        return self._calls[-1]

    def run(self, *argv: str | Path, **settings: Any) -> tuple[int, Call]:
        """Run a call to its end; its exit code, and what it wrote."""
        call = self.start(*argv, **settings)
        return call.wait(), call

    def reply(self) -> dict[str, list[int]]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()  # it holds nothing, and torch takes its time to go
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    # Everything a run imports, before the first fork.
    import peft  # noqa: F401
    import pycocoevalcap.cider.cider  # noqa: F401
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pids: list[int] = []
        for rank in range(request["ranks"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                _child(request, rank)
        print(json.dumps({"pids": pids}), flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"statuses": statuses}), flush=True)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def _child(request: dict[str, Any], rank: int) -> None:
    from cwdpo.cli import main
    from sharding_on_cpu import shard_on_cpu

    out = Path(request["out"])
    sys.stdin.close()
    for name, number in (("stdout", 1), ("stderr", 2)):
        descriptor = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    if request["ranks"] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_WORLD_SIZE": request["ranks"]}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"]}
        os.environ.update({name: str(value) for name, value in place.items()})
    if request["sharding"]:
        shard_on_cpu(request["sharding"])
    os.chdir(request["cwd"])
    sys.argv = ["cwdpo", *request["argv"]]
    counted = _watch(request, out) if request["watch"] else [0]
    if request["clock_jumps"]:
        _jump()
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        (out / "events").write_text(str(counted[0]), encoding="utf-8")
        os._exit(code if isinstance(code, int) else 1)


_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "sqlite3.connect"}


def _jump() -> None:
    """Put the clock a day back and forth at every look."""
    true_time, days = time.time, itertools.cycle([86400, -86400])
    time.time = lambda: true_time() + next(days)


def _watch(request: dict[str, Any], out: Path) -> list[int]:
    """Count what this process does to files under a folder; just before the `kill_at`-th, kill it or fill the disk."""
    folder, kill_on, fill, full_at = (request[key] for key in ("watch", "kill_on", "fill", "full_at"))
    counted, seen, struck = [0], [False], [False]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _FILE_EVENTS or not args or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if not isinstance(path, str) or not path.startswith(folder):
            return
        if event == "open" and len(args) > 2 and not int(args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        counted[0] += 1
        if full_at and counted[0] >= full_at and event == "open":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        strike, seen[0] = seen[0], seen[0] or (bool(kill_on) and kill_on in path.replace("/.", "/"))
        if not struck[0] and (counted[0] == request["kill_at"] or strike):
            struck[0] = True
            (out / "event").write_text(f"{event} {path[len(folder) + 1 :]}", encoding="utf-8")
            if not fill:
                os.kill(os.getpid(), signal.SIGKILL)
            fill_disk(Path(fill), request["spare"])

    sys.addaudithook(hook)
    return counted


def fill_disk(ballast: Path, spare: int = 0) -> None:
    """Write a file until its disk is full, and give some bytes back."""
    with ballast.open("ab", buffering=0) as handle, contextlib.suppress(OSError):
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    handle.write(bytes(size))
    os.truncate(ballast, max(0, ballast.stat().st_size - spare))


# -- comparing two runs ----------------------------------------------------------------------------------------------


def step_of(path: str) -> str:
    """The step of a run that a file of it belongs to."""
    parts = path.strip("/").split("/")
    return "/".join(parts[:2]) if parts[0] == "negatives" else parts[0]


def files_of(run: Path) -> list[str]:
    """Every file of a run directory."""
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.name != ".cwdpo.jsonl")


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs are bitwise the same, but for times and for the order of the rows in the reference's database."""
    assert files_of(one) == files_of(other)
    assert not [name for name in files_of(one) if ".tmp" in name or "checkpoint" in name]
    for name in files_of(one):
        a, b = one / name, other / name
        if a.name in _OF_ONE_CALL:
            continue
        if a.suffix == ".sqlite":
            assert _database(a) == _database(b), name
        elif a.suffix == ".jsonl":
            assert list(map(_timeless, rows_of(a))) == list(map(_timeless, rows_of(b))), name
        elif a.name in ("done.json", "manifest.json"):
            assert _timeless(json.loads(a.read_text())) == _timeless(json.loads(b.read_text())), name
        else:
            assert a.read_bytes() == b.read_bytes(), name


def _timeless(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {k: v for k, v in row.items() if k not in _TIMES and not k.startswith("speed/")}


def _database(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute("SELECT key, tokens FROM logps"))


def failures_left(folder: Path) -> Iterator[Path]:
    """What a command that failed must not leave behind."""
    return (p for p in folder.rglob("*") if p.name.endswith((".tmp", ".part", ".draft")))


if __name__ == "__main__":
    _serve()
