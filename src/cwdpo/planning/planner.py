"""A recipe's steps: memory on one GPU, FLOPs, time and disk of each, before any of them is run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.models.fsdp import LARGEST_WHOLE
from cwdpo.planning.data_shape import Rows, of_lengths
from cwdpo.planning.disk import checkpoint, saved_model
from cwdpo.planning.gpus import Gpus, Layout
from cwdpo.planning.memory import GIB, gathered_layers, held, moving, standing, together, weights
from cwdpo.planning.meta_models import Size, bare_model, depths_of, model_config, size_of
from cwdpo.planning.step_cost import Taken, Work, take
from cwdpo.recipe import Recipe, SourceMix, StageSection
from cwdpo.run.prepare_data import takes_negatives, takes_pairs

__all__ = ["Assumptions", "Planner", "Step"]


@dataclass(frozen=True)
class Assumptions:
    """What is not known before a run.

    Attributes:
        utilisation: Share of the processor's arithmetic that training and scoring reach.
        bandwidth: Share of the memory's speed that generation reaches.
        launch: Seconds that a layer takes for one token however small it is: transformers launches its kernels one
            by one.
        link: Bytes a second that a GPU gets from the others, where weights that they share are gathered for every
            token; NVLink's order of magnitude.
    """

    utilisation: float = 0.35
    bandwidth: float = 0.5
    launch: float = 0.5e-3
    link: float = 200e9


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: Its name.
        what: What it does, in a few words.
        memory: Bytes on one GPU at its worst moment, by what they are.
        flops: Over all GPUs.
        seconds: On all GPUs together.
        note: What is to be known of it.
    """

    name: str
    what: str
    memory: dict[str, float]
    flops: float
    seconds: float
    note: str = ""

    @property
    def gib(self) -> float:
        """What a GPU needs, with what is reserved."""
        return together(self.memory) / GIB


@dataclass
class _Known:
    """Dry runs that were made, and configurations that were read: changes of a recipe share most of them."""

    taken: dict[Any, Taken] = field(default_factory=dict[Any, Taken])
    sizes: dict[Any, Size] = field(default_factory=dict[Any, Size])
    configs: dict[Any, Any] = field(default_factory=dict[Any, Any])


@dataclass
class Planner:
    """Plans one recipe on one machine.

    Attributes:
        recipe: The recipe.
        gpus: The GPUs.
        layout: How they share the model.
        rows: What the data are like.
        assume: What is not known.
        timed: Count FLOPs and time too, not memory alone.
        known: Dry runs of earlier plans.
    """

    recipe: Recipe
    gpus: Gpus
    layout: Layout
    rows: Rows
    assume: Assumptions = field(default_factory=Assumptions)
    timed: bool = True
    known: _Known = field(default_factory=_Known)

    def changed(self, **changes: Any) -> Planner:
        """Return a planner of something else that knows what this one has found out."""
        return replace(self, **changes)

    # -- the model -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The model's configuration."""
        path = self.recipe.model.path
        if path not in self.known.configs:
            self.known.configs[path] = model_config(self.recipe.model)[0]
        return self.known.configs[path]

    @property
    def half(self) -> bool:
        """Whether the computation is in bfloat16."""
        return self.recipe.model.dtype == "bfloat16"

    def size(self, *, trained: bool = True) -> Size:
        """Return how large the model is, as it is trained or as it is run."""
        section = self.recipe.model
        frozen = section.lora is not None or not trained
        dtype = torch.bfloat16 if self.half and frozen else torch.float32
        key = _key(section, dtype)
        if key not in self.known.sizes:
            model = bare_model(self.config, section, depths_of(self.config), dtype)
            self.known.sizes[key] = size_of(self.config, model)
        return self.known.sizes[key]

    def take(self, responses: int, prompts: int, *, training: bool, **how: Any) -> Taken:
        """Run the longest row dry, with so many responses and so many prompts at once."""
        group = self.rows.longest(self.config)
        groups = of_lengths(group, math.ceil(self.rows.largest.response), responses, prompts)
        gathered = self.gpus.count > 1 and self.layout.kind != "ddp"
        work = Work(self.recipe.model, groups, training=training, gathered=gathered, **how)
        key = (_key(self.recipe.model, None), responses, prompts, training, gathered, *sorted(how.items()), self.timed)
        if key not in self.known.taken:
            self.known.taken[key] = take(self.config, work, flops=self.timed and training)
        return self.known.taken[key]

    # -- steps -----------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return the steps of the run in their order."""
        r = self.recipe
        found: list[Step | None] = []
        if r.negatives.correction.by != "none":
            found.append(self._answers())
        if takes_negatives(r):
            found.append(self._negatives("stage1", r.negatives.stage1))
        if r.stage1.enabled:
            found.append(self._training("stage1", r.stage1, self.responses("stage1")))
        if r.stage2.enabled:
            if takes_pairs(r):
                found.append(self._negatives("stage2", r.negatives.stage2))
            if r.stage2.method.needs.reference and r.stage2.reference == "cached":
                found.append(self._reference())
            if isinstance(r.stage2.method, OnPolicyMethod):
                found.append(self._rollouts(r.stage2.method))
            found.append(self._training("stage2", r.stage2, self.responses("stage2")))
        if r.probes.every:
            found.append(self._probes())
        if r.evaluation.prompts:
            found.append(self._evaluation())
        return [step for step in found if step is not None]

    def responses(self, stage: str) -> int:
        """Return how many responses of a prompt a stage scores."""
        r = self.recipe
        if stage == "stage1":
            return 1 + r.negatives.stage1.per_prompt if takes_negatives(r) else 1
        if isinstance(r.stage2.method, OnPolicyMethod):
            return r.stage2.method.samples
        return 1 + r.negatives.stage2.per_prompt

    def prompts_at_once(self, stage: str) -> int:
        """Return the prompts of a forward pass on one GPU.

        Raises:
            RecipeError: The batch cannot be shared by so many.
        """
        return self._section(stage).prompts_at_once(self.gpus.count)

    def _section(self, stage: str) -> StageSection:
        return self.recipe.stage1 if stage == "stage1" else self.recipe.stage2

    def updates(self, stage: str) -> int:
        """Return how many updates a stage makes."""
        return self._section(stage).updates(self.rows.counts[stage])

    def _training(self, name: str, s: StageSection, responses: int) -> Step:
        micro, ranks = self.prompts_at_once(name), self.gpus.count
        twins = 2 if name == "stage2" and self.recipe.stage2.method.needs.image else 1
        taken = self.take(
            responses,
            micro * twins,
            training=True,
            checkpointing=s.gradient_checkpointing,
            offloading=s.activation_offloading,
            accumulating=s.batch_size > micro * ranks,
        )
        memory = standing(self.size(), self.layout, ranks, self.half) + held(taken, self.layout, ranks)
        flops = 0.0
        if name == "stage2" and self._has_live_reference:
            memory += self._live_reference()
            flops += self.updates(name) * s.batch_size * self._forward(responses)
        flops += self.updates(name) * s.batch_size * self._share(taken, micro, responses)
        checkpointed = ", activations recomputed" if s.gradient_checkpointing else ""
        if s.activation_offloading:
            checkpointed += f", {taken.host / GIB:.1f} GiB for each GPU in main memory"
        what = f"{self.updates(name)} updates of {s.batch_size} prompts × {responses}, {micro} at once{checkpointed}"
        return self._step(name, what, memory, flops)

    @property
    def _has_live_reference(self) -> bool:
        s = self.recipe.stage2
        return s.method.needs.reference and s.reference == "live"

    def _live_reference(self) -> Counter[str]:
        """Return what a reference that is run in every step holds: a frozen copy, or that of an adapter."""
        size = self.size()
        own = 4 * size.adapters if self.recipe.model.lora is not None else size.bytes
        shared = self.gpus.count if self.layout.shares_weights else 1
        return Counter({"reference": own // shared})

    def _share(self, taken: Taken, prompts: int, responses: int) -> float:
        """Return a prompt's FLOPs: those of the longest rows, by the tokens of the typical one."""
        typical, largest = self.rows.typical, self.rows.largest
        text = taken.flops["text"] * typical.tokens(responses) / largest.tokens(responses)
        vision = taken.flops["vision"] * typical.visual / largest.visual if largest.visual else 0.0
        return (text + vision) / prompts

    def _forward(self, responses: int) -> float:
        """Return the FLOPs of a prompt's forward pass: of everything once, by the weights that a token meets."""
        if not self.timed:
            return 0.0
        typical, size = self.rows.typical, self.size(trained=False)
        return 2.0 * size.language * typical.tokens(responses) + 2.0 * size.tower * typical.visual * size.patches

    def _reference(self) -> Step:
        responses, micro = self.responses("stage2"), self.prompts_at_once("stage2")
        memory = self._scoring(responses, micro)
        prompts = self.rows.counts["stage2"]
        what = f"log-probabilities of {prompts} prompts × {responses}, once"
        return self._step("reference", what, memory, prompts * self._forward(responses))

    def _scoring(self, responses: int, prompts: int, *, in_training: bool = False) -> Counter[str]:
        """Return the bytes of a forward pass without gradients."""
        ranks, size = self.gpus.count, self.size()
        taken = self.take(responses, prompts, training=False)
        if in_training:
            return standing(size, self.layout, ranks, self.half) + held(taken, self.layout, ranks)
        own = {
            "weights": weights(size, self.layout, ranks),
            "communication": moving(size, self.layout, ranks, self.half),
        }
        return Counter(own) + held(taken, self.layout, ranks)

    def _probes(self) -> Step:
        p = self.recipe.probes
        stages = [name for name in ("stage1", "stage2") if getattr(self.recipe, name).enabled]
        readings = sum(self.updates(name) // p.every + 2 for name in stages)
        responses = 2 + len(p.kinds)
        prompts = min(p.prompts, self.rows.counts["held_out"])
        memory = self._scoring(responses, min(p.batch_size, prompts), in_training=True)
        flops = readings * prompts * self._forward(responses) * self.gpus.count  # every process reads all of them
        return self._step("probes", f"{readings} readings of {prompts} prompts × {responses}", memory, flops)

    # -- generation ------------------------------------------------------------------------------------------------

    def _negatives(self, stage: str, mix: SourceMix) -> Step | None:
        written = mix.on_policy
        if not written or mix.generator.base_urls:
            return None
        shares = mix.shares_at(0.5)
        prompts = self.rows.counts[stage]
        if not mix.pooled:
            prompts = math.ceil(prompts * sum(shares.get(n, 0) for n in written) / sum(shares.values()))
        copies = max(mix.sources[name].copies(mix.most) for name in written)
        what = f"{' and '.join(written)} for {prompts} prompts, {mix.batch_size} at once"
        return self._generation(f"negatives {stage}", what, prompts, mix.batch_size, copies, mix.max_new_tokens)

    def _answers(self) -> Step:
        c = self.recipe.negatives.correction
        prompts = self.rows.counts["stage1"] + self.rows.counts["stage2"]
        what = f"answers to {prompts} prompts, to be corrected, {c.batch_size} at once"
        return self._generation("correction", what, prompts, c.batch_size, 1, c.max_new_tokens)

    def _evaluation(self) -> Step:
        e = self.recipe.evaluation
        prompts = min(e.prompts, self.rows.counts["held_out"])
        models = 1 + self.recipe.stage1.enabled + self.recipe.stage2.enabled
        what = f"captions of {prompts} prompts by {models} models, {e.batch_size} at once"
        return self._generation("evaluation", what, models * prompts, e.batch_size, 1, e.max_new_tokens)

    def _rollouts(self, m: OnPolicyMethod) -> Step:
        size = self.recipe.stage2.batch_size
        prompts = self.updates("stage2") * size
        what = f"{m.samples} responses to each of {prompts} prompts, {m.rollout_batch_size} at once"
        together = min(prompts, m.rollout_updates * size)
        step = self._generation(
            "rollouts", what, prompts, m.rollout_batch_size, m.samples, m.max_new_tokens, in_training=together
        )
        if not self._has_live_reference:
            return step
        return replace(step, memory=dict(Counter(step.memory) + self._live_reference()))

    def _generation(
        self, name: str, what: str, prompts: int, batch: int, copies: int, new: int, *, in_training: int = 0
    ) -> Step:
        """Return a step in which a model writes.

        While a model is trained, it answers so many prompts (`in_training`) before the next updates, and is shared as
        it is trained. Outside of training every GPU holds the whole of it; where weights are shared and it is large, a
        part.
        """
        at_a_time = in_training or prompts
        batch = max(1, min(batch, at_a_time))
        size = self.size() if in_training else self.size(trained=False)
        largest, typical = self.rows.largest, self.rows.typical
        width = 2 if self.half else 4
        reading = self.changed(layout=self.layout.kept_whole()).take(1, batch, training=False)
        memory = held(reading, self.layout.kept_whole(), 1)
        memory["logits"] = 3 * 4 * batch * copies * size.vocabulary
        memory["cache"] = math.ceil(batch * copies * (largest.prompt + largest.visual + new) * size.keys * width)
        large = size.bytes > LARGEST_WHOLE * self.gpus.gpu.gib * GIB
        in_parts = bool(in_training or large) and self.layout.shares_weights and self.gpus.count > 1
        gathering = in_parts * gathered_layers(size, self.half) / self.assume.link
        if in_training:
            memory += standing(size, self.layout, self.gpus.count, self.half)
        elif in_parts:
            memory["weights"] += size.bytes // self.gpus.count
            memory["communication"] = size.outside + 2 * size.block
        else:
            memory["weights"] += size.bytes
        rounds = math.ceil(prompts / max(1, at_a_time))
        batches = rounds * math.ceil(at_a_time / batch)
        read = self._forward(1)
        kept = batch * copies * (typical.prompt + typical.visual + new / 2) * size.keys * width
        gpu = self.gpus.gpu
        token = max(
            (size.bytes + kept) / (gpu.bandwidth * self.assume.bandwidth),
            2.0 * size.language * batch * copies / (gpu.flops * self.assume.utilisation),
            size.layers * self.assume.launch,
            gathering,
        )
        first = max(batch * read / (gpu.flops * self.assume.utilisation), gathering)
        seconds = batches * (first + new * token)
        flops = prompts * (read + copies * new * 2.0 * size.language)
        shared = rounds * math.ceil(batches / rounds / self.gpus.count) / batches
        return Step(
            name, what + ", weights shared" * (in_parts and not in_training), dict(memory), flops, seconds * shared
        )

    def _step(self, name: str, what: str, memory: Counter[str], flops: float) -> Step:
        speed = self.gpus.count * self.gpus.gpu.flops * self.assume.utilisation
        return Step(name, what, dict(memory), flops, flops / speed)

    # -- disk ------------------------------------------------------------------------------------------------------

    def disk(self) -> dict[str, float]:
        """Return the bytes that the run keeps, and those that it needs for a while."""
        r, adapters = self.recipe, self.recipe.model.lora is not None
        size = self.size()
        stages = int(r.stage1.enabled) + int(r.stage2.enabled)
        found: dict[str, float] = {"models of the stages": stages * saved_model(size, adapters=adapters)}
        found["checkpoints while training (three)"] = 3 * checkpoint(size, adapters=adapters)
        texts = 0.0
        for stage in ("stage1", "stage2"):
            if getattr(r, stage).enabled:
                texts += self.rows.counts[stage] * (300 + 5 * self.responses(stage) * self.rows.typical.response)
        found["rows and negatives"] = 2 * texts
        if r.stage2.enabled and r.stage2.method.needs.reference and r.stage2.reference == "cached":
            each = 4 * self.rows.typical.response + 150
            found["reference log-probabilities"] = self.rows.counts["stage2"] * self.responses("stage2") * each
        if r.model.vision_cache_folder is not None:
            found["image features"] = r.model.vision_cache_folder_gib * GIB
        return found


def _key(section: Any, dtype: Any) -> tuple[Any, ...]:
    return (section.model_dump_json(), str(dtype))
