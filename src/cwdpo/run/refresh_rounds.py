"""Rounds of Stage 2: train, stop, have the policy rewrite its negatives, resume from the checkpoint.

A round begins as a resumed run does, so a run that is killed in between ends the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cwdpo.data.jsonl_dataset import LazyGroups
from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.files import append_jsonl, read_json
from cwdpo.methods.cooling import cooling_weight
from cwdpo.models.identity import state_digest
from cwdpo.models.meta_init import is_bare
from cwdpo.negatives.build import regenerate_negatives
from cwdpo.negatives.generating_model import NegativePolicy, ResponseScorer
from cwdpo.negatives.per_update_draw import NegativeSampler, frontier
from cwdpo.negatives.source import SourceContext, seeded
from cwdpo.processes import processes
from cwdpo.recipe import RefreshSection, SourceMix, Stage2Mix
from cwdpo.run.row_fit import negative_fit
from cwdpo.run.run_dir import RunDirectory, placed
from cwdpo.run.run_rows import read_part, write_part
from cwdpo.scoring.reference import ReferenceCache
from cwdpo.scoring.scorer import AutoScorer
from cwdpo.training.callbacks.early_stopping import restore_weights
from cwdpo.training.callbacks.loop_callbacks import RefreshMoment, is_due, trim_rows

__all__ = ["Refresher", "Rounds", "make_picker"]

_MEASURED = 500
"""Prompts on whose negatives mean w_c is measured, where the curriculum does not need all of them."""


def make_picker(run: RunDirectory, mix: SourceMix, scores: Path) -> NegativeSampler | None:
    """Return what draws an update's negatives, or None where they are drawn before training.

    Args:
        run: The run.
        mix: The stage's negatives.
        scores: Log-probabilities of the candidates, as last measured.
    """
    if not mix.pooled:
        return None
    two, weights = run.recipe.stage2, None
    if isinstance(mix, Stage2Mix) and mix.curriculum == "frontier":
        weights = frontier(ReferenceCache(scores), two.floor, two.tau)
    return NegativeSampler(mix, run.recipe.negatives.seed, weights)


class Rounds:
    """What a stage trains on where its negatives stay: one round.

    Args:
        groups: Prompts with their negatives.
        scores: Log-probabilities of these under the model that the stage starts from.
    """

    def __init__(self, groups: LazyGroups, scores: Path) -> None:
        self.first_groups, self._first_scores = groups, scores

    @property
    def groups(self) -> LazyGroups:
        """The prompts of this round, always as many and in the same order."""
        return self.first_groups

    @property
    def scores(self) -> Path:
        """Log-probabilities of this round's candidates under the policy that wrote the newest of them."""
        return self._first_scores

    def moment(self) -> RefreshMoment | None:
        """Return the callback that ends this round, or None where the stage's end does."""
        return None

    def begin(self, checkpoint: Path | None) -> None:
        """Take up the round that a checkpoint belongs to; None where training has not begun."""


class Refresher(Rounds):
    """The rounds of a Stage 2 whose on-policy negatives are refreshed.

    Every refresh is a row of `stage2/refreshes.jsonl`, written last, and a folder `negatives/stage2/refresh-<update>`.

    Args:
        run: The run.
        settings: When to refresh.
        start: The model that the stage starts from.
        groups: Prompts with the negatives of the first round.
        scores: Log-probabilities of these under that model.
    """

    def __init__(
        self, run: RunDirectory, settings: RefreshSection, start: str, groups: LazyGroups, scores: Path
    ) -> None:
        super().__init__(groups, scores)
        self._run, self._settings, self._start = run, settings, start
        self._mix = run.recipe.negatives.stage2
        self._path = run.folder / "stage2" / "refreshes.jsonl"
        self._rows: list[dict[str, Any]] = []

    def _folder(self, step: int) -> Path:
        return self._run.folder / "negatives" / "stage2" / f"refresh-{step}"

    @property
    def groups(self) -> LazyGroups:
        """The prompts of this round, always as many and in the same order."""
        if not self._rows:
            return self.first_groups
        rows = len(self.first_groups)
        return read_part(self._run, self._folder(self._rows[-1]["step"]) / "groups.jsonl", "chosen", rows)

    @property
    def scores(self) -> Path:
        """Log-probabilities of this round's candidates under the policy that wrote the newest of them."""
        if not self._rows:
            return self._first_scores
        row = self._rows[-1]
        return ResponseScorer.path(self._folder(row["step"]), row["policy"])

    def moment(self) -> RefreshMoment:
        """Return the callback that ends this round."""
        return RefreshMoment(self._settings, self._last)

    @property
    def _last(self) -> int:
        return self._rows[-1]["step"] if self._rows else 0

    def begin(self, checkpoint: Path | None) -> None:
        """Take up the round that a checkpoint belongs to, refreshing first where that is due.

        Args:
            checkpoint: The last whole one; None where training has not begun.
        """
        policy = functools.cache(lambda: self._policy(checkpoint))
        team = processes()
        help: dict[str, Callable[[Any], Any]] = {"generate": lambda asked: policy().write(asked)}
        if team.in_step:
            help["score"] = lambda job: policy().score(job)
        self._rows = team.lead(lambda: self._refreshed(checkpoint, policy), **help)

    def _refreshed(self, checkpoint: Path | None, policy: Callable[[], NegativePolicy]) -> list[dict[str, Any]]:
        """Refresh where that is due; return the rows of all refreshes so far."""
        state: dict[str, Any] = read_json(checkpoint / "trainer_state.json") if checkpoint is not None else {}
        step = state.get("global_step", 0)
        self._rows = trim_rows(self._path, step)
        if checkpoint is None:
            return self._rows
        facts = {"step": step, "updates": state["max_steps"], "history": state["log_history"]}
        if is_due(self._settings, last=self._last, **facts):
            self._refresh(policy(), step)
        return self._rows

    def _refresh(self, policy: NegativePolicy, step: int) -> None:
        run, mix, folder = self._run, self._mix, self._folder(step)
        run.reporter.step("refresh", f"Stage 2, update {step}: the model rewrites its negatives")
        scorer = ResponseScorer(policy, folder, mix.batch_size)
        old = self.groups
        context = SourceContext(
            rows=old,
            mix=mix,
            seed=run.recipe.negatives.seed,
            folder=folder,
            policy=policy,
            progress=lambda done, total: run.reporter.progress("generating negatives", done, total),
            unfit=negative_fit(run, self._start),
        )
        built = regenerate_negatives(context)
        before, after = (self._mean_weight(scorer, groups) for groups in (old, built.groups))
        write_part(run, folder / "groups.jsonl", built.groups)
        made = dict(built.counts.used)
        row: dict[str, Any] = {"step": step, "policy": policy.digest, "new": made, "old": built.old}
        row |= {"dropped": built.counts.dropped, "w_c_before": before, "w_c_after": after}
        append_jsonl(self._path, row)
        self._rows.append(row)
        new = ", ".join(f"{n} new from {source}" for source, n in made.items()) or "nothing new"
        stayed = f", {row['old']} old ones stay" if row["old"] else ""
        run.reporter.note(f"{new}{stayed}; mean w_c of on-policy negatives {before:.3f} before, {after:.3f} after")

    def _policy(self, checkpoint: Path | None) -> NegativePolicy:
        """Load the policy as a checkpoint has it."""
        assert checkpoint is not None
        run, m = self._run, self._run.recipe.model
        model = run.trainable(self._start, shared=False)
        if not is_bare(model):
            restore_weights(model, checkpoint)
        return NegativePolicy(
            load=lambda: placed(model),
            encoder=run.encoder(self._start, model, include_eos=run.recipe.stage2.include_eos),
            digest=state_digest(model) if processes().main else "",  # helpers keep nothing under it
            scorer=AutoScorer.of(m),
        )

    def _mean_weight(self, scorer: ResponseScorer, groups: Sequence[PromptGroup]) -> float:
        """Return mean w_c of on-policy negatives; where the curriculum needs it, score all candidates on the way."""
        two, everything = self._run.recipe.stage2, self._mix.curriculum == "frontier"
        asked = [
            g.with_responses([r for r in g.by_role(REJECTED) if everything or r.source in self._mix.on_policy])
            for g in groups
        ]
        asked = [g for g in asked if g.responses]
        if not everything:
            chance = seeded(self._run.recipe.negatives.seed, "refresh", "measured")
            asked = chance.sample(asked, min(_MEASURED, len(asked)))
        values = scorer.logp_means(
            asked, lambda done, total: self._run.reporter.progress("scoring negatives", done, total)
        )
        logps = [
            value
            for group, row in zip(asked, values, strict=True)
            for response, value in zip(group.responses, row, strict=True)
            if response.source in self._mix.on_policy
        ]
        return float(cooling_weight(torch.tensor(logps), floor=two.floor, tau=two.tau).mean())
