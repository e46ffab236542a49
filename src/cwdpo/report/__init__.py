"""A run directory, shown: one self-contained HTML file."""

from __future__ import annotations

from cwdpo.report.page import write_report

__all__ = ["write_report"]
