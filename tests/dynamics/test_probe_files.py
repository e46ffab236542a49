"""What is kept beside the readings, and the figures that came with the kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cwdpo.probes.reading import ProbeSet
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.training.callbacks.probe_writer import PromptFile, TokenFile
from tiny_training import fresh, rows, scores_of


def test_further_figures_against_plain_torch(tmp_path: Path) -> None:
    """Σ log max π per response, 1 − top-1, gold tokens that are the argmax, pairs ranked right, top tokens."""
    model, processor = fresh()
    groups = rows(4, tmp_path, responses=3)
    probes = ProbeSet(groups, PromptEncoder(processor), batch_size=3, floor=-3.0, tau=1.0)
    reading, _ = probes.read(model, SeparateScorer(), per_prompt=True, tokens=2)
    with torch.no_grad():
        batch, scores = scores_of(model, processor, groups)
        chosen, rejected = batch.pairs()
        gold = sorted(set(chosen))
        argmax = torch.where(scores.mask, scores.top1.log(), 0.0).sum(1)[gold].mean()
        assert reading["kinds"]["chosen"]["argmax_logp"] == pytest.approx(float(argmax), rel=1e-4)
        off = 1 - (scores.top1.sum(1) / scores.mask.sum(1))[gold].mean()
        assert reading["kinds"]["chosen"]["off_argmax"] == pytest.approx(float(off), rel=1e-4)
        assert reading["accuracy"] == pytest.approx(float(scores.correct[gold][scores.mask[gold]].float().mean()))
        mean = scores.logps.sum(1) / scores.mask.sum(1)
        assert reading["ranking"] == pytest.approx(float((mean[chosen] > mean[rejected]).float().mean()))

        shown = reading["top_tokens"]
        assert [row["id"] for row in shown] == ["row-0", "row-1"]
        only, _ = scores_of(model, processor, [groups[1].with_responses([groups[1].chosen])])
        expected = SeparateScorer()(model, only).logits.softmax(-1)
    assert len(shown[1]["places"]) == len(shown[1]["gold"]) == len(expected)
    for place, probabilities in zip(shown[1]["places"], expected, strict=True):
        best, ids = probabilities.topk(20)
        assert [p for _, p in place] == pytest.approx(best.tolist(), abs=1e-5)
        assert place[0][0] == processor.tokenizer.decode([int(ids[0])])


def test_prompt_file_by_hand(tmp_path: Path) -> None:
    """Changes of +1 and +3: mean 2, standard deviation √2, standard error √2/√2 = 1."""
    file = PromptFile(tmp_path)
    file.begin(write=True)
    first = [{"id": "a", "chosen": -3.0, "hard": -5.0}, {"id": "b", "chosen": -4.0}]
    errors = file.keep(0, first, write=True, floor=-3.0, tau=1.0)
    assert errors["chosen"] == 0
    assert math.isnan(errors["hard"])
    errors = file.keep(10, [{"id": "a", "chosen": -2.0}, {"id": "b", "chosen": -1.0}], write=True)
    assert errors["chosen"] == pytest.approx(1.0)
    lines = [json.loads(line) for line in (tmp_path / "probe_prompts.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "step": 0,
            "ids": ["a", "b"],
            "floor": -3.0,
            "tau": 1.0,
            "logp_mean": {"chosen": [-3.0, -4.0], "hard": [-5.0, None]},
        },
        {"step": 10, "logp_mean": {"chosen": [-2.0, -1.0]}},
    ]
    resumed = PromptFile(tmp_path)
    resumed.resume(5)
    assert resumed.keep(10, [{"id": "a", "chosen": -2.0}, {"id": "b", "chosen": -1.0}], write=True) == errors
    again = [json.loads(line) for line in (tmp_path / "probe_prompts.jsonl").read_text().splitlines()]
    assert again == lines


def test_token_file(tmp_path: Path) -> None:
    """The start stays, the last reading is replaced, also after a run was taken up again."""
    file = TokenFile(tmp_path)
    file.begin(write=True)
    file.keep(0, [{"id": "a", "places": [1]}], write=True)
    file.keep(10, [{"id": "a", "places": [2]}], write=True)
    again = TokenFile(tmp_path)
    again.resume()
    again.keep(20, [{"id": "a", "places": [3]}], write=True)
    found = json.loads((tmp_path / "probe_tokens.json").read_text())
    assert found == {"step": 20, "start": [{"id": "a", "places": [1]}], "last": [{"id": "a", "places": [3]}]}
