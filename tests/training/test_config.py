"""Arguments of the trainers: bad values are one line, a method is given by name or as an object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import HfArgumentParser

from cwdpo.errors import RecipeError
from cwdpo.methods import CWDPO, RPO, SFTC
from cwdpo.training.configs import CWDPOConfig, SFTCConfig


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (SFTCConfig, "objective", "dpo"),
        (SFTCConfig, "regularizer", "none"),
        (SFTCConfig, "nll_floor", 0.0),
        (SFTCConfig, "include_eos", "perhaps"),
        (CWDPOConfig, "objective", "sft"),
        (CWDPOConfig, "beta", 0.0),
        (CWDPOConfig, "floor", "low"),
        (CWDPOConfig, "tau", -1.0),
        (CWDPOConfig, "sft_weight", 1.0),
        (CWDPOConfig, "reference", "none"),
        (CWDPOConfig, "scorer", "fast"),
        (CWDPOConfig, "max_length", 0),
        (CWDPOConfig, "epochs", 3),
        (CWDPOConfig, "bta", 1),
    ],
)
def test_bad_values(config: type, key: str, value: Any, tmp_path: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        config(str(tmp_path), report_to=[], **{key: value})
    message = str(caught.value)
    assert message.startswith(f"{config.__name__}: ") and key in message
    assert "\n" not in message


def test_a_method_and_its_settings(tmp_path: Any) -> None:
    """By name, as a method, and with other arguments replaced: the same."""
    out = str(tmp_path)
    for made in (
        CWDPOConfig(out, report_to=[], objective="rpo", sft_weight=2, beta=0.2),
        CWDPOConfig(out, report_to=[], method=RPO(sft_weight=2, beta=0.2)),
        replace(CWDPOConfig(out, report_to=[], objective="rpo", sft_weight=2, beta=0.2), seed=7),
    ):
        assert made.method == made.section().method == RPO(sft_weight=2, beta=0.2)
        assert (made.objective, made.beta, made.reference) == ("rpo", 0.2, "cached")
        assert made.to_dict()["method"] == {"beta": 0.2, "sft_weight": 2}
    assert CWDPOConfig(out, report_to=[], objective="grpo").reference == "live"
    assert CWDPOConfig(out, report_to=[], floor=-5).method == CWDPO(floor=-5)
    assert SFTCConfig(out, report_to=[], nll_floor=3).method == SFTC(nll_floor=3)
    with pytest.raises(RecipeError, match="beta"):
        CWDPOConfig(out, report_to=[], method=RPO(), beta=0.3)


@pytest.mark.parametrize("config", [SFTCConfig, CWDPOConfig])
def test_arguments_from_the_command_line(config: Any, tmp_path: Any) -> None:
    """TRL's way of scripts: HfArgumentParser reads the fields."""
    line = ["--output_dir", str(tmp_path), "--report_to", "none", "--include_eos", "false", "--learning_rate", "3e-6"]
    (made,) = HfArgumentParser(config).parse_args_into_dataclasses(line)
    assert made.include_eos is False
    assert made.learning_rate == 3e-6
