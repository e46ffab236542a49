"""Every response of a data file, scored under a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cwdpo.data import DataSource, load_groups
from cwdpo.errors import RecipeError
from cwdpo.methods.cooling import cooling_weight
from cwdpo.models.modes import inference
from cwdpo.scoring.batch import Batch
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.open_model import open_model
from cwdpo.scoring.scorer import AutoScorer

__all__ = ["score_responses"]


def score_responses(
    model: str, data: Path | DataSource, *, reference: str | None, floor: float, tau: float, batch_size: int
) -> list[dict[str, Any]]:
    """Return a row for each response: id, role, text, logp_sum, logp_mean, tokens, entropy; with a reference Δ and w_c.

    Args:
        model: Model directory or hub id.
        data: Rows with responses, in any known format, or how they are read.
        reference: Model that Δ is taken against.
        floor: ℓ_floor of w_c, nats per token.
        tau: τ of w_c, nats.
        batch_size: Prompts at once.

    Raises:
        UserError: A model, the data or a setting cannot be used.
    """
    if not (tau > 0 and math.isfinite(tau) and math.isfinite(floor)):
        raise RecipeError(f"--floor {floor:g} --tau {tau:g}: must be finite, and τ greater than 0")
    source = data if isinstance(data, DataSource) else DataSource(path=data, require="response")
    groups = list(load_groups(source).groups)
    policy, encoder = open_model(model)
    other = open_model(reference) if reference is not None else None
    scorer, rows = AutoScorer(), list[dict[str, Any]]()
    for start in range(0, len(groups), batch_size):
        part = groups[start : start + batch_size]
        batch = Batch(tuple(encoder.encode(g) for g in part))
        with inference(policy):
            scores = scores_from_logits(scorer(policy, batch))
            entropy = scores.mean_over_tokens(scores.entropy)
        columns = {"logp_sum": scores.logp_sum, "logp_mean": scores.logp_mean}
        columns |= {"tokens": scores.tokens, "entropy": entropy}
        if other is not None:
            theirs = Batch(tuple(other[1].encode(g) for g in part))
            with inference(other[0]):
                columns["delta"] = scores.logp_sum - scores_from_logits(scorer(other[0], theirs)).logp_sum
            columns["cooling_weight"] = cooling_weight(scores.logp_mean, floor=floor, tau=tau)
        values = {name: column.tolist() for name, column in columns.items()}
        responses = [response for group in part for response in group.responses]
        for i, (owner, response) in enumerate(zip(batch.owner, responses, strict=True)):
            row = {"id": part[owner].id, **response.to_json(), **{name: column[i] for name, column in values.items()}}
            rows.append({**row, "tokens": int(row["tokens"])})
    return rows
