"""Batch and scores to a loss: likelihoods, pairs, sampled responses. The loss itself is a method's."""

from __future__ import annotations

from cwdpo.methods.base import Method
from cwdpo.methods.cooling import Cooling
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.methods.sft import SFT
from cwdpo.objectives.likelihood import SFTObjective
from cwdpo.objectives.objective import Objective
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.objectives.sampled import OnPolicyObjective

__all__ = ["objective_of"]


def objective_of(method: Method, cooling: Cooling | None = None, seed: int = 0) -> Objective:
    """Return the objective that trains with a method.

    Args:
        method: The loss.
        cooling: Where metrics call a rejected response easy (a section of Stage 2 says so).
        seed: Fixes how images are altered.
    """
    if isinstance(method, SFT):
        return SFTObjective(method)
    if isinstance(method, OnPolicyMethod):
        return OnPolicyObjective(method)
    return PreferenceObjective(method, cooling, seed)
