"""What a run is: one YAML file, validated and documented field by field."""

from cwdpo.recipe.data import DataSection
from cwdpo.recipe.measuring import EarlyStopSection, EvaluationSection, InfluenceSection, ProbeSection
from cwdpo.recipe.methods import METHODS, STAGE2_METHODS, Method
from cwdpo.recipe.model import LoraSection, ModelSection
from cwdpo.recipe.negatives import EditorSection, FilterSection, NegativesSection, SourceMix
from cwdpo.recipe.stages import Stage1Section, Stage2Section, StageSection, settings_of
from cwdpo.recipe.whole import Recipe

__all__ = [
    "METHODS",
    "STAGE2_METHODS",
    "DataSection",
    "EarlyStopSection",
    "EditorSection",
    "EvaluationSection",
    "FilterSection",
    "InfluenceSection",
    "LoraSection",
    "Method",
    "ModelSection",
    "NegativesSection",
    "ProbeSection",
    "Recipe",
    "SourceMix",
    "Stage1Section",
    "Stage2Section",
    "StageSection",
    "settings_of",
]
