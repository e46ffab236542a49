"""The same updates as TRL's DPOTrainer. Written against trl 1.16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_trainers import TRL_METRICS, trl_rows

from tiny_training import QUIET, clone, fresh, largest_difference, rows, train_dpo, weights

trl = pytest.importorskip("trl")

# TRL trains on everything that the template writes of an answer, so also on a new line after the end-of-turn token
# (ChatML) or on a trailing blank without any end (Vicuna). We end a response with its end-of-turn token. Templates that
# write nothing after it, and the start token themselves (TRL adds none), make the sequences of both the same.
TEMPLATES = {
    "llava": "<s>{% for m in messages %}{{ m['role'] | upper }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %} <image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "qwen2_5_vl": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% if m['role'] != 'assistant' %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("scorer", ["auto", pytest.param("separate", marks=pytest.mark.slow)])
def test_updates_equal_trl(family: str, scorer: str, tmp_path: Path) -> None:
    """Loss, gradient norm and every metric of four updates agree to 1e-5, and so do the weights after them."""
    model, processor = fresh(family)
    processor.chat_template = TEMPLATES[family]
    table = trl_rows(rows(8, tmp_path, images=1))
    args: dict[str, Any] = QUIET | {"per_device_train_batch_size": 2, "max_steps": 4, "beta": 0.1}
    theirs = trl.DPOTrainer(
        clone(model),
        clone(model),
        args=trl.DPOConfig(str(tmp_path / "trl"), bf16=False, activation_checkpointing=False, max_length=None, **args),
        train_dataset=table,
        processing_class=processor,
    )
    theirs.train()
    start = weights(model)
    ours = train_dpo(clone(model), processor, table, tmp_path / "ours", objective="dpo", scorer=scorer, **args)
    want, got = ([row for row in t.state.log_history if "loss" in row] for t in (theirs, ours))
    assert [row["step"] for row in want] == [row["step"] for row in got] == [1, 2, 3, 4]
    assert len({row["loss"] for row in want}) == 4
    for one, other in zip(got, want, strict=True):
        for name in ("loss", "grad_norm", *TRL_METRICS):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    assert largest_difference(weights(ours.model), weights(theirs.model), start) < 2e-5
