"""Algorithm 1 as resumable steps over a run directory."""

from __future__ import annotations

from typing import Any

from cwdpo.pipeline.data import prepare_data
from cwdpo.pipeline.evaluate import evaluate
from cwdpo.pipeline.rundir import RunDirectory
from cwdpo.pipeline.stages import train_stage1, train_stage2

__all__ = ["Run"]


class Run(RunDirectory):
    """A recipe in a directory. Each step is done once; a killed one goes on where it was."""

    def execute(self) -> dict[str, Any]:
        """Run every step that is not done yet and return the evaluation's summary (empty where it is left out).

        Raises:
            UserError: Something the user has to mend, in one line.
            StoppedError: A signal came; the run goes on from here when it is started again.
        """
        with self.locked():
            self.settle()
            self.encoder(self.model_path)  # a model that cannot be used is found before the data is read
            prepare_data(self)
            for warning in self.recipe.warnings():
                self.reporter.note(warning)
            if self.recipe.stage1.enabled:
                train_stage1(self)
            if self.recipe.stage2.enabled:
                train_stage2(self)
            return evaluate(self) if self.recipe.evaluation.prompts else {}
