"""What is kept when something goes wrong, and how the run goes on: every fault is made to happen to a small run.

    python benchmarks/faults.py --json faults.json

Each fault strikes `cwdpo train` on a tiny model from the tests. The exit code and the line that the user sees are
compared with what docs/faults.md promises; then the same command (or the one that the line asks for) is run again, and
its directory is compared with that of an uninterrupted run, byte by byte but for times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cwdpo.outputs import OwnedFolder
from tiny_models import tiny
from tiny_runs import Call, CliServer, assert_same_run, tiny_recipe, write_yaml

SAME = "bitwise the same end"


@dataclass
class Row:
    """A line of the table."""

    fault: str
    code: int
    line: str
    kept: str
    goes_on: str
    green: bool = True


class Bench:
    """A small run, whole once, to which faults are made to happen."""

    def __init__(self, server: CliServer, folder: Path, model: Path) -> None:
        self.server, self.folder, self.model = server, folder, model
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe = self.write("recipe", self.values())
        self._runs = 0

    def values(self, **changes: Any) -> dict[str, Any]:
        mix = {"dataset": 1, "other": 1, "sample": 1, "max_new_tokens": 5, "batch_size": 4}
        return tiny_recipe(self.model, **{"negatives": {"stage1": mix, "stage2": mix}, **changes})

    def write(self, name: str, values: dict[str, Any]) -> Path:
        return write_yaml(self.folder / f"{name}.yaml", values)

    @cached_property
    def whole(self) -> Path:
        call = self.train(run := self.folder / "whole", watch=self.folder / "whole")
        assert call.wait() == 0, call.stderr
        self.events = call.events
        return run

    def train(self, run: Path, *more: str, recipe: Path | None = None, **how: Any) -> Call:
        return self.server.start("train", recipe or self.recipe, "--out", run, *more, **how)

    def new(self) -> Path:
        self._runs += 1
        return self.folder / f"run-{self._runs}"

    def begun(self, place: str, **how: Any) -> tuple[Path, Call]:
        """A call that has got to a place."""
        _ = self.whole
        call = self.train(run := self.new(), **how)
        end = time.monotonic() + 120
        while not (run / place).exists():
            assert time.monotonic() < end, f"{place} never came: {call.stderr}"
            time.sleep(0.002)
        return run, call

    def again(self, run: Path, **how: Any) -> str:
        """Run the same command; say how it ends."""
        call = self.train(run, **how)
        assert set(call.codes()) == {0}, call.stderr
        assert_same_run(self.whole, run)
        return SAME


def last_line(call: Call) -> str:
    lines = [line for line in call.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]
    return lines[-1] if lines else ""


def stopped(bench: Bench, number: int, place: str, kept: str, code: int, fault: str) -> Row:
    run, call = bench.begun(place)
    call.signal(number)
    found, line = call.wait(), last_line(call)
    assert found == code and (code < 0 or "the same command again" in line), (found, call.stderr)
    return Row(fault, found, line, kept, bench.again(run))


def killed(bench: Bench) -> Row:
    return stopped(
        bench,
        signal.SIGKILL,
        "stage1/checkpoints/checkpoint-2/complete.json",
        "the last checkpoint",
        -9,
        "kill -9 in Stage 1",
    )


def preempted(bench: Bench) -> Row:
    return stopped(
        bench,
        signal.SIGTERM,
        "stage1/checkpoints/checkpoint-2",
        "a checkpoint of that update",
        75,
        "SIGTERM in Stage 1 (pre-emption)",
    )


def preempted_early(bench: Bench) -> Row:
    return stopped(
        bench,
        signal.SIGTERM,
        "negatives/stage1/sample.jsonl",
        "every whole batch of texts",
        75,
        "SIGTERM while negatives are written",
    )


def interrupted(bench: Bench) -> Row:
    return stopped(
        bench, signal.SIGINT, "stage2/checkpoints/checkpoint-2", "a checkpoint of that update", 130, "Ctrl-C in Stage 2"
    )


def full_disk(bench: Bench) -> Row:
    _ = bench.whole
    call = bench.train(run := bench.new(), watch=run, full_at=bench.events // 2)
    code, line = call.wait(), last_line(call)
    assert code == 2 and "No space left on device" in line, call.stderr
    return Row("disk full half-way", code, line, "steps and checkpoints before", bench.again(run))


def read_only(bench: Bench) -> Row:
    (bench.folder / "file").touch()
    call = bench.train(bench.folder / "file" / "run")
    code, line = call.wait(), last_line(call)
    assert code == 2 and "cannot be written" in line, call.stderr
    return Row("output folder cannot be written", code, line, "nothing was begun", "with another --out")


def cut_short(bench: Bench) -> Row:
    run, call = bench.begun("stage1/checkpoints/checkpoint-4/complete.json")
    call.signal(signal.SIGKILL)
    call.wait()
    for name in ("optimizer.pt", "model.safetensors"):
        file = run / "stage1" / "checkpoints" / "checkpoint-4" / name
        file.write_bytes(file.read_bytes()[:-1])
    call = bench.train(run)
    assert call.wait() == 0, call.stderr
    said = next(line.strip() for line in call.stderr.splitlines() if "cut short" in line)
    assert_same_run(bench.whole, run)
    return Row("newest checkpoint cut short", 0, said, "the checkpoint before", SAME)


def two_runs(bench: Bench) -> Row:
    run = bench.new()
    with OwnedFolder(run, "train"):
        call = bench.train(run)
        code, line = call.wait(), last_line(call)
    assert code == 2 and "another command is at work" in line, call.stderr
    return Row("two runs in one directory", code, line, "the first continues", bench.again(run))


def data_changed(bench: Bench) -> Row:
    rows = bench.folder / "rows.jsonl"
    source = bench.whole / "data" / "scenes"
    text = (source / "train.jsonl").read_text(encoding="utf-8").replace("images/", f"{source}/images/")
    rows.write_text(text, encoding="utf-8")
    values = bench.values(data={"path": str(rows), "held_out": 10}, stage2={"enabled": False})
    values["data"].pop("size")
    recipe = bench.write("rows", values)
    call = bench.train(run := bench.new(), recipe=recipe)
    assert call.wait() == 0, call.stderr
    rows.write_text(text.replace("circle", "oval", 1), encoding="utf-8")
    call = bench.train(run, recipe=recipe)
    code, line = call.wait(), last_line(call)
    assert code == 2 and "the data file has changed" in line, call.stderr
    rows.write_text(text, encoding="utf-8")
    call = bench.train(run, recipe=recipe)
    assert call.wait() == 0, call.stderr
    return Row(
        "data file changed under a run", code, line, "everything", "when the file is put back, or with another --out"
    )


def model_changed(bench: Bench) -> Row:
    model = bench.folder / "model"
    shutil.copytree(bench.model, model)
    recipe = bench.write("model", bench.values(model={"path": str(model)}, stage2={"enabled": False}))
    call = bench.train(run := bench.new(), recipe=recipe)
    assert call.wait() == 0, call.stderr
    config = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(config.replace("{", '{"note": "other",', 1), encoding="utf-8")
    call = bench.train(run, recipe=recipe)
    code, line = call.wait(), last_line(call)
    assert code == 2 and "has changed since" in line, call.stderr
    return Row(
        "model changed under a run", code, line, "everything", "when the model is put back, or with another --out"
    )


def dead_rank(bench: Bench) -> Row:
    call = bench.train(whole := bench.new(), ranks=2)
    assert call.codes() == [0, 0], call.stderr
    run, call = bench.begun("stage1/checkpoints/checkpoint-2", ranks=2)
    os.kill(call.pids[1], signal.SIGKILL)
    codes, line = call.codes(), last_line(call)
    assert codes == [2, -9] and "another process of this run has ended" in line, call.stderr
    call = bench.train(run, ranks=2)
    assert call.codes() == [0, 0], call.stderr
    assert_same_run(whole, run)
    return Row("one of two processes is killed", codes[0], line, "the last checkpoint", SAME)


def not_finite(bench: Bench) -> Row:
    recipe = bench.write("nan", bench.values(stage1={"learning_rate": 1e36}, probes={"every": 0}))
    call = bench.train(run := bench.new(), recipe=recipe)
    code, line = call.wait(), last_line(call)
    assert code == 2 and "nothing was updated. Rows: " in line, call.stderr
    assert not (run / "stage1" / "done.json").exists()
    return Row("loss or gradient not finite", code, line, "all before that update", "with another recipe and --out")


def clock(bench: Bench) -> Row:
    call = bench.train(run := bench.new(), clock_jumps=True)
    assert call.wait() == 0, call.stderr
    assert_same_run(bench.whole, run)
    return Row("clock jumps by a day, to and fro", 0, "", "everything", SAME)


def hub_away(bench: Bench) -> Row:
    recipe = bench.write("hub", bench.values(model={"path": "nobody/such-a-model"}))
    call = bench.train(bench.new(), recipe=recipe)
    code, line = call.wait(), last_line(call)
    assert code == 2 and "nobody/such-a-model" in line, call.stderr
    return Row("hub away, model not on disk", code, line, "nothing was begun", "when the hub is back")


def server_away(bench: Bench) -> Row:
    values = bench.values(stage2={"enabled": False})
    values["negatives"]["stage1"] = {"dataset": 1, "edit": 1, "max_new_tokens": 5, "batch_size": 4}
    values["negatives"]["editor"] = {"base_url": "http://127.0.0.1:9/v1", "model": "none"}
    values["negatives"]["editor"] |= {"attempts": 1, "timeout": 2}
    call = bench.train(run := bench.new(), recipe=bench.write("server", values))
    code, line = call.wait(), last_line(call)
    assert code == 2 and "127.0.0.1:9" in line, call.stderr
    assert (run / "data" / "done.json").exists()
    return Row("editor's server away", code, line, "data, and what it had answered", "when the server is back")


FAULTS: dict[str, Callable[[Bench], Row]] = {
    f.__name__: f
    for f in (
        killed, preempted, preempted_early, interrupted, full_disk, read_only, cut_short, two_runs, data_changed,
        model_changed, dead_rank, not_finite, clock, hub_away, server_away,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are kept; those of other faults stay")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), help="some of them")
    asked = parser.parse_args()
    known = json.loads(asked.json.read_text(encoding="utf-8"))["faults"] if asked.json and asked.json.is_file() else []
    rows = {row["fault"]: Row(**row) for row in known}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = CliServer(folder / "calls")
        bench = Bench(server, folder / "bench", tiny("qwen2_5_vl", folder / "model"))
        for what in asked.only:
            try:
                row = FAULTS[what](bench)
            except AssertionError as error:
                row = Row(what, -1, str(error)[-300:], "?", "?", green=False)
            row.line = row.line.replace(str(folder), "…")
            rows[row.fault] = row
            print(
                f"{'green' if row.green else 'RED  '}  {row.fault}: exit {row.code}; kept: {row.kept}; {row.goes_on}",
                flush=True,
            )
            if asked.json:
                kept = [asdict(r) for r in rows.values()]
                asked.json.write_text(
                    json.dumps({"faults": kept}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
        server.close()
    sys.exit(any(not row.green for row in rows.values()))


if __name__ == "__main__":
    main()
