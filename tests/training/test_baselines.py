"""Every objective of Stage 2 trains; those with a second image against a naive computation with altered files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_trainers import TRL_METRICS
from torch.nn.functional import logsigmoid

from cwdpo.data.alterations import Alteration
from cwdpo.data.images import open_image
from cwdpo.data.schema import ImageRef, PromptGroup
from cwdpo.methods import DPO
from cwdpo.methods.base import METHODS, Needs
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.full_sequence import SeparateScorer
from cwdpo.training.configs import CWDPOConfig
from cwdpo.training.trainers import CWDPOTrainer
from tiny_training import (
    QUIET,
    differing,
    fresh,
    largest_difference,
    logps_of,
    rows,
    scores_of,
    train_dpo,
    weights,
)

PAIRS = {name: m() for name, m in METHODS.all().items() if m.stage == "stage2" and not m.on_policy}
VARIANTS: dict[str, dict[str, Any]] = {name: {"objective": name} for name in PAIRS} | {
    "cw_dpo bounded": {"bound_pull": True},
    "cw_dpo differing": {"cooling_span": "differing"},
    # It pulls by 2 · 5 nats where DPO pulls by β/2.
    "sppo": {"objective": "sppo", "learning_rate": 5e-5},
    # Its loss rises at first as the exponential takes over, narrowly so at a width of 0.05.
    "discopop": {"objective": "discopop", "blend_width": 1.0},
    # A random model finds every response unlikely: the weight of a pair is about exp(−16).
    "wpo": {"objective": "wpo", "learning_rate": 1e4},
}


def reads_more(name: str) -> bool:
    """Whether a loss reads more than the pair: those that do not differ in values alone."""
    return name not in PAIRS or name == "dpo" or replace(PAIRS[name].needs, reference=True) != Needs()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if reads_more(n) else pytest.mark.slow) for n in VARIANTS])
def test_trains_in_any_cut(name: str, tmp_path: Path) -> None:
    """Six updates of 4 prompts: the margin grows, TRL's metrics are logged, any cut of a batch does."""
    groups, found, start = rows(4, tmp_path, images=1, responses=[2, 3]), [], weights(fresh()[0])
    groups = [g.with_responses([replace(r, score=0.3 * i) for i, r in enumerate(g.responses)]) for g in groups]
    method = PAIRS.get(name, DPO())
    for micro in (4,) if method.needs.whole_batch else (4, 1):
        cut = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        run = tmp_path / f"{micro}"
        trainer = train_dpo(*fresh(), groups, run, num_train_epochs=6, floor=-7.0, **cut | VARIANTS[name])
        found.append(trainer)
        assert (run / "reference").exists() == method.needs.reference
    logged = [row for row in found[0].state.log_history if "loss" in row]
    assert len(logged) == 6
    assert all(metric in row for row in logged for metric in TRL_METRICS)
    assert logged[-1]["rewards/margins"] > logged[0]["rewards/margins"]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert largest_difference(weights(found[-1].model), weights(found[0].model), start) < 5e-5


def with_pictures(groups: list[PromptGroup], kind: Any, seed: int) -> list[PromptGroup]:
    """The same rows with altered pictures in memory, without any of the machinery of twins."""

    def altered(group: PromptGroup) -> PromptGroup:
        named = "" if kind == "blank" else f"{seed}/{group.id}/0"
        picture = Alteration(kind, named).apply(open_image(group.images[0]))
        return replace(group, images=(ImageRef(picture=picture),))

    return [altered(group) for group in groups]


@pytest.mark.parametrize(("name", "kind"), [("mdpo", "crop"), ("opa_dpo", "mask"), ("v_dpo", "blank")])
def test_second_image_against_a_naive_computation(name: str, kind: str, tmp_path: Path) -> None:
    """The second update's loss, from scores of two separate passes; the first has all log-ratios 0."""
    groups = rows(4, tmp_path, images=1, responses=2)
    args: dict[str, Any] = {"objective": name, "per_device_train_batch_size": 4, "beta": 0.5, "learning_rate": 0.05}
    once = train_dpo(*fresh(), groups, tmp_path / "one", max_steps=1, **args)
    twice = train_dpo(*fresh(), groups, tmp_path / "two", max_steps=2, **args)
    pictures = with_pictures(groups, kind, seed=3)  # the seed of QUIET
    model, processor = fresh()
    own, other = (logps_of(once.model, processor, g) for g in (groups, pictures))
    start, start_other = (logps_of(model, processor, g) for g in (groups, pictures))
    shift, shift_other = own - start, other - start_other
    batch, _ = scores_of(model, processor, groups)
    w, l = batch.pairs()  # noqa: E741
    if name == "v_dpo":
        guided = 1.5 * own - 0.5 * other - start
        want = -logsigmoid(0.5 * (guided[w] - guided[l]))
    else:
        seen, anchor = 0.5 * (shift - shift_other)[w], 0.5 * shift[w]
        image = 1.0 if name == "mdpo" else 0.2
        want = -logsigmoid(0.5 * (shift[w] - shift[l])) - image * logsigmoid(seen) - logsigmoid(anchor)
    logged = [row["loss"] for row in twice.state.log_history if "loss" in row]
    assert logged[1] == pytest.approx(float(want.mean()), rel=1e-5)
    assert abs(logged[1] - logged[0]) > 1e-4


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize(("name", "scored"), [("v_dpo", 8), ("mdpo", 12)])
def test_the_reference_scores_what_the_loss_takes(name: str, scored: int, reference: str, tmp_path: Path) -> None:
    """4 prompts of 2 responses: V-DPO's reference looks at no grey image, mDPO's at 4 chosen ones under a crop."""
    asked: list[int] = []

    class Counted(SeparateScorer):
        def __call__(self, model: Any, batch: Batch) -> Any:
            asked.append(len(batch.responses))
            return super().__call__(model, batch)

    settings = {"objective": name, "reference": reference, "per_device_train_batch_size": 4, "max_steps": 1}
    model, processor = fresh()
    trainer = CWDPOTrainer(
        model,
        args=CWDPOConfig(str(tmp_path / "run"), **QUIET | settings),
        train_dataset=rows(4, tmp_path, images=1, responses=2),
        processing_class=processor,
        scorer=Counted(),
    )
    trainer.train()
    assert asked == [scored, {"v_dpo": 16, "mdpo": 12}[name]]


def test_live_and_cached_reference_by_token(tmp_path: Path) -> None:
    """Cooling the differing span needs the reference token by token, from either."""
    groups, args = rows(4, tmp_path, images=1), {"cooling_span": "differing", "floor": -7.0, "num_train_epochs": 2}
    found = [
        train_dpo(*fresh(), groups, tmp_path / kind, reference=kind, per_device_train_batch_size=2, **args)
        for kind in ("cached", "live")
    ]
    start = weights(fresh()[0])
    assert largest_difference(weights(found[0].model), weights(found[1].model), start) < 2e-5
    whole = train_dpo(
        *fresh(), groups, tmp_path / "whole", per_device_train_batch_size=2, floor=-7.0, num_train_epochs=2
    )
    assert differing(weights(found[0].model), weights(whole.model))
