"""What training does to fixed held-out prompts: Δ log p by kind of response, sharpness, calibration, drift."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError, NonFiniteError
from cwdpo.files import text_digest
from cwdpo.methods.cooling import cooling_weight
from cwdpo.models.modes import inference
from cwdpo.probes.calibration import Calibration
from cwdpo.probes.divergence import jensen_shannon, total_variation
from cwdpo.probes.figures import ProbeFigure
from cwdpo.scoring.batch import Batch, EncodedResponse, ResponseLogits, Scores
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["ProbeSet", "Probed", "ScoredResponse", "kind_of", "probe_digest"]

_TINY = torch.finfo(torch.float32).tiny
_CACHED_BYTES = 256 * 2**20
"""Encoded probes (pixels) smaller than this stay in memory between readings."""
_POSITIONS = 512
"""Token positions whose distributions are compared at once."""


def kind_of(response: EncodedResponse | Response) -> str:
    """Return the kind under which a response is reported: chosen, a negative's difficulty, or its role."""
    if response.role == REJECTED and response.difficulty is not None:
        return response.difficulty
    return response.role


def probe_digest(groups: Sequence[PromptGroup]) -> str:
    """Return the content of probe prompts: messages, images, responses. Two runs compare where it is the same."""
    parts: list[str] = []
    for group in groups:
        parts += [group.id, json.dumps([dict(m) for m in group.messages])]
        parts += [image.digest() for image in group.images]
        parts += [json.dumps(r.to_json()) for r in group.responses]
    return text_digest(*parts)


@dataclass(frozen=True)
class ScoredResponse:
    """One response of the probe prompts under the model, a value per token.

    Attributes:
        prompt: Id of its prompt.
        kind: `chosen`, `hard`, …
        logps: `Float[tokens]`, log π of the response's tokens, nats.
        entropy: `Float[tokens]`, of the predictive distribution, nats.
        top1: `Float[tokens]`, largest probability.
        correct: `Bool[tokens]`, the argmax is the response's token.
    """

    prompt: str
    kind: str
    logps: Tensor
    entropy: Tensor
    top1: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Probed:
    """What a figure of your own is given at a reading.

    Attributes:
        model: The policy, in evaluation mode, without gradients.
        batches: The encoded probe prompts.
        scores: The scores of each batch.
    """

    model: Any
    batches: Sequence[Batch]
    scores: Sequence[Scores]

    def responses(self, kind: str | None = CHOSEN) -> Iterator[ScoredResponse]:
        """Yield the responses of a kind, or all of them where it is None."""
        for batch, s in zip(self.batches, self.scores, strict=True):
            for i, response in enumerate(batch.responses):
                if kind in (None, kind_of(response)):
                    mask, prompt = s.mask[i], batch.groups[batch.owner[i]].id
                    values = (v[i][mask] for v in (s.logps, s.entropy, s.top1, s.correct))
                    yield ScoredResponse(prompt, kind_of(response), *values)


class ProbeSet:
    """Fixed prompts with several kinds of response, scored by teacher forcing.

    Args:
        groups: Held-out prompts; each has a chosen response.
        encoder: The trainer's prompt encoder.
        batch_size: Prompts per forward pass.
        floor: ℓ_floor of the cooling weight that is reported.
        tau: Its τ.

    Raises:
        DataError: No prompt has a chosen response.
    """

    def __init__(
        self, groups: Sequence[PromptGroup], encoder: PromptEncoder, *, batch_size: int, floor: float, tau: float
    ) -> None:
        self.groups = [g for g in groups if g.by_role(CHOSEN)]
        if not self.groups:
            raise DataError("probes: no prompt has a chosen response; give held-out rows with one")
        self.encoder, self.batch_size, self.floor, self.tau = encoder, batch_size, floor, tau
        self._cached: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def digest(self) -> str:
        """Content of the probe set (prompts, images, responses), so that two runs can be compared on the same one."""
        return probe_digest(self.groups)

    def _batches(self) -> list[Batch]:
        if self._cached is not None:
            return self._cached
        starts = range(0, len(self.groups), self.batch_size)
        parts = [self.groups[i : i + self.batch_size] for i in starts]
        batches = [Batch(tuple(self.encoder.encode(g) for g in part)) for part in parts]
        size = sum(t.numel() * t.element_size() for b in batches for g in b.groups for t in g.vision.values())
        if size < _CACHED_BYTES:
            self._cached = batches
        return batches

    def read(
        self,
        model: Any,
        scorer: Scorer,
        *,
        start: Tensor | None = None,
        keep: bool = False,
        before: Any = None,
        per_prompt: bool = False,
        tokens: int = 0,
        figures: Sequence[ProbeFigure] = (),
    ) -> tuple[dict[str, Any], Tensor | None]:
        """Measure once. Changes neither weights, mode nor random state.

        Args:
            model: The policy.
            scorer: How responses are scored.
            start: `Float[chosen tokens, vocabulary]`, the logits that TV and JS compare with.
            keep: Return such logits of now, and compare with these where there is no `start`.
            before: Another model that TV and JS compare with instead, run beside this one.
            per_prompt: Add `prompts`: per prompt, the mean log-probability of each kind.
            tokens: Add `top_tokens` of the gold responses of so many prompts.
            figures: Figures of your own.

        Returns:
            The reading and the kept logits, if asked for. Per kind, means over responses: `logp_mean` (nats per
            token), `logp_sum` (nats), `entropy`, `top1` and `off_argmax` = 1 − top1 (means over tokens), `argmax_logp`
            (Σ_t log max_v π_t on the response's own prefix, nats), `cooling_weight`. Over the chosen responses: `ece`,
            `accuracy` (share of tokens that are the argmax), `entropy`, `top1`, `tv`, `js`. Over pairs: `ranking`, the
            share in which the chosen response is likelier per token. `gap`: log p of chosen minus that of hard.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        by_kind: dict[str, dict[str, list[Tensor]]] = {}
        calibration, kept, drift = Calibration(), list[Tensor](), list[Tensor]()
        prompts, shown = list[dict[str, Any]](), list[dict[str, Any]]()
        scored: list[Scores] = []
        seen, above, pairs = 0, 0, 0
        with inference(model):
            batches = self._batches()
            for batch in batches:
                output = scorer(model, batch)
                scores = scores_from_logits(output)
                scored.append(scores)
                if not bool(torch.isfinite(scores.logps).all()):
                    names = ", ".join(g.origin for g in batch.groups)
                    raise NonFiniteError(f"probe: a log-probability is not finite ({names}); lower the learning rate")
                if per_prompt:
                    prompts += _by_prompt(batch, scores.logp_mean)
                if len(shown) < tokens:
                    shown += top_tokens(output, batch, self.encoder.tokenizer, tokens - len(shown))
                winners, losers = batch.pairs()
                above += int((scores.logp_mean[winners] > scores.logp_mean[losers]).sum())
                pairs += len(losers)
                self._add(by_kind, batch, scores)
                chosen = torch.tensor(batch.rows(CHOSEN), device=scores.logps.device)
                mask = scores.mask[chosen]
                calibration.update(scores.top1[chosen][mask].cpu(), scores.correct[chosen][mask].cpu())
                if start is None and before is None and not keep:
                    continue
                gold = torch.isin(output.rows, chosen)
                now = output.logits[gold]
                then = now if start is None else start[seen : seen + len(now)]
                if before is not None:
                    with inference(before):
                        then = scorer(before, batch).logits[gold]
                drift.append(_drift(then, now))
                seen += len(now)
                if keep:
                    kept.append(now.cpu())
            own = [(f, f.values(Probed(model, batches, scored))) for f in figures]
        reading: dict[str, Any] = {
            "kinds": {kind: _summary(values) for kind, values in by_kind.items()},
            "ece": calibration.ece(),
            "accuracy": calibration.accuracy(),
            "reliability": calibration.reliability(),
        }
        kinds = reading["kinds"]
        reading |= {name: kinds[CHOSEN][name] for name in ("entropy", "top1")}
        if drift:
            tv, js = torch.cat(drift).mean(0).tolist()
            reading |= {"tv": tv, "js": js}
        if pairs:
            reading["ranking"] = above / pairs
        if "hard" in kinds:
            reading["gap"] = kinds[CHOSEN]["logp_mean"] - kinds["hard"]["logp_mean"]
        for name, value in ((name, value) for _, values in own for name, value in values.items()):
            if isinstance(value, Mapping):
                for kind in kinds.keys() & value.keys():
                    kinds[kind][name] = value[kind]
            else:
                reading[name] = value
        if per_prompt:
            reading["prompts"] = prompts
        if tokens:
            reading["top_tokens"] = shown
        return reading, torch.cat(kept) if keep else None

    def _add(self, by_kind: dict[str, dict[str, list[Tensor]]], batch: Batch, scores: Scores) -> None:
        """Add every response's values under its kind."""
        top1 = scores.mean_over_tokens(scores.top1)
        values = {
            "logp_mean": scores.logp_mean,
            "logp_sum": scores.logp_sum,
            "entropy": scores.mean_over_tokens(scores.entropy),
            "top1": top1,
            "cooling_weight": cooling_weight(scores.logp_mean, floor=self.floor, tau=self.tau),
            "argmax_logp": (scores.top1.clamp(min=_TINY).log() * scores.mask).sum(-1),
            "off_argmax": 1 - top1,
        }
        for i, response in enumerate(batch.responses):
            row = by_kind.setdefault(kind_of(response), {})
            for name, value in values.items():
                row.setdefault(name, []).append(value[i])


def _drift(then: Tensor, now: Tensor) -> Tensor:
    """Return TV and JS (bits) at every position, `[positions, 2]`. Equal logits give exactly 0."""
    rows: list[Tensor] = []
    for p, q in zip(then.split(_POSITIONS), now.split(_POSITIONS), strict=True):
        log_p, log_q = (x.to(now.device).float().log_softmax(-1) for x in (p, q))
        rows.append(torch.stack([total_variation(log_p, log_q), jensen_shannon(log_p, log_q)], -1).cpu())
    return torch.cat(rows)


def _by_prompt(batch: Batch, logp_mean: Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"id": g.id} for g in batch.groups]
    for owner, response, value in zip(batch.owner, batch.responses, logp_mean.tolist(), strict=True):
        rows[owner].setdefault(kind_of(response), value)
    return rows


def _summary(values: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    weights = torch.stack(list(values["cooling_weight"]))
    histogram = torch.histc(weights.float().cpu(), bins=10, min=0.0, max=1.0)
    return {
        "count": len(weights),
        **{name: float(torch.stack(list(rows)).mean()) for name, rows in values.items()},
        "cooling_histogram": [int(n) for n in histogram],
    }


KEPT = 20
"""Tokens kept at a place: the five of the start are then nearly always among those of the end."""


def top_tokens(found: ResponseLogits, batch: Batch, tokenizer: Any, wanted: int) -> list[dict[str, Any]]:
    """Return the likeliest tokens at every place of the first chosen response of some prompts.

    Args:
        found: The logits of the batch.
        batch: The batch.
        tokenizer: Turns token ids into text.
        wanted: How many prompts, from the first on.

    Returns:
        For each prompt `id`, `gold` (the response's tokens as text) and `places`: for each token the list of
        (token as text, probability), the likeliest first.
    """
    rows: list[dict[str, Any]] = []
    responses, owner = batch.responses, batch.owner
    first: dict[int, int] = {}
    for row in batch.rows(CHOSEN):
        first.setdefault(owner[row], row)
    for group, row in list(first.items())[:wanted]:
        log_p = found.logits[found.rows == row].float().log_softmax(-1)
        best = log_p.topk(min(KEPT, log_p.shape[-1]), dim=-1)
        rows.append(
            {
                "id": batch.groups[group].id,
                "gold": _texts(tokenizer, responses[row].ids),
                "places": _places(tokenizer, best.indices, best.values.exp()),
            }
        )
    return rows


def _places(tokenizer: Any, ids: Tensor, probabilities: Tensor) -> list[list[list[Any]]]:
    values = torch.round(probabilities.cpu().double(), decimals=5).tolist()
    texts = [_texts(tokenizer, place) for place in ids.tolist()]
    return [[[t, p] for t, p in zip(*place, strict=True)] for place in zip(texts, values, strict=True)]


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([token]) for token in ids]
