"""The two stages as trainers, used as TRL's are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import set_seed

from cwdpo.errors import ModelError, RecipeError
from cwdpo.files import read_json, write_json
from cwdpo.methods.base import Method
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.models.identity import state_digest
from cwdpo.models.loading import load_model
from cwdpo.models.meta_init import on_meta
from cwdpo.models.modes import disable_dropout
from cwdpo.models.processors import load_processor
from cwdpo.objectives import objective_of
from cwdpo.objectives.rewards import Reward, reward_for
from cwdpo.processes import naming_lost_workers, processes
from cwdpo.recipe import ModelSection
from cwdpo.scoring.collator import require_template
from cwdpo.scoring.reference import CachedReference, LiveReference, Reference, ReferenceCache
from cwdpo.training.configs import CWDPOConfig, GroupTrainingArguments, SFTCConfig
from cwdpo.training.data_parallel import SharedBatches, shared_loader
from cwdpo.training.rollout_scoring import Weigher
from cwdpo.training.rollouts import Rollouts
from cwdpo.training.trainer import GroupTrainer

__all__ = ["CWDPOTrainer", "SFTCTrainer"]

REFERENCE_ADAPTER = "reference"


def _prepare(model: Any, args: GroupTrainingArguments, processing_class: Any, peft_config: Any) -> tuple[Any, Any]:
    """Load what is given by name, and put fresh adapters on where asked.

    Raises:
        ModelError: There is no processor, or the model has adapters already (or has them without `peft`'s wrapper).
    """
    name = model if isinstance(model, (str, Path)) else getattr(model, "name_or_path", "")
    if isinstance(model, (str, Path)):
        model = load_model(ModelSection(path=str(model)))
    if processing_class is None:
        if not name:
            raise ModelError(
                "processing_class is missing and the model has no name to load it from; pass the processor"
            )
        processing_class = load_processor(name)
    require_template(processing_class, str(name) or type(processing_class).__name__)
    if getattr(model, "peft_config", None) and not hasattr(model, "get_base_model"):
        raise ModelError("the model holds adapters without peft's wrapper; load it with peft.PeftModel.from_pretrained")
    if peft_config is not None:
        from peft import get_peft_model

        if hasattr(model, "peft_config"):
            raise ModelError(
                "peft_config is given and the model has adapters already; leave peft_config out to train on those, "
                "or merge them first (merge_and_unload)"
            )
        set_seed(args.seed)  # adapters start at random
        model = get_peft_model(model, peft_config)
    return model, processing_class


class SFTCTrainer(GroupTrainer):
    """Stage 1: SFT-C (paper, Eq. 4), or plain SFT with `objective="sft"`.

    Args:
        model: A vision-language model, or a directory or hub id to load it from.
        args: `SFTCConfig`; default `SFTCConfig("sft-c")`.
        method: A method with its settings, `SFTC(nll_floor=3)`, in place of the one that `args` names.
        train_dataset: Prompt groups, or a `datasets.Dataset` with TRL's columns (`images`, `prompt`, `chosen`,
            `rejected`).
        eval_dataset: Likewise.
        processing_class: The model's processor; default loaded from the model's directory.
        peft_config: A PEFT config puts fresh adapters on the model.
        callbacks: As in transformers.
        **kwargs: Further arguments of `GroupTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: SFTCConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        method: Method | None = None,
        **kwargs: Any,
    ) -> None:
        args = (args or SFTCConfig("sft-c")).with_method(method)
        model, processing_class = _prepare(model, args, processing_class, peft_config)
        objective = objective_of(args.section().method)
        super().__init__(model, args, objective, train_dataset, eval_dataset, processing_class, callbacks, **kwargs)


class CWDPOTrainer(GroupTrainer):
    """Stage 2: CW-DPO (paper, Eq. 6 and 7), or another of `cwdpo methods` by `objective="dpo"` and the like.

    The reference (`simpo` has none) is the model as it is given: its log-probabilities are computed once before the
    first update and kept under `output_dir/reference` (`reference="cached"`), or taken in every step
    (`reference="live"`) from `ref_model`, from a frozen copy of the adapter the model comes with, from the base under
    fresh adapters, or from a copy of the model.

    Dropout is off, as in TRL: with it the policy would differ from the reference before the first update.

    Args:
        model: A vision-language model, or a directory or hub id to load it from.
        ref_model: Another model as reference.
        args: `CWDPOConfig`; default `CWDPOConfig("cw-dpo")`.
        method: A method with its settings, `RPO(sft_weight=1)`, in place of the one that `args` names; or a class of
            yours.
        train_dataset: Prompt groups, or a `datasets.Dataset` with TRL's columns.
        eval_dataset: Likewise.
        processing_class: The model's processor; default loaded from the model's directory.
        peft_config: A PEFT config puts fresh adapters on the model; the reference is then the model without them.
        callbacks: As in transformers.
        reference_cache: File of reference log-probabilities; default `output_dir/reference/logps.sqlite`.
        reward: For `grpo` and `ppo`: an encoded prompt and sampled responses to it, to a reward of each. Default as
            `args.reward` says.
        **kwargs: Further arguments of `GroupTrainer`.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: CWDPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        reference_cache: Path | None = None,
        reward: Reward | None = None,
        method: Method | None = None,
        **kwargs: Any,
    ) -> None:
        args = (args or CWDPOConfig("cw-dpo")).with_method(method)
        if peft_config is not None and ref_model is not None:
            raise RecipeError(
                "ref_model and peft_config are both given; with adapters the reference is the base itself"
            )
        if ref_model is model and ref_model is not None:
            raise RecipeError("ref_model is the model itself; leave ref_model out, or pass a copy")
        model, processing_class = _prepare(model, args, processing_class, peft_config)
        disable_dropout(model)
        self._cache_path = reference_cache or Path(str(args.output_dir)) / "reference" / "logps.sqlite"
        self._ref_model, self._fresh = ref_model, peft_config is not None
        self._filled = False
        self._cache: ReferenceCache | None = None
        if ref_model is not None:
            ref_model.requires_grad_(False)
        settings = args.section()
        objective = objective_of(settings.method, settings, args.seed)
        on_policy = settings.method if isinstance(settings.method, OnPolicyMethod) else None
        if on_policy and eval_dataset is not None:
            raise RecipeError(
                f"eval_dataset: {settings.objective} has no loss on given responses; leave it out, and measure captions"
            )
        reference: Reference | None = None
        live: dict[str, Any] | None = None
        if objective.needs_reference and args.reference == "cached":
            self._cache = ReferenceCache.shared(self._cache_path)
            reference = CachedReference(self._cache)
        elif settings.method.needs.reference:
            live = _live(model, ref_model, fresh=self._fresh)
        super().__init__(model, args, objective, train_dataset, eval_dataset, processing_class, callbacks, **kwargs)
        if live is not None:
            if self.is_fsdp_enabled and "model" in live:
                live["model"] = self.shard(live["model"])
            reference = LiveReference(self.shared_scorer, **live)
        if on_policy is None:
            self.reference = reference
        else:  # the reference's part is in the responses
            rows: Any = self.train_dataset
            weigher = Weigher(on_policy, self.shared_scorer, reference)
            reward = reward or reward_for(on_policy.reward, rows)
            self.rollouts = Rollouts(on_policy, self.encoder, reward, weigher, args.seed)

    @property
    def caches_reference(self) -> bool:
        """Whether reference log-probabilities are computed before training and kept."""
        return self._cache is not None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Compute the reference log-probabilities that are missing, then train."""
        if self._cache is not None:
            self.fill_reference(resuming=bool(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the loss and the metrics over the evaluation set, or another one in any form the trainer takes.

        Raises:
            RunError: With a cached reference, `eval_dataset` has rows that the trainer was not made with.
        """
        if self._cache is not None:
            self.fill_reference()
        return super().evaluate(eval_dataset, *args, **kwargs)

    def fill_reference(self, *, resuming: bool = False, progress: Any = None) -> int:
        """Score every training and evaluation row under the reference, as far as that is not on disk yet.

        Done once in the life of a trainer: afterwards the model is no longer the reference.

        Returns:
            How many responses were scored now.

        Raises:
            ModelError: The cache was made with another reference model.
        """
        assert self._cache is not None
        if self._filled:
            return 0
        target: Any = self._ref_model if self._ref_model is not None else self.model
        identity = self._cache_path.with_suffix(".json")
        team = processes()
        held_out: Any = self.eval_dataset
        given: list[Any] = [self.train_dataset, *(held_out.values() if isinstance(held_out, Mapping) else [held_out])]
        sets = [part for part in given if part is not None]
        stamps = [part.stamp for part in sets]
        whole = not team.lead(self._cache.drop_damaged)
        team.lead(lambda: self._check_identity(target, identity, resuming=resuming and whole))
        if team.lead(lambda: self._knows(stamps)):
            self._filled = True
            return 0
        # The trainer wraps its model when training begins: until then, a copy of it is wrapped.
        target = self.shard_copy(target) if self.is_fsdp_enabled else target.to(self.args.device)
        with target.disable_adapter() if self._fresh else nullcontext():
            every = (inputs["batch"] for part in sets for inputs in self._in_order(part))
            batches = every if self.objective.twin_reference else (batch.own for batch in every)
            with self.accelerator.autocast(), naming_lost_workers():
                scored = self._cache.fill(target, self.shared_scorer, batches, progress)
        cache = self._cache
        team.lead(lambda: write_json(self._scored_path, {"rows": stamps, "responses": cache.count()}))
        self._filled = True
        return scored

    def _in_order(self, rows: Any) -> Any:
        """Return a loader of this process's rows. Every process has as many batches: the first rows may come twice."""
        ranks = processes().size
        order = [i % len(rows) for i in range(-(-len(rows) // ranks) * ranks)]
        size = self.args.per_device_train_batch_size
        return shared_loader(rows, SharedBatches(order, micro=size, ranks=ranks), self.data_collator, self.args)

    def _check_identity(self, target: Any, identity: Path, *, resuming: bool) -> None:
        if resuming and identity.is_file():
            return
        digest = state_digest(target, without_adapters=self._fresh)
        current = {"model": digest, "mixed_precision": str(self.accelerator.mixed_precision)}
        known = read_json(identity) if identity.is_file() else current
        for key, what in (("model", "another reference model"), ("mixed_precision", "another mixed precision")):
            if known.get(key) != current[key]:
                raise ModelError(f"{self._cache_path}: made with {what}; choose another output_dir or delete it")
        write_json(identity, current)

    @property
    def _scored_path(self) -> Path:
        """Which data sets were scored to the end: not one of their rows needs to be looked at again."""
        return Path(str(self.args.output_dir)) / "reference_rows.json"

    def _knows(self, stamps: list[str | None]) -> bool:
        if None in stamps or self._cache is None or not self._scored_path.is_file():
            return False
        known = read_json(self._scored_path, rows=list, responses=int)
        return known["rows"] == stamps and known["responses"] <= self._cache.count()


def _live(model: Any, ref_model: Any, *, fresh: bool) -> dict[str, Any]:
    """Return what a reference that is run in every step runs: arguments of `LiveReference`."""
    if ref_model is not None:
        return {"model": ref_model}
    if fresh:
        return {"base_of_adapter": True}
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        active, trained = model.active_adapter, [p for p in model.parameters() if p.requires_grad]
        weights = {k: v.clone() for k, v in get_peft_model_state_dict(model, adapter_name=active).items()}
        with on_meta(model):
            model.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[active]))
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)
        model.set_adapter(active, inference_mode=True)
        for parameter in trained:
            parameter.requires_grad_(True)
        return {"adapter": REFERENCE_ADAPTER}
    frozen = copy.deepcopy(model)
    frozen.requires_grad_(False)
    return {"model": frozen}
