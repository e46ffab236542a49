"""What a run needs before it is started: memory, arithmetic, time and disk of every step, found by running it dry."""

from cwdpo.planning.data_shape import Said, read_rows
from cwdpo.planning.gpus import GPUS, Gpus, Layout, parse_gpus, read_layout
from cwdpo.planning.meta_models import model_of
from cwdpo.planning.planner import Assumptions, Planner, Step
from cwdpo.planning.suggestions import Remedy, remedies, smallest_number

__all__ = [
    "GPUS",
    "Assumptions",
    "Gpus",
    "Layout",
    "Planner",
    "Remedy",
    "Said",
    "Step",
    "model_of",
    "parse_gpus",
    "read_layout",
    "read_rows",
    "remedies",
    "smallest_number",
]
