"""mDPO, V-DPO and OPA-DPO by hand: the terms that look at a second image."""

from __future__ import annotations

import math

import pytest
import torch

from cwdpo.losses import dpo, mdpo, opa_dpo, v_dpo
from pair_examples import assert_coefficients_measured, doubles, example_pairs


def softplus(x: float) -> float:
    """−log σ(−x)."""
    return math.log1p(math.exp(x))


def test_mdpo_by_hand():
    # First pair, β = .5: Δ_w = 1, Δ_l = −.5, under the crop Δ̃_w = 3. m = .75, .5·(1 − 3) = −1, anchor .5.
    pairs = example_pairs()
    altered = doubles(3.0, 1.0, -5.0).requires_grad_()
    result = mdpo(pairs, altered, beta=0.5)
    assert result.loss[0].item() == pytest.approx(softplus(-0.75) + softplus(1.0) + softplus(-0.5))
    # Second and third: the crop changes nothing, that term is log 2.
    plain = dpo(pairs, beta=0.5).loss
    assert result.loss[1].item() == pytest.approx(plain[1].item() + math.log(2) + softplus(-0.5))
    assert_coefficients_measured(pairs, mdpo(pairs, altered.detach(), beta=0.5))
    # Under the crop the winner is pushed down by β·σ(1).
    (gradient,) = torch.autograd.grad(result.loss.sum(), [altered])
    assert gradient[0].item() == pytest.approx(0.5 / (1 + math.exp(-1.0)))


def test_opa_dpo_by_hand():
    # The same pair: .2 of the image term, 1.5 of the anchor.
    pairs = example_pairs()
    result = opa_dpo(pairs, doubles(3.0, 1.0, -5.0), beta=0.5, image_weight=0.2, anchor_weight=1.5)
    assert result.loss[0].item() == pytest.approx(softplus(-0.75) + 0.2 * softplus(1.0) + 1.5 * softplus(-0.5))
    assert_coefficients_measured(pairs, result)
    alone = opa_dpo(pairs, doubles(3.0, 1.0, -5.0), image_weight=0.0, anchor_weight=0.0)
    assert torch.equal(alone.loss, dpo(pairs).loss)


def test_v_dpo_by_hand():
    # γ = 1.5: log p̂_w = 1.5·(−10) − .5·(−14) = −8, log p̂_l = 1.5·(−12) − .5·(−13) = −11.5.
    # m = .5·[(−8 + 11) − (−11.5 + 11.5)] = 1.5.
    pairs = example_pairs()
    null_w, null_l = doubles(-14.0, -8.0, -30.0).requires_grad_(), doubles(-13.0, -20.0, -72.0).requires_grad_()
    result = v_dpo(pairs, null_w, null_l, beta=0.5, guidance=1.5)
    assert result.margin[0].item() == pytest.approx(1.5)
    assert result.loss[0].item() == pytest.approx(softplus(-1.5))
    assert result.winner_coefficient[0].item() == pytest.approx(1.5 * 0.5 / (1 + math.exp(1.5)))
    assert_coefficients_measured(pairs, result)
    # Attached, the pass without the image is pushed by −(γ − 1)β(1 − a).
    attached = v_dpo(pairs, null_w, null_l, beta=0.5, guidance=1.5, detach_null=False)
    (gradient,) = torch.autograd.grad(attached.loss.sum(), [null_w])
    assert gradient[0].item() == pytest.approx(0.5 * 0.5 / (1 + math.exp(1.5)))


def test_v_dpo_with_guidance_1_is_dpo():
    pairs = example_pairs()
    null = doubles(-1.0, -2.0, -3.0)
    assert torch.equal(v_dpo(pairs, null, null, guidance=1.0).loss, dpo(pairs).loss)


def test_refusals():
    pairs = example_pairs()
    with pytest.raises(ValueError, match=r"altered_chosen_shift: shape \(1,\), must be \(3,\)"):
        mdpo(pairs, doubles(1.0))
    with pytest.raises(ValueError, match=r"guidance = 0\.0: must be finite and above 0"):
        v_dpo(pairs, doubles(0, 0, 0), doubles(0, 0, 0), guidance=0.0)
    with pytest.raises(ValueError, match=r"image_weight = -1\.0: must be finite and at least 0"):
        opa_dpo(pairs, doubles(0, 0, 0), image_weight=-1.0)
