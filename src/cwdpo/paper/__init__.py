"""The paper's tables and figures, remade by a command."""

from cwdpo.paper.make_tables import COSTS, FIGURES, reproduce, reproduce_figure, still_to_run

__all__ = ["COSTS", "FIGURES", "reproduce", "reproduce_figure", "still_to_run"]
