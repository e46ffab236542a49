"""What a run is: one YAML file, validated and documented field by field."""

from cwdpo.recipe.data_section import DataSection
from cwdpo.recipe.endpoint_sections import (
    HOW_TO_ASK,
    EditorSection,
    EndpointSection,
    GeneratorSection,
    JudgeSection,
    WriterSection,
)
from cwdpo.recipe.measure_sections import EarlyStopSection, EvaluationSection, InfluenceSection, ProbeSection
from cwdpo.recipe.model_section import LoraSection, ModelSection
from cwdpo.recipe.negatives_sections import (
    CorrectionSection,
    FilterSection,
    NegativesSection,
    RefreshSection,
    SchedulePoint,
    SourceMix,
    Stage2Mix,
)
from cwdpo.recipe.recipe import Recipe
from cwdpo.recipe.stage_sections import Stage1Section, Stage2Section, StageSection

__all__ = [
    "HOW_TO_ASK",
    "CorrectionSection",
    "DataSection",
    "EarlyStopSection",
    "EditorSection",
    "EndpointSection",
    "EvaluationSection",
    "FilterSection",
    "GeneratorSection",
    "InfluenceSection",
    "JudgeSection",
    "LoraSection",
    "ModelSection",
    "NegativesSection",
    "ProbeSection",
    "Recipe",
    "RefreshSection",
    "SchedulePoint",
    "SourceMix",
    "Stage1Section",
    "Stage2Mix",
    "Stage2Section",
    "StageSection",
    "WriterSection",
]
