"""Objectives with a second image: the twin of a prompt, which rows belong together, and their losses by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.data.schema import CHOSEN, REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import DataError
from cwdpo.methods.base import METHODS
from cwdpo.objectives import objective_of
from cwdpo.objectives.preference import Twins, altered_rows
from cwdpo.scoring.batch import Batch, EncodedGroup, EncodedResponse, Scores
from cwdpo.scoring.collator import GroupCollator, PromptEncoder
from pair_examples import softplus
from tiny_models import sample_groups, tiny_processor


def group(images: int = 1) -> PromptGroup:
    answers = (Response("gold"), Response("revised", source="edit"), Response("own", REJECTED), Response("x", "probe"))
    refs = tuple(ImageRef(path=f"{i}.png") for i in range(images))
    return PromptGroup("r1", refs, (user_message("?", images),), answers, origin="rows.jsonl:1")


def test_twins() -> None:
    """Roles of their own, every image altered with a seed of its own, by run and row."""
    twin = Twins("crop", (CHOSEN,), 7)(group(2))
    assert [(r.role, r.text) for r in twin.responses] == [("altered_chosen", "gold"), ("altered_chosen", "revised")]
    assert [ref.altered.name for ref in twin.images if ref.altered] == ["crop 7/r1/0", "crop 7/r1/1"]
    assert twin.id == "r1" and twin.messages == group(2).messages
    blank = Twins("blank", (CHOSEN, REJECTED), 7)(group())
    assert [r.role for r in blank.responses] == ["altered_chosen", "altered_chosen", "altered_rejected"]
    assert blank.images[0].altered is not None and blank.images[0].altered.name == "blank "


def test_a_prompt_without_an_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: has no image, and this objective compares with an altered"):
        Twins("crop", (CHOSEN,))(group(0))


def test_the_collator_puts_twins_last(tmp_path: Path) -> None:
    """The same prompt and responses, other pixels, other keys for the caches of reference and image features."""
    groups = sample_groups(3, tmp_path, images=1, responses=2)
    collator = GroupCollator(PromptEncoder(tiny_processor("qwen2_5_vl")), Twins("crop", (CHOSEN,), 1))
    batch, again = (collator(groups)["batch"] for _ in range(2))
    assert [g.altered for g in batch.groups] == [False] * 3 + [True] * 3
    assert batch.prompts == 3
    for one, other, same in zip(batch.groups[:3], batch.groups[3:], again.groups[3:], strict=True):
        assert one.prefix_ids == other.prefix_ids and one.responses[0].ids == other.responses[0].ids
        assert one.image_key != other.image_key and one.responses[0].key != other.responses[0].key
        assert not torch.equal(one.vision["pixel_values"], other.vision["pixel_values"])
        assert torch.equal(other.vision["pixel_values"], same.vision["pixel_values"])
        assert other.responses[0].key == same.responses[0].key
    assert batch.pairs() == ([0, 2, 4], [1, 3, 5])
    assert altered_rows(batch, [0, 2, 4]) == [6, 7, 8]


# One prompt: gold −1, −1; revised −1; own −2, −2. Sums −2, −1, −4; reference −3, −1.5, −3: Δ = 1, .5, −1.
# Under the altered image: gold −4, revised −2, own −3; reference −3, −3, −3: Δ̃ = −1, 1, 0.
ROWS: list[tuple[str, tuple[int, ...], list[float], float]] = [
    ("chosen", (1, 2), [-1.0, -1.0], -3.0),
    ("chosen", (3,), [-1.0], -1.5),
    ("rejected", (1, 4), [-2.0, -2.0], -3.0),
]
ALTERED = {"chosen": [([-2.0, -2.0], -3.0), ([-2.0], -3.0)], "rejected": [([-1.5, -1.5], -3.0)]}


def made(roles: tuple[str, ...]) -> tuple[Batch, Scores, torch.Tensor]:
    rows = list(ROWS)
    twins: list[tuple[str, tuple[int, ...], list[float], float]] = []
    left = {role: list(values) for role, values in ALTERED.items()}
    for role, ids, _, _ in ROWS:
        if role in roles:
            logps, reference = left[role].pop(0)
            twins.append((f"altered_{role}", ids, logps, reference))
    groups = [
        EncodedGroup(
            "r", "rows.jsonl:1", (1,), {}, {},
            tuple(EncodedResponse(ids, role, "dataset", None, "k") for role, ids, _, _ in part),
            altered=altered,
        )
        for part, altered in ((rows, False), (twins, True))
    ]  # fmt: skip
    whole = rows + twins
    logps = torch.tensor([row[2] + [0.0] * (2 - len(row[2])) for row in whole]).requires_grad_()
    mask = torch.tensor([[c < len(row[2]) for c in range(2)] for row in whole])
    scores = Scores(logps, mask, mask * 1.0, logps.detach(), mask * 0.5, mask)
    return Batch(tuple(groups)), scores, torch.tensor([row[3] for row in whole])


def run(roles: tuple[str, ...], objective: str, **settings: Any) -> tuple[float, dict[str, float], torch.Tensor]:
    trained = objective_of(METHODS.find(objective)(beta=0.5, **settings))
    batch, scores, reference = made(roles)
    found = trained(batch, scores, reference, trained.counts(batch), None)
    found.loss.backward()
    assert scores.logps.grad is not None
    return float(found.loss.detach()), found.tally.means(), scores.logps.grad


def test_mdpo() -> None:
    """Gold against own: m = .5·(1 + 1) = 1; image .5·(1 + 1) = 1; anchor .5. The revised answer has no part."""
    loss, means, gradient = run(("chosen",), objective="mdpo")
    assert loss == pytest.approx(2 * softplus(-1.0) + softplus(-0.5), rel=1e-6)
    assert means["rewards/altered"] == -0.5
    assert means["rewards/chosen"] == 0.5
    sigma = 0.5 / (1 + math.exp(1.0))  # β(1 − σ(1))
    winner = 2 * sigma + 0.5 / (1 + math.exp(0.5))
    assert gradient[0].tolist() == pytest.approx([-winner] * 2, rel=1e-5)
    assert gradient[3].tolist() == pytest.approx([sigma] * 2, rel=1e-5)  # gold under the crop is pushed down
    assert gradient[1].abs().sum() == 0 and gradient[4].abs().sum() == 0


def test_opa_dpo() -> None:
    """Both chosen ones: gold as above; revised m = .5·(.5 + 1) = .75, image .5·(.5 − 1) = −.25, anchor .25."""
    loss, means, _ = run(("chosen",), objective="opa_dpo", image_weight=0.2, anchor_weight=1.0)
    gold = softplus(-1.0) + 0.2 * softplus(-1.0) + softplus(-0.5)
    revised = softplus(-0.75) + 0.2 * softplus(0.25) + softplus(-0.25)
    assert loss == pytest.approx((gold + revised) / 2, rel=1e-6)
    assert means["rewards/chosen"] == pytest.approx(0.5 * (1 + 0.5) / 2)
    assert means["rewards/altered"] == pytest.approx(0.5 * (-1 + 1) / 2)


@pytest.mark.parametrize("detach", [True, False])
def test_v_dpo(detach: bool) -> None:
    """p̂: gold 1.5·(−2) − .5·(−4) = −1, own 1.5·(−4) − .5·(−3) = −4.5; m = .5·[(−1 + 3) − (−4.5 + 3)] = 1.75."""
    loss, means, gradient = run(("chosen", "rejected"), objective="v_dpo", guidance=1.5, detach_null=detach)
    assert loss == pytest.approx(softplus(-1.75), rel=1e-6)
    assert means["logps/null_chosen"] == -4.0 and means["logps/null_rejected"] == -3.0
    pull = 0.5 / (1 + math.exp(1.75))
    assert gradient[0].tolist() == pytest.approx([-1.5 * pull] * 2, rel=1e-5)
    assert gradient[3].tolist() == pytest.approx([0.0 if detach else 0.5 * pull] * 2, rel=1e-5)


def test_cooling_of_the_differing_span() -> None:
    """Gold 1 2 and own 1 4 share their first token: the span is −2 against a reference of −1.25, w = σ((−2 + 3)/1).

    Δ_s = −.75; shared Δ = −2 + 1.75 = −.25; m′ = .5·(1 + .25 + .75·σ(1)).
    """
    objective = objective_of(METHODS.find("cw_dpo")(beta=0.5, cooling_span="differing"))
    assert objective.tokenwise_reference
    batch, scores, _ = made(())
    batch = Batch(batch.groups[:1])
    reference = torch.tensor([[-1.5, -1.5], [-1.5, 0.0], [-1.75, -1.25]])
    found = objective(batch, scores, reference, {"pairs": 1.0}, None)
    weight = 1 / (1 + math.exp(-1.0))
    margin = 0.5 * (1 + 0.25 + 0.75 * weight)
    assert float(found.loss.detach()) == pytest.approx(softplus(-margin), rel=1e-6)
    found.loss.backward()
    assert scores.logps.grad is not None
    pull = 0.5 / (1 + math.exp(margin))
    # The shared token of the loser is pushed as hard as the winner's is pulled, the other one w times that.
    assert scores.logps.grad[:3].tolist() == [
        pytest.approx([-pull, -pull], rel=1e-5), [0.0, 0.0], pytest.approx([pull, weight * pull], rel=1e-5)
    ]  # fmt: skip


def test_simpo_has_no_reference() -> None:
    """Means −1 and −2: m = 2·(−1 + 2) − 1 = 1; rewards are β·ℓ̄, as TRL's CPOTrainer logs them."""
    objective = objective_of(METHODS.find("simpo")())
    assert not objective.needs_reference and objective.twin is None
    batch, scores, _ = made(())
    found = objective(Batch(batch.groups[:1]), scores, None, {"pairs": 1.0}, None)
    assert float(found.loss.detach()) == pytest.approx(softplus(-1.0), rel=1e-6)
    means = found.tally.means()
    assert (means["rewards/chosen"], means["rewards/rejected"]) == (-2.0, -4.0)
