"""Algorithm 1 as resumable steps over a run directory."""

from __future__ import annotations

import os
from typing import Any

from transformers.utils.import_utils import is_torch_bf16_gpu_available

from cwdpo.devices import device, device_name, has_accelerator
from cwdpo.errors import RecipeError
from cwdpo.export.card import write_cards
from cwdpo.launcher import is_set
from cwdpo.models.attention import require_backward
from cwdpo.models.quantized import require_bitsandbytes
from cwdpo.processes import join_processes, processes
from cwdpo.recipe import Recipe
from cwdpo.run.evaluate_run import evaluate, require_metrics
from cwdpo.run.own_answers import correct_run
from cwdpo.run.prepare_data import prepare_data
from cwdpo.run.progress import Silent
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.stage_callbacks import require_figures
from cwdpo.run.stage_setup import require_batches, train_stage1, train_stage2

__all__ = ["Run"]


class Run(RunDirectory):
    """A recipe in a directory. Each step is done once; a killed one resumes where it stopped.

    Under `torchrun` or `accelerate launch` the processes share it: see `cwdpo.processes`.
    """

    def execute(self) -> dict[str, Any]:
        """Run every step that is not done yet and return the evaluation's summary (empty where it is left out).

        Raises:
            UserError: Something the user has to fix, in one line.
            StoppedError: A signal came; the run resumes from here when it is started again.
        """
        team = join_processes()
        ranks = team.size
        if not team.main:
            self.reporter = Silent()
        with self.locked():
            team.lead(lambda: self._prepare(ranks))
            correct_run(self)
            if self.recipe.stage1.enabled:
                train_stage1(self)
            if self.recipe.stage2.enabled:
                train_stage2(self)
            summary = evaluate(self) if self.recipe.evaluation.prompts else {}
            team.lead(lambda: write_cards(self.folder))
            return summary

    def _prepare(self, ranks: int) -> None:
        require_batches(self.recipe, ranks)
        require_figures(self.recipe)
        require_metrics(self.recipe)
        _require_whole_weights(self.recipe, ranks)
        require_bitsandbytes(self.recipe.model)
        _require_bfloat16(self.recipe)
        if self.recipe.model.attention == "flex_attention":
            require_backward(device().type)
        self.encoder(self.model_path)  # a model that cannot be used is found before anything is written
        self.settle()
        prepare_data(self)
        for warning in self.recipe.warnings():
            self.reporter.note(warning)


def _require_bfloat16(recipe: Recipe) -> None:
    """Refuse before any work the type that training would refuse after it.

    Raises:
        RecipeError: The recipe asks for bfloat16, and the GPU has none.
    """
    if recipe.model.dtype == "bfloat16" and has_accelerator() and not is_torch_bf16_gpu_available():
        raise RecipeError(f"model.dtype: {device_name()} does not compute in bfloat16; set it to float32")


def _require_whole_weights(recipe: Recipe, ranks: int) -> None:
    """Refuse before any work what cannot be done while weights are shared among processes.

    Raises:
        RecipeError: The recipe, or accelerate's configuration, asks for it.
    """
    if ranks == 1 or not is_set("ACCELERATE_USE_FSDP"):
        return
    if processes().reads_once and os.environ.get("FSDP_VERSION") != "2":
        raise RecipeError(
            "fsdp_cpu_ram_efficient_loading: true needs fsdp_version: 2; set it so in the configuration of accelerate, "
            "or the former to false"
        )
    from_shards = {
        "negatives.stage2.refresh": recipe.negatives.stage2.refresh,
        "probes.early_stop": recipe.probes.early_stop,
    }
    setting = os.environ.get("FSDP_VERSION"), os.environ.get("FSDP_STATE_DICT_TYPE")
    if setting != ("2", "SHARDED_STATE_DICT"):
        for key, value in from_shards.items():
            if value is not None:
                raise RecipeError(
                    f"{key}: needs FSDP2 with fsdp_state_dict_type: SHARDED_STATE_DICT; use these, or DDP, or leave it "
                    "out"
                )
    asked = {
        "probes.influence": recipe.probes.influence,
        "model.quantization": recipe.model.quantization,
        "stage1.activation_offloading": recipe.stage1.activation_offloading or None,
        "stage2.activation_offloading": recipe.stage2.activation_offloading or None,
    }
    for key, value in asked.items():
        if value is not None:
            raise RecipeError(f"{key}: needs whole weights, which FSDP takes apart; leave it out, or use DDP")
