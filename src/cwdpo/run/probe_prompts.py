"""The prompts of a probe set, and further kinds of response for them."""

from __future__ import annotations

from itertools import chain, islice

from cwdpo.chat.language_model import LanguageModel
from cwdpo.data.schema import CHOSEN, PromptGroup
from cwdpo.errors import DataError
from cwdpo.files import read_jsonl, write_jsonl
from cwdpo.negatives.generating_model import NegativePolicy, PolicyJob, has_images
from cwdpo.negatives.llm_rewrites import rewrite_by_llm
from cwdpo.negatives.rule_rewrites import REWRITES, rewritten_by_rules
from cwdpo.probes.probe_responses import with_kinds
from cwdpo.probes.reading import probe_digest
from cwdpo.processes import processes
from cwdpo.recipe import Recipe
from cwdpo.run.prepare_data import load_source, prepare_data
from cwdpo.run.run_dir import RunDirectory
from cwdpo.run.run_rows import groups_of, negative_policy

__all__ = ["given_prompts", "make_probe_set", "probe_groups"]


def make_probe_set(run: RunDirectory) -> list[PromptGroup]:
    """Return the probe prompts of a recipe, in a run directory in which nothing needs to be done yet."""
    with run.locked():
        run.settle()
        prepare_data(run)
        return probe_groups(run)


def probe_groups(run: RunDirectory) -> list[PromptGroup]:
    """Return the probe prompts with the kinds of response that the recipe asks for; all processes call it together.

    The kinds depend on the data and `probes.seed` alone, except for the model's own answers: the run's first model
    writes these once, into `probes/own.jsonl`. So both stages are measured on the same responses.

    Raises:
        DataError: The file of probe prompts is not the one that `probes.digest` names.
    """
    own = "own" in run.recipe.probes.kinds
    first = negative_policy(run, "stage1", run.model_path) if own else None
    return processes().lead(lambda: _probe_groups(run, first), **(first.help if first is not None else {}))


def given_prompts(recipe: Recipe) -> list[PromptGroup]:
    """Return the prompts of the file `probes.path`; none where there is no such key.

    Raises:
        DataError: They cannot be read, or are not those that `probes.digest` names.
    """
    p = recipe.probes
    if p.path is None:
        return []
    groups = list(load_source(recipe, p.path, format="auto", limit=None, image_root=None).groups)
    if p.digest is not None and (content := probe_digest(groups)) != p.digest:
        raise DataError(
            f"{p.path}: its content is {content}, but probes.digest is {p.digest}: the probe prompts have changed; "
            "bring the file back, or set probes.digest to the new content (readings of the two do not compare)"
        )
    return groups


def _probe_groups(run: RunDirectory, first: NegativePolicy | None) -> list[PromptGroup]:
    p = run.recipe.probes
    groups = given_prompts(run.recipe) if p.path is not None else groups_of(run, "held_out")
    groups = list(islice((g for g in groups if g.by_role(CHOSEN)), p.prompts))
    if not p.kinds or not groups:
        return groups
    train = chain(groups_of(run, "stage1"), groups_of(run, "stage2"))
    written = _rewritten(run, groups)
    if first is not None:
        written["own"] = _own_answers(run, first, groups)
    return with_kinds(groups, p.kinds, train=train, written=written, seed=p.seed)


def _rewritten(run: RunDirectory, groups: list[PromptGroup]) -> dict[str, dict[str, str]]:
    """Return rewritten responses by kind and prompt."""
    p = run.recipe.probes
    kinds = [kind for kind in p.kinds if kind in REWRITES]
    if p.rewriter == "rules" or not kinds:
        return {kind: rewritten_by_rules(groups, kind, p.seed) for kind in kinds}
    path = run.folder / "probes" / "rewrites.jsonl"
    model = LanguageModel(run.recipe.negatives.editor, path, note=run.reporter.note)
    return {kind: rewrite_by_llm(model, groups, kind) for kind in kinds}


def _own_answers(run: RunDirectory, first: NegativePolicy, groups: list[PromptGroup]) -> dict[str, str]:
    """Return a sample of the run's first model for every prompt."""
    p, path = run.recipe.probes, run.folder / "probes" / "own.jsonl"
    rows = list(read_jsonl(path)) if path.is_file() else []
    if [(row["id"], row["seed"]) for row in rows] == [(group.id, p.seed) for group in groups]:
        return {row["id"]: row["text"] for row in rows}
    run.reporter.step("probes", f"the model's own answers to {len(groups)} probe prompts")
    how = {"max_new_tokens": run.recipe.evaluation.max_new_tokens, "temperature": 1.0}
    starts = range(0, len(groups), p.batch_size)
    jobs = [PolicyJob(groups[start : start + p.batch_size], {**how, "seed": p.seed + start}) for start in starts]
    batches = processes().map("generate", jobs, first.write, has_images)
    answers = [answer for batch in batches for answer in batch]
    texts = {group.id: answer[0] for group, answer in zip(groups, answers, strict=True)}
    write_jsonl(path, [{"id": name, "seed": p.seed, "text": text} for name, text in texts.items()])
    return texts
