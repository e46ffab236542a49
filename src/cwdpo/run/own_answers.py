"""The model's own answers and their corrections, before Stage 1 (OPA-DPO)."""

from __future__ import annotations

from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.models.identity import folder_digest
from cwdpo.negatives.generating_model import NegativePolicy
from cwdpo.negatives.opa_correction import CORRECTED, correct_answers
from cwdpo.processes import processes
from cwdpo.run.run_dir import RunDirectory, resolved
from cwdpo.run.run_rows import data_groups, write_part

__all__ = ["correct_run", "taught"]


def correct_run(run: RunDirectory) -> None:
    """Let the model answer the prompts of both stages, and have the answers corrected, once."""
    c = run.recipe.negatives.correction
    team = processes()
    if c.by == "none" or team.lead(lambda: run.done("correction")):
        return
    model = run.model_path if c.model is None else resolved(c.model)
    policy = NegativePolicy(lambda: run.inference_model(model), run.encoder(model), folder_digest(model))
    team.lead(lambda: _correct(run, policy), **policy.help)


def _correct(run: RunDirectory, policy: NegativePolicy) -> None:
    negatives, folder = run.recipe.negatives, run.folder / "correction"
    run.reporter.step("correction", f"the model's own answers, corrected ({negatives.correction.by})")
    counts: dict[str, dict[str, int]] = {}
    for stage in ("stage1", "stage2"):
        groups = data_groups(run, stage)
        if not getattr(run.recipe, stage).enabled or not groups:
            continue
        made = correct_answers(
            groups,
            negatives.correction,
            seed=negatives.seed,
            folder=folder / stage,
            policy=policy,
            editor=negatives.editor,
            progress=lambda done, total: run.reporter.progress("answers of the model", done, total),
            note=run.reporter.note,
        )
        write_part(run, folder / f"{stage}.jsonl", made.groups)
        counts[stage] = made.counts
        run.reporter.note(f"{stage}: " + ", ".join(f"{n} {name}" for name, n in made.counts.items()))
    run.finish("correction", {"policy": policy.digest, "counts": counts})


def taught(group: PromptGroup) -> PromptGroup:
    """Return a prompt with what Stage 1 without negatives learns: its first chosen response, and a corrected answer."""
    chosen = group.by_role(CHOSEN)
    return group.with_responses((*chosen[:1], *(r for r in chosen[1:] if r.source == CORRECTED)))
