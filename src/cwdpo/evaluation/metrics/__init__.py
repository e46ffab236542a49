"""Caption metrics, one file each: its class has the settings, the code and the words of one metric."""

from cwdpo.evaluation.java import Unavailable
from cwdpo.evaluation.metrics.caption_metric import METRICS, Captioned, CaptionMetric, Score

__all__ = ["METRICS", "CaptionMetric", "Captioned", "Score", "Unavailable"]
