"""Benchmarks, one file each: its class reads the official files, builds the prompts and scores the answers."""

from cwdpo.evaluation.benchmarks.questions import BENCHMARKS, Benchmark, Question, Scored

__all__ = ["BENCHMARKS", "Benchmark", "Question", "Scored"]
