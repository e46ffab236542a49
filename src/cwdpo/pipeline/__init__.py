"""Algorithm 1 as resumable steps over a run directory."""

from cwdpo.pipeline.data import load_source
from cwdpo.pipeline.reporter import Reporter, Silent
from cwdpo.pipeline.run import Run

__all__ = ["Reporter", "Run", "Silent", "load_source"]
