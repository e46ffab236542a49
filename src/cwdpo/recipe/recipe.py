"""A whole run."""

from __future__ import annotations

import yaml
from pydantic import Field, model_validator

from cwdpo.recipe.data_section import DataSection
from cwdpo.recipe.measure_sections import EvaluationSection, ProbeSection
from cwdpo.recipe.model_section import ModelSection
from cwdpo.recipe.negatives_sections import NegativesSection
from cwdpo.recipe.stage_sections import Stage1Section, Stage2Section
from cwdpo.section import Section

__all__ = ["Recipe"]


class Recipe(Section):
    """A whole run of Algorithm 1."""

    name: str = "cwdpo run"
    """Title of the report."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Fixes data order, adapters, sampling and dropout."""
    model: ModelSection = ModelSection()
    """The model."""
    data: DataSection = DataSection()
    """The data."""
    negatives: NegativesSection = Field(default_factory=NegativesSection)
    """The negatives."""
    stage1: Stage1Section = Field(default_factory=Stage1Section)
    """Stage 1."""
    stage2: Stage2Section = Field(default_factory=Stage2Section)
    """Stage 2."""
    probes: ProbeSection = ProbeSection()
    """Probes."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation."""
    report_to: list[str] = Field(default=[])
    """Trackers of transformers' Trainer: tensorboard, wandb, trackio, …"""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            stage.prompts_at_once()
            for part in ("vision", "projector"):
                if stage.enabled and part in self.model.freeze and getattr(stage, f"{part}_learning_rate") is not None:
                    raise ValueError(
                        f"{name}.{part}_learning_rate: model.freeze names {part}, which is not trained; leave one out"
                    )
        if self.data.held_out >= 1 and self.data.held_out != int(self.data.held_out):
            raise ValueError(f"data.held_out = {self.data.held_out}: must be a share below 1 or a whole number of rows")
        two = self.stage2
        method = two.method
        needs = method.needs
        if needs.whole_batch and two.enabled and two.micro_batch_size < two.batch_size:
            raise ValueError(
                f"stage2.micro_batch_size = {two.micro_batch_size}: {two.objective} compares all pairs of an update; "
                f"must be stage2.batch_size ({two.batch_size}) or more"
            )
        more = needs.image or needs.span or needs.cut or needs.whole_batch or method.on_policy
        if self.probes.influence is not None and two.enabled and more:
            raise ValueError(
                f"probes.influence is not known for {two.objective} as it is set, whose loss reads more than the "
                "responses of a prompt (a second image, some of their tokens, a whole batch, rewards); leave it out"
            )
        if not self.stage1.enabled and not self.stage2.enabled:
            raise ValueError("stage1.enabled and stage2.enabled are both false; enable one")
        if self.model.train_fully and self.model.lora is None:
            raise ValueError("model.train_fully needs model.lora; without adapters use model.freeze")
        if "language" in self.model.train_fully:
            raise ValueError(
                "model.train_fully names language, which model.lora trains through its adapters; take it out, or leave "
                "model.lora out to train all weights"
            )
        if both := set(self.model.freeze) & set(self.model.train_fully):
            raise ValueError(f"model.freeze and model.train_fully both name {sorted(both)}; name each part once")
        if self.model.quantization is not None and self.model.lora is None:
            raise ValueError(
                f"model.quantization: {self.model.quantization} needs model.lora: weights in 4 bits cannot be trained, "
                "adapters on them can; set model.lora, or leave quantization out"
            )
        if (self.data.path == "scenes") != (self.data.format in ("scenes",)) and self.data.format != "auto":
            raise ValueError("data.format: scenes goes with data.path: scenes and with no other; use format: auto")
        if self.probes.rewriter == "editor" and not self.negatives.editor.usable:
            raise ValueError("probes.rewriter: editor needs negatives.editor.base_url and negatives.editor.model")
        return self._fitting_negatives()

    def _fitting_negatives(self) -> Recipe:
        """Refuse what cannot go with negatives that change while a stage is trained."""
        mix, early = self.negatives.stage2, self.probes.early_stop
        cached = self.stage2.method.needs.reference and self.stage2.reference == "cached"
        if mix.curriculum == "frontier" and not cached:
            raise ValueError(
                "negatives.stage2.curriculum: frontier takes ℓ̄ from the reference; it needs stage2.reference: cached "
                "and an objective that has one"
            )
        if mix.refresh is not None and self.stage2.method.on_policy:
            raise ValueError(
                f"negatives.stage2.refresh has nothing to refresh with {self.stage2.objective}, which takes no "
                "negatives; leave it out"
            )
        if mix.refresh is not None and self.data.group_by_length:
            raise ValueError(
                "negatives.stage2.refresh changes the rows' lengths, which data.group_by_length orders by; use one"
            )
        if mix.refresh is not None and early is not None and "stage2" in early.stages:
            raise ValueError("negatives.stage2.refresh and probes.early_stop in stage2 do not go together; use one")
        return self

    def files(self) -> list[str]:
        """Return the data files and folders that the recipe names."""
        paths = [part.path for part in self.data.sources] or [self.data.path]
        return [path for path in (*paths, self.data.held_out_path, self.probes.path) if path is not None]

    def warnings(self) -> list[str]:
        """Return what is allowed but probably not meant, one line each."""
        from cwdpo.methods.cw_dpo import CWDPO
        from cwdpo.methods.dpo import DPO
        from cwdpo.methods.sft_c import SFTC

        one, two = self.stage1, self.stage2
        found: list[str] = []
        if isinstance(one.method, SFTC) and isinstance(two.method, CWDPO) and one.enabled and two.enabled:
            m = one.method
            pushed = m.regularizer in ("nll_floor", "hard_constraint") and m.nll_reduction == "mean"
            if pushed and m.nll_floor > -two.floor:
                found.append(
                    f"stage1.nll_floor = {m.nll_floor:g} is above -stage2.floor = {-two.floor:g}: Stage 1 pushes its "
                    "negatives to where Stage 2 already counts them less than half (the paper's own values do this)"
                )
        field, usual = type(two.method).model_fields.get("beta"), DPO.model_fields["beta"].default
        if two.enabled and field is not None and two.method.reward_scale == usual != field.default:
            found.append(
                f"stage2.beta = {usual} is DPO's; {two.method.title} has {field.default} if the key is left out"
            )
        return found

    def to_yaml(self) -> str:
        """Return the recipe with every field, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
