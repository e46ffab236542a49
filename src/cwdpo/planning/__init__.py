"""What a run needs before it is started: memory, arithmetic, time and disk of every step, found by running it dry."""

from cwdpo.planning.gpus import GPUS, Gpus, Layout, parse_gpus, read_layout
from cwdpo.planning.models import model_of
from cwdpo.planning.remedies import Remedy, remedies, smallest_number
from cwdpo.planning.rows import Said, read_rows
from cwdpo.planning.whole import Assumptions, Planner, Step

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
