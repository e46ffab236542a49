"""Checkpoints that count only when they are whole, and that also hold what was added up since the last logged row."""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from cwdpo.errors import RecipeError, RunError, one_line
from cwdpo.files import read_json, write_json
from cwdpo.models.loading import load_weights
from cwdpo.models.meta_init import bare_copy, deal_when_wrapped, wrap_dealt
from cwdpo.processes import is_lost_peer, processes
from cwdpo.training.checkpoints import require_whole, seal_checkpoint, writing

__all__ = ["SealedTrainer"]

_METERS = "meters.json"
"""File in a checkpoint: what was added up since the last logged row."""


class SealedTrainer(Trainer):
    """transformers' Trainer with checkpoints that a kill cannot spoil.

    Vision-language models are saved under other names than they have in memory. transformers' Trainer looks for the
    latter and goes on with what it has where they are missing; here the model class translates them.
    """

    def meters(self) -> dict[str, Any]:
        """Return what was added up since the last logged row, over all ranks."""
        return {}

    def restore_meters(self, meters: dict[str, Any]) -> None:
        """Take up what `meters` returned."""

    def restore_batches(self, meters: dict[str, Any]) -> None:
        """Take up what the first update's batches depend on: they are fetched before `restore_meters` is called."""

    _deal: Callable[[Any], None] | None = None
    """Gives the model its weights once it is wrapped, where this process did not read them."""

    def shard(self, model: Any, source: Any = None) -> Any:
        """Wrap a model that is not trained: its weights are shared among the processes where the policy's are.

        Args:
            model: Whole, or bare (`cwdpo.models.meta_init`) in all processes but the first.
            source: The whole model that `model` is a bare copy of.

        Raises:
            RecipeError: Sharding is set up in a way that only training knows.
        """
        if not self.accelerator.is_fsdp2:
            raise RecipeError("sharding needs FSDP2 here; set fsdp_version: 2 in the configuration of accelerate")
        return wrap_dealt(model, lambda bare: fsdp2_prepare_model(self.accelerator, bare), source)

    def shard_copy(self, model: Any) -> Any:
        """Return a copy of a model that is not trained, wrapped as by `shard`; the model stays as it is."""
        return self.shard(bare_copy(model), model)

    def save_whole(self, folder: Path) -> None:
        """Write the model as one that `from_pretrained` reads, out of all its shards; rank 0 writes."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None:
            plugin.set_state_dict_type("FULL_STATE_DICT")
        with writing(folder):
            self.save_model(str(folder))

    def load_finished(self, checkpoint: Path) -> None:
        """Load the weights of the checkpoint after the last update, to end with them.

        Sharded weights need their optimizer's wrapper around them first.
        """
        if self.is_fsdp_enabled:
            self._prepare_for_training(self.args.max_steps, None, str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, mark it complete, and only then delete older ones."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        limit = self.args.save_total_limit
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        self.args.save_total_limit = None
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        loss: Any = self.accelerator.gather(self._tr_loss)
        row = {"loss": float(loss.mean()), "since": self._globalstep_last_logged, **self.meters()}
        if self.args.should_save:
            with writing(folder):
                write_json(folder / _METERS, row)
                seal_checkpoint(folder)
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights that a checkpoint was saved with.

        Raises:
            RunError: It was saved by processes that share the work otherwise.
        """
        self._require_alike(Path(resume_from_checkpoint))
        self._deal_out(model)
        target: Any = self.model if model is None else model
        if self._weights_are_whole(target):
            load_weights(target, Path(resume_from_checkpoint))
            return
        load = super()._load_from_checkpoint
        _read_by_all(resume_from_checkpoint, lambda: load(resume_from_checkpoint, model))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Prepare the model and take up a checkpoint, where it is one of the same kind."""
        if resume_from_checkpoint is not None:
            self._require_alike(Path(resume_from_checkpoint))
            if (file := Path(resume_from_checkpoint) / _METERS).is_file():
                self.restore_batches(read_json(file))
        if self.is_fsdp_enabled:
            self._deal = deal_when_wrapped(self.model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._deal_out(prepared[0])
        return prepared

    def _deal_out(self, model: Any) -> None:
        """Give a model that was just wrapped its weights, before those of a checkpoint."""
        if self._deal is not None:
            deal, self._deal = self._deal, None
            deal(model)

    def _require_alike(self, checkpoint: Path) -> None:
        """Refuse a checkpoint that holds shards where this run has whole weights, or the reverse.

        Raises:
            RunError: It does, or a file of it was changed or damaged.
        """
        processes().lead(lambda: require_whole(checkpoint))
        sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
        if sharded != self.is_fsdp_enabled:
            raise RunError(
                f"{checkpoint}: was saved {'with' if sharded else 'without'} sharded weights; resume with the "
                "configuration of accelerate that it was saved with, or delete the folder of checkpoints"
            )

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        target: Any = self.model
        if self._weights_are_whole(target):
            require_whole(Path(str(self.state.best_model_checkpoint)))
            load_weights(target, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _weights_are_whole(self, model: Any) -> bool:
        """Whether checkpoints hold all weights in one piece: not shards, not an adapter."""
        return not (self.is_fsdp_enabled or hasattr(model, "peft_config"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state and what was added up for the next row, so that a resumed run logs the same rows."""
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)
            if checkpoint is None or not (file := Path(checkpoint) / _METERS).is_file():
                return
            row: dict[str, Any] = read_json(file)
            self._tr_loss += row["loss"]
            self._globalstep_last_logged = row["since"]
            self.restore_meters(row)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore optimizer and schedule."""
        load = super()._load_optimizer_and_scheduler
        _read_by_all(checkpoint, lambda: load(checkpoint))


def _read_by_all(checkpoint: str | None, load: Callable[[], None]) -> None:
    """Load something in every process; where one cannot read it, all end with the same line."""

    def read() -> None:
        with _reading(checkpoint):
            load()

    processes().each(read)


_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    CheckpointException,  # of shards, in any process; not even an Exception
)


@contextlib.contextmanager
def _reading(checkpoint: str | None) -> Generator[None]:
    """Say in one line that a checkpoint is damaged, or holds a pickle of more than tensors, which is never run."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, RuntimeError) and is_lost_peer(error):
            raise
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise RunError(
            f"{checkpoint}: the checkpoint cannot be read ({one_line(reason, 120)}); "
            "put it back, or delete that folder to go on from the one before"
        ) from error
