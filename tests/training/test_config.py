"""Arguments: bad values are one line; every field of ours is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from cwdpo.errors import RecipeError
from cwdpo.recipe import Stage1Section, Stage2Section
from cwdpo.training.configs import CWDPOConfig, SFTCConfig

BAD: list[tuple[type, str, Any]] = [
    (SFTCConfig, "objective", "dpo"),
    (SFTCConfig, "regularizer", "none"),
    (SFTCConfig, "weight", -0.1),
    (SFTCConfig, "nll_floor", 0.0),
    (SFTCConfig, "hinge_scope", "batch"),
    (SFTCConfig, "nll_reduction", "max"),
    (SFTCConfig, "epsilon", 1.0),
    (SFTCConfig, "include_eos", "perhaps"),
    (CWDPOConfig, "objective", "sft"),
    (CWDPOConfig, "beta", 0.0),
    (CWDPOConfig, "floor", "low"),
    (CWDPOConfig, "tau", -1.0),
    (CWDPOConfig, "detach", "perhaps"),
    (CWDPOConfig, "w_min", 1.5),
    (CWDPOConfig, "renormalise", 7),
    (CWDPOConfig, "shift_weight", 2.0),
    (CWDPOConfig, "sft_weight", -1.0),
    (CWDPOConfig, "reference", "none"),
    (CWDPOConfig, "scorer", "fast"),
    (CWDPOConfig, "max_length", 0),
]


@pytest.mark.parametrize(("config", "key", "value"), BAD, ids=[f"{c.__name__}-{k}" for c, k, _ in BAD])
def test_bad_values(config: type, key: str, value: Any, tmp_path: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        config(str(tmp_path), report_to=[], **{key: value})
    message = str(caught.value)
    assert message.startswith(f"{config.__name__}: {key} = {value!r}: ")
    assert "\n" not in message


@pytest.mark.parametrize(("config", "section"), [(SFTCConfig, Stage1Section), (CWDPOConfig, Stage2Section)])
def test_fields_are_the_recipe_s(config: Any, section: Any, tmp_path: Any) -> None:
    """Names, defaults and descriptions of the objective's fields are those of the recipe."""
    ours = {f.name: f for f in dataclasses.fields(config)}
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    shared = {name for name in ours if name in section.model_fields and name not in inherited}
    assert len(shared) >= 8
    made = config(str(tmp_path), report_to=[])
    for name in shared:
        assert getattr(made, name) == section.model_fields[name].default
        assert ours[name].metadata["help"] == section.model_fields[name].description
    given = {name: section.model_fields[name].default for name in shared}
    assert made.section() == section(**given)
    assert {f for f in ours if f not in inherited} - shared >= {"max_length", "scorer"}


def test_what_the_loop_needs(tmp_path: Any) -> None:
    made = CWDPOConfig(str(tmp_path), report_to=[])
    assert made.remove_unused_columns is False
    assert made.label_names == []


@pytest.mark.parametrize("config", [SFTCConfig, CWDPOConfig])
def test_arguments_from_the_command_line(config: Any, tmp_path: Any) -> None:
    """TRL's way of scripts: HfArgumentParser reads the fields."""
    line = ["--output_dir", str(tmp_path), "--report_to", "none", "--include_eos", "false", "--learning_rate", "3e-6"]
    (made,) = HfArgumentParser(config).parse_args_into_dataclasses(line)
    assert made.include_eos is False
    assert made.learning_rate == 3e-6
