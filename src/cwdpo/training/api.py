"""The two stages as trainers, used as TRL's are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from cwdpo.data.grouped import groups_from_dataset
from cwdpo.errors import ModelError, RecipeError
from cwdpo.files import read_json, write_json
from cwdpo.models.loading import load_model, sequence_limit, state_digest
from cwdpo.models.processors import load_processor
from cwdpo.objectives.preference import PreferenceObjective
from cwdpo.objectives.sft import SFTObjective
from cwdpo.recipe import ModelSection
from cwdpo.scoring.encode import GroupCollator, PromptEncoder, require_template
from cwdpo.scoring.reference import CachedReference, LiveReference, Reference, ReferenceCache, Scorer
from cwdpo.scoring.separate import SeparateScorer
from cwdpo.training.config import CWDPOConfig, GroupTrainingArguments, SFTCConfig
from cwdpo.training.trainer import GroupTrainer

__all__ = ["CWDPOTrainer", "SFTCTrainer"]

REFERENCE_ADAPTER = "reference"


def _prepare(model: Any, args: GroupTrainingArguments, processing_class: Any, peft_config: Any) -> tuple[Any, Any]:
    """Load what is given by name, and put fresh adapters on where asked."""
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
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    return model, processing_class


def _groups(dataset: Any, require: str) -> Any:
    return None if dataset is None else groups_from_dataset(dataset, require=require)


class SFTCTrainer(GroupTrainer):
    """Stage 1: SFT-C (paper, Eq. 4), or plain SFT with `objective="sft"`.

    Args:
        model: A vision-language model, or a directory or hub id to load it from.
        args: `SFTCConfig`; default `SFTCConfig("sft-c")`.
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
        **kwargs: Any,
    ) -> None:
        args = args or SFTCConfig("sft-c")
        model, processing_class = _prepare(model, args, processing_class, peft_config)
        super().__init__(
            model,
            args,
            SFTObjective(args.section()),
            _groups(train_dataset, "chosen"),
            _groups(eval_dataset, "chosen"),
            processing_class,
            callbacks,
            **kwargs,
        )


class CWDPOTrainer(GroupTrainer):
    """Stage 2: CW-DPO (paper, Eq. 6 and 7), or `objective="dpo" | "dpo_shift" | "rpo"`.

    The reference is the model as it is given: its log-probabilities are computed once before the first update and
    kept under `output_dir/reference` (`reference="cached"`), or taken in every step (`reference="live"`) from
    `ref_model`, from a frozen copy of the adapter the model comes with, from the base under fresh adapters, or from a
    copy of the model.

    Args:
        model: A vision-language model, or a directory or hub id to load it from.
        ref_model: Another model as reference.
        args: `CWDPOConfig`; default `CWDPOConfig("cw-dpo")`.
        train_dataset: Prompt groups, or a `datasets.Dataset` with TRL's columns.
        eval_dataset: Likewise.
        processing_class: The model's processor; default loaded from the model's directory.
        peft_config: A PEFT config puts fresh adapters on the model; the reference is then the model without them.
        callbacks: As in transformers.
        reference_cache: File of reference log-probabilities; default `output_dir/reference/logps.sqlite`.
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
        scorer: Scorer | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or CWDPOConfig("cw-dpo")
        if peft_config is not None and ref_model is not None:
            raise RecipeError(
                "ref_model and peft_config are both given; with adapters the reference is the base itself"
            )
        came_with_adapter = hasattr(model, "peft_config")
        model, processing_class = _prepare(model, args, processing_class, peft_config)
        scorer = scorer or SeparateScorer()
        self._cache_path = reference_cache or Path(str(args.output_dir)) / "reference" / "logps.sqlite"
        self._ref_model = ref_model
        self._cache: ReferenceCache | None = None
        if ref_model is not None:
            ref_model.requires_grad_(False)
        reference: Reference
        if args.reference == "cached":
            self._cache = ReferenceCache(self._cache_path)
            reference = CachedReference(self._cache)
        else:
            reference = _live(model, ref_model, scorer, fresh=peft_config is not None, adapter=came_with_adapter)
        super().__init__(
            model,
            args,
            PreferenceObjective(args.section()),
            _groups(train_dataset, "pair"),
            _groups(eval_dataset, "pair"),
            processing_class,
            callbacks,
            reference=reference,
            scorer=scorer,
            **kwargs,
        )

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Compute the reference log-probabilities that are missing, then train."""
        if self._cache is not None:
            self.fill_reference(resuming=bool(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def fill_reference(self, *, resuming: bool = False, progress: Any = None) -> int:
        """Score every training and evaluation row under the reference, as far as that is not on disk yet.

        Returns:
            How many responses were scored now.

        Raises:
            ModelError: The cache was made with another reference model.
        """
        assert self._cache is not None
        target: Any = self._ref_model if self._ref_model is not None else self.model
        identity = self._cache_path.with_suffix(".json")
        if not (resuming and identity.is_file()):
            digest = state_digest(target)
            known = read_json(identity)["model"] if identity.is_file() else digest
            if known != digest:
                raise ModelError(
                    f"{self._cache_path}: made with another reference model; choose another output_dir or delete it"
                )
            write_json(identity, {"model": digest})
        target = target.to(self.args.device)
        datasets = [d for d in (self.train_dataset, self.eval_dataset) if d is not None]
        loaders = [_in_order(d, self.encoder, self.args) for d in datasets]
        batches = (inputs["batch"] for loader in loaders for inputs in loader)
        return self._cache.fill(target, self.scorer, batches, progress)


def _in_order(dataset: Any, encoder: PromptEncoder, args: GroupTrainingArguments) -> Any:
    return DataLoader(
        dataset,
        batch_size=args.per_device_train_batch_size,
        shuffle=False,
        collate_fn=GroupCollator(encoder),
        num_workers=args.dataloader_num_workers,
    )


def _live(model: Any, ref_model: Any, scorer: Scorer, *, fresh: bool, adapter: bool) -> LiveReference:
    """Return a reference that is run in every step."""
    if ref_model is not None:
        return LiveReference(scorer, model=ref_model)
    if fresh:
        return LiveReference(scorer, base_of_adapter=True)
    if adapter:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        active = model.active_adapter
        weights = {k: v.clone() for k, v in get_peft_model_state_dict(model, adapter_name=active).items()}
        model.add_adapter(REFERENCE_ADAPTER, model.peft_config[active])
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)
        model.set_adapter(active)
        return LiveReference(scorer, adapter=REFERENCE_ADAPTER)
    frozen = copy.deepcopy(model)
    frozen.requires_grad_(False)
    return LiveReference(scorer, model=frozen)


def encoder_for(model: Any, processor: Any, args: GroupTrainingArguments) -> PromptEncoder:
    """Return the prompt encoder that a trainer with these arguments makes."""
    limit = sequence_limit(model, args.max_length)
    return PromptEncoder(processor, include_eos=args.include_eos, max_length=limit)
