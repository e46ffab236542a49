"""A recipe's steps: memory on one GPU, FLOPs, time and disk of each, before any of them is run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cwdpo.errors import RecipeError
from cwdpo.methods.on_policy import OnPolicyMethod
from cwdpo.models.fsdp import LARGEST_WHOLE
from cwdpo.planning.data_shape import Rows, of_lengths
from cwdpo.planning.gpus import GIB, Gpus, Layout
from cwdpo.planning.meta_models import Size, bare_model, model_config, size_of
from cwdpo.planning.step_cost import Taken, Work, take
from cwdpo.recipe import Recipe, SourceMix, StageSection
from cwdpo.run.prepare_data import takes_negatives, takes_pairs

__all__ = ["FRAGMENTS", "RESERVE", "Assumptions", "Planner", "Step", "checkpoint_bytes", "model_bytes"]

RESERVE = 1.5
"""GiB that torch, CUDA and the library of collectives take beside tensors; an assumption."""
FRAGMENTS = 0.04
"""Share of the tensors' bytes that torch's allocator holds and cannot use; an assumption."""
_MOMENTS = 8
"""Bytes of AdamW's two moments of a weight."""


@dataclass(frozen=True)
class Assumptions:
    """What is not known before a run.

    Attributes:
        utilisation: Share of the processor's arithmetic that training and scoring reach.
        bandwidth: Share of the memory's speed that generation reaches.
        launch: Seconds that a layer takes for one token however small it is: transformers launches its kernels one
            by one.
        link: Bytes a second that a GPU gets from the others, where sharded weights are gathered for every token;
            NVLink's order of magnitude.
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
    """

    name: str
    what: str
    memory: dict[str, float]
    flops: float
    seconds: float

    @property
    def gib(self) -> float:
        """What a GPU needs, with what is reserved."""
        return sum(self.memory.values()) * (1 + FRAGMENTS) / GIB + RESERVE


@dataclass(frozen=True)
class Planner:
    """Plans one recipe on one machine.

    Attributes:
        recipe: The recipe.
        gpus: The GPUs.
        layout: How they share the model.
        rows: What the data are like.
        assume: What is not known.
        known: Models, sizes and dry runs of earlier plans: changes of a recipe share most of them.
    """

    recipe: Recipe
    gpus: Gpus
    layout: Layout
    rows: Rows
    assume: Assumptions = field(default_factory=Assumptions)
    known: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def __post_init__(self) -> None:
        """Refuse what training refuses too."""
        stages = {name: self._section(name) for name in self._stages}
        asked = {f"{name}.activation_offloading": s.activation_offloading for name, s in stages.items()}
        for key, value in ({"model.quantization": self.recipe.model.quantization is not None} | asked).items():
            if value and self.layout.kind != "ddp":
                raise RecipeError(
                    f"{self.layout.source}: {key} needs whole weights, which FSDP takes apart; leave it out, or use DDP"
                )

    def changed(self, **changes: Any) -> Planner:
        """Return a planner of something else that knows what this one has found out."""
        return replace(self, **changes)

    # -- the model -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The model's configuration."""
        path = self.recipe.model.path
        if path not in self.known:
            self.known[path] = model_config(self.recipe.model)[0]
        return self.known[path]

    @property
    def half(self) -> bool:
        """Whether the computation is in bfloat16."""
        return self.recipe.model.dtype == "bfloat16"

    @property
    def sharded(self) -> bool:
        """Whether no GPU holds the whole model while it is trained."""
        return self.gpus.count > 1 and self.layout.kind == "fsdp2"

    def size(self, *, trained: bool = True) -> Size:
        """Return how large the model is, as it is trained or as it is run."""
        section = self.recipe.model
        frozen = section.lora is not None or not trained
        dtype = torch.bfloat16 if self.half and frozen else torch.float32
        key = (section.model_dump_json(), dtype)
        if key not in self.known:
            self.known[key] = size_of(self.config, bare_model(self.config, section, dtype))
        return self.known[key]

    def take(self, responses: int, prompts: int, *, training: bool, gathered: bool, **how: Any) -> Taken:
        """Run the longest row dry, with so many responses and so many prompts at once."""
        section = self.recipe.model
        key = (section.model_dump_json(), responses, prompts, training, gathered, *sorted(how.items()))
        if key not in self.known:
            groups = of_lengths(self.rows.group, math.ceil(self.rows.largest.response), responses, prompts)
            self.known[key] = take(self.config, Work(section, groups, training=training, gathered=gathered, **how))
        return self.known[key]

    def standing(self, *, training: bool) -> Counter[str]:
        """Return the bytes beside a step's own: weights, AdamW's moments, buffers of what is gathered or summed up."""
        size, ranks, trained = self.size(), self.gpus.count, self.size().trained if training else 0
        if not self.sharded:
            sums = 4 * trained if ranks > 1 else 0
            return Counter(weights=size.bytes, optimiser=_MOMENTS * trained, communication=sums)
        shard = 0 if self.layout.offload else 1 / ranks
        buffers = self._travels(size) * (size.outside + 2 * size.block) + (4 * size.block_trained if training else 0)
        found = {"weights": shard * size.bytes, "gradients": shard * 4 * trained, "communication": buffers}
        return Counter({name: int(n) for name, n in (found | {"optimiser": shard * _MOMENTS * trained}).items()})

    def _travels(self, size: Size) -> float:
        """Return the part of the weights' bytes that travels: float32 weights are gathered in bfloat16."""
        return 0.5 if self.half and size.bytes >= 4 * size.weights else 1.0

    def _held(self, taken: Taken) -> Counter[str]:
        """Return what a step holds at its worst moment, by what people call it."""
        found: Counter[str] = Counter()
        names = {"copies": "weights", "gradients": "gradients"}
        for kind, size in taken.held.items():
            part = "pictures" if kind.startswith("images") else "logits" if kind.startswith("head") else "activations"
            if kind != "gradients" or not self.sharded:
                found[names.get(kind, part)] += size
        return found

    # -- steps -----------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return the steps of the run in their order.

        Raises:
            UserError: The model cannot be planned, or so many GPUs cannot share a batch.
        """
        r = self.recipe
        found: list[Step | None] = []
        if r.negatives.correction.by != "none":
            found.append(self._answers())
        for stage in self._stages:
            if takes_negatives(r) if stage == "stage1" else takes_pairs(r):
                found.append(self._negatives(stage, getattr(r.negatives, stage)))
            if stage == "stage2" and r.stage2.method.needs.reference and r.stage2.reference == "cached":
                found.append(self._reference())
            if stage == "stage2" and isinstance(r.stage2.method, OnPolicyMethod):
                found.append(self._rollouts(r.stage2.method))
            found.append(self.training(stage))
        if r.probes.every:
            found.append(self._probes())
        if r.evaluation.prompts:
            found.append(self._evaluation())
        return [step for step in found if step is not None]

    @property
    def _stages(self) -> list[str]:
        return [name for name in ("stage1", "stage2") if self._section(name).enabled]

    def _section(self, stage: str) -> StageSection:
        return self.recipe.stage1 if stage == "stage1" else self.recipe.stage2

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

    def updates(self, stage: str) -> int:
        """Return how many updates a stage makes."""
        return self._section(stage).updates(self.rows.counts[stage])

    def training(self, stage: str) -> Step:
        """Return the updates of a stage."""
        s, responses, micro = self._section(stage), self.responses(stage), self.prompts_at_once(stage)
        second = self.recipe.stage2.method.needs.image and stage == "stage2"
        taken = self.take(
            responses,
            micro * (2 if second else 1),
            training=True,
            gathered=self.sharded,
            checkpointing=s.gradient_checkpointing,
            offloading=s.activation_offloading,
            accumulating=s.batch_size > micro * self.gpus.count,
        )
        memory, prompts = self.standing(training=True) + self._held(taken), self.updates(stage) * s.batch_size
        typical, largest = self.rows.typical, self.rows.largest  # FLOPs are those of the longest rows
        text = taken.flops["text"] * typical.tokens(responses) / largest.tokens(responses)
        vision = taken.flops["vision"] * typical.visual / largest.visual if largest.visual else 0.0
        flops = prompts * (text + vision) / micro
        if stage == "stage2" and self._has_live_reference:
            memory += self._live_reference()
            flops += prompts * self._forward(responses)
        notes = ", activations recomputed" if s.gradient_checkpointing else ""
        if s.activation_offloading:
            notes += f", {taken.host / GIB:.1f} GiB for each GPU in main memory"
        what = f"{self.updates(stage)} updates of {s.batch_size} prompts × {responses}, {micro} at once{notes}"
        return self._step(stage, what, memory, flops)

    @property
    def _has_live_reference(self) -> bool:
        s = self.recipe.stage2
        return s.method.needs.reference and s.reference == "live"

    def _live_reference(self) -> Counter[str]:
        """Return what a reference that is run in every step holds: a frozen copy, or that of an adapter."""
        size = self.size()
        own = 4 * size.adapters if self.recipe.model.lora is not None else size.bytes
        return Counter({"reference": own // (self.gpus.count if self.sharded else 1)})

    def _forward(self, responses: int) -> float:
        """Return the FLOPs of a prompt's forward pass: of everything once, by the weights that a token meets."""
        typical, size = self.rows.typical, self.size(trained=False)
        return 2.0 * size.language * typical.tokens(responses) + 2.0 * size.tower * typical.visual * size.patches

    def _scoring(self, responses: int, prompts: int, *, in_training: bool) -> Counter[str]:
        """Return the bytes of a forward pass without gradients."""
        taken = self.take(responses, prompts, training=False, gathered=self.sharded)
        return self.standing(training=in_training) + self._held(taken)

    def _reference(self) -> Step:
        responses, prompts = self.responses("stage2"), self.rows.counts["stage2"]
        memory = self._scoring(responses, self.prompts_at_once("stage2"), in_training=False)
        what = f"log-probabilities of {prompts} prompts × {responses}, once"
        return self._step("reference", what, memory, prompts * self._forward(responses))

    def _probes(self) -> Step:
        p = self.recipe.probes
        readings = sum(self.updates(name) // p.every + 2 for name in self._stages)
        responses = 2 + len(p.kinds)
        prompts = min(p.prompts, self.rows.counts["held_out"])
        memory = self._scoring(responses, min(p.batch_size, prompts), in_training=True)
        flops = readings * prompts * self._forward(responses) * self.gpus.count  # every process reads all of them
        return self._step("probes", f"{readings} readings of {prompts} prompts × {responses}", memory, flops)

    def _step(self, name: str, what: str, memory: Counter[str], flops: float) -> Step:
        speed = self.gpus.count * self.gpus.gpu.flops * self.assume.utilisation
        return Step(name, what, dict(memory), flops, flops / speed)

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
        models = 1 + len(self._stages)
        what = f"captions of {prompts} prompts by {models} models, {e.batch_size} at once"
        return self._generation("evaluation", what, models * prompts, e.batch_size, 1, e.max_new_tokens)

    def _rollouts(self, m: OnPolicyMethod) -> Step:
        size = self.recipe.stage2.batch_size
        prompts = self.updates("stage2") * size
        what = f"{m.samples} responses to each of {prompts} prompts, {m.rollout_batch_size} at once"
        together = min(prompts, m.rollout_updates * size)
        batch, new = m.rollout_batch_size, m.max_new_tokens
        step = self._generation("rollouts", what, prompts, batch, m.samples, new, in_training=together)
        if not self._has_live_reference:
            return step
        return replace(step, memory=dict(Counter(step.memory) + self._live_reference()))

    def _generation(
        self, name: str, what: str, prompts: int, batch: int, copies: int, new: int, *, in_training: int = 0
    ) -> Step:
        """Return a step in which a model writes.

        While a model is trained, it answers so many prompts (`in_training`) before the next updates, and is sharded as
        it is trained. Outside of training every GPU holds the whole of it; where weights are sharded and it is large, a
        shard.
        """
        at_a_time = in_training or prompts
        batch = max(1, min(batch, at_a_time))
        size, gpu, ranks = self.size(trained=bool(in_training)), self.gpus.gpu, self.gpus.count
        largest, typical, width = self.rows.largest, self.rows.typical, 2 if self.half else 4
        in_parts = self.sharded and (in_training > 0 or size.bytes > LARGEST_WHOLE * gpu.gib * GIB)
        memory = self._held(self.take(1, batch, training=False, gathered=False))
        memory["logits"] = 3 * 4 * batch * copies * size.vocabulary
        memory["cache"] = math.ceil(batch * copies * (largest.prompt + largest.visual + new) * size.keys * width)
        if in_training:
            memory += self.standing(training=True)
        elif in_parts:
            memory += Counter(weights=size.bytes // ranks, communication=size.outside + 2 * size.block)
        else:
            memory["weights"] += size.bytes
        rounds = math.ceil(prompts / max(1, at_a_time))
        batches = rounds * math.ceil(at_a_time / batch)
        gathering = in_parts * self._travels(size) * (size.bytes - size.outside) / self.assume.link
        kept = batch * copies * (typical.prompt + typical.visual + new / 2) * size.keys * width
        token = max(
            (size.bytes + kept) / (gpu.bandwidth * self.assume.bandwidth),
            2.0 * size.language * batch * copies / (gpu.flops * self.assume.utilisation),
            size.layers * self.assume.launch,
            gathering,
        )
        first = max(batch * self._forward(1) / (gpu.flops * self.assume.utilisation), gathering)
        seconds = rounds * math.ceil(batches / rounds / ranks) * (first + new * token)
        flops = prompts * (self._forward(1) + copies * new * 2.0 * size.language)
        what += ", weights shared" * (in_parts and not in_training)
        return Step(name, what, dict(memory), flops, seconds)

    # -- disk ------------------------------------------------------------------------------------------------------

    def disk(self) -> dict[str, float]:
        """Return the bytes that the run keeps, and those that it needs for a while."""
        r, size, rows = self.recipe, self.size(), self.rows
        adapters = r.model.lora is not None
        prompts = sum(rows.counts[s] * (300 + 5 * self.responses(s) * rows.typical.response) for s in self._stages)
        found: dict[str, float] = {
            "models of the stages": len(self._stages) * model_bytes(size, adapters=adapters),
            "checkpoints while training (three)": 3 * checkpoint_bytes(size, adapters=adapters),
            "rows and negatives": 2 * prompts,
        }
        if r.stage2.enabled and r.stage2.method.needs.reference and r.stage2.reference == "cached":
            each = 4 * rows.typical.response + 150
            found["reference log-probabilities"] = rows.counts["stage2"] * self.responses("stage2") * each
        if r.model.vision_cache_folder is not None:
            found["image features"] = r.model.vision_cache_folder_gib * GIB
        return found


def model_bytes(size: Size, *, adapters: bool) -> int:
    """Return the bytes of a saved model, or of its adapters."""
    return 4 * size.trained if adapters else size.bytes


def checkpoint_bytes(size: Size, *, adapters: bool) -> int:
    """Return the bytes of a checkpoint: model and AdamW's moments, in one piece (DDP) or in shards (FSDP2)."""
    return model_bytes(size, adapters=adapters) + _MOMENTS * size.trained
