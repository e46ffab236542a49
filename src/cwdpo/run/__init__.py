"""Algorithm 1 as resumable steps over a run directory."""

from cwdpo.run.algorithm1 import Run
from cwdpo.run.parallel_runs import run_side_by_side, usable_cpus
from cwdpo.run.prepare_data import load_source
from cwdpo.run.progress import Reporter, Silent, TrainingFigures

__all__ = ["Reporter", "Run", "Silent", "TrainingFigures", "load_source", "run_side_by_side", "usable_cpus"]
