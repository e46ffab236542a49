"""Algorithm 1 as resumable steps over a run directory."""

from cwdpo.pipeline.preparing import load_source
from cwdpo.pipeline.reporter import Reporter, Silent, TrainingFigures
from cwdpo.pipeline.run import Run
from cwdpo.pipeline.side_by_side import run_side_by_side, usable_cpus

__all__ = ["Reporter", "Run", "Silent", "TrainingFigures", "load_source", "run_side_by_side", "usable_cpus"]
