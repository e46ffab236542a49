"""Models whose weights two processes share: what their checkpoints' parts are put into, and who works with whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from cwdpo.errors import RunError, UserError
from cwdpo.models.fsdp import load_shards, shards_of, share_weights
from cwdpo.processes import Processes
from sharding_on_cpu import in_processes
from tiny_models import tiny_model


def emptied() -> Any:
    model = tiny_model("qwen2_5_vl")
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


def test_parts_of_two_processes_make_a_whole_model(tmp_path: Path) -> None:
    """Two processes save theirs; one reads all weights, and two their own. A part that is cut is told in a line."""
    parts = tmp_path / "checkpoint" / "pytorch_model_fsdp_0"

    def keep(rank: int) -> None:
        save(
            {"model": get_model_state_dict(share_weights(tiny_model("qwen2_5_vl")))},
            storage_writer=FileSystemWriter(parts),
        )

    def read(rank: int) -> dict[str, torch.Tensor]:
        model = share_weights(emptied())
        load_shards(model, parts)
        return {name: tensor.full_tensor() for name, tensor in get_model_state_dict(model).items()}

    def refused(rank: int) -> str:
        try:
            load_shards(share_weights(emptied()), parts)
        except UserError as error:
            return str(error)
        return ""

    in_processes(2, keep, tmp_path / "keep")
    assert shards_of(parts.parent) == parts and shards_of(tmp_path) is None
    alone, wanted = emptied(), tiny_model("qwen2_5_vl").state_dict()
    load_shards(alone, parts)
    for found in (alone.state_dict(), *in_processes(2, read, tmp_path / "read")):
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)

    part = sorted(parts.glob("*.distcp"))[1]
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(RunError, match="the weights cannot be read"):
        load_shards(emptied(), parts)
    assert all("the weights cannot be read" in text for text in in_processes(2, refused, tmp_path / "refused"))


@pytest.mark.parametrize("in_step", [True, False])
def test_who_works_with_whom(in_step: bool, tmp_path: Path) -> None:
    """In step, the last job of a kind is done by both, and each hears of the other's; else each job is done alone."""
    jobs = ["a1", "a2", "a3", "b1", "b2"]

    def work(rank: int) -> list[tuple[str, list[str]]]:
        team = Processes(rank, 2, in_step=in_step)

        def do(job: str) -> tuple[str, list[str]]:
            return job, team.gather(job)

        return team.lead(lambda: list(team.map("do", jobs, do, alike=lambda job: job[0])), do=do)

    pairs = [["a1", "a2"], ["a1", "a2"], ["a3", "a3"], ["b1", "b2"], ["b1", "b2"]]
    heard = pairs if in_step else [[job] for job in jobs]
    assert in_processes(2, work, tmp_path / "work") == [list(zip(jobs, heard, strict=True))] * 2
