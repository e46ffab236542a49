"""The objective of Stage 2 that a recipe asks for."""

from __future__ import annotations

from cwdpo.objectives.base import Objective
from cwdpo.objectives.mdpo import MDPOObjective
from cwdpo.objectives.on_policy import OnPolicyObjective
from cwdpo.objectives.opa_dpo import OPADPOObjective
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.objectives.v_dpo import VDPOObjective
from cwdpo.recipe import STAGE2_METHODS, Stage2Section

__all__ = ["IMAGE_OBJECTIVES", "preference_objective", "stage2_objective"]

IMAGE_OBJECTIVES = {"mdpo": MDPOObjective, "v_dpo": VDPOObjective, "opa_dpo": OPADPOObjective}
"""Those that score responses under a second image."""


def preference_objective(settings: Stage2Section, seed: int = 0) -> PreferenceObjective:
    """Return the objective of a method that compares given responses.

    Args:
        settings: The recipe's.
        seed: Fixes how images are altered.
    """
    made = IMAGE_OBJECTIVES.get(settings.objective)
    return PreferenceObjective(settings) if made is None else made(settings, seed)


def stage2_objective(settings: Stage2Section, seed: int = 0) -> Objective:
    """Return the objective of any method; arguments as `preference_objective`."""
    on_policy = STAGE2_METHODS[settings.objective].on_policy
    return OnPolicyObjective(settings) if on_policy else preference_objective(settings, seed)
