"""What training does to fixed held-out prompts: Δ log p by kind of response, sharpness, calibration, drift."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cwdpo.data.schema import CHOSEN, REJECTED, PromptGroup, Response
from cwdpo.errors import DataError, NonFiniteError
from cwdpo.files import text_digest
from cwdpo.losses import cooling_weight
from cwdpo.models.modes import inference
from cwdpo.probes.calibration import Calibration
from cwdpo.probes.divergence import jensen_shannon, total_variation
from cwdpo.probes.top_tokens import top_tokens
from cwdpo.scoring.batch import Batch, EncodedResponse
from cwdpo.scoring.collator import PromptEncoder
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["ProbeSet", "kind_of", "probe_digest"]

_TINY = torch.finfo(torch.float32).tiny
_KEPT_BYTES = 256 * 2**20
"""Encoded probes (pixels) smaller than this stay in memory between probes."""


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
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def digest(self) -> str:
        """Content of the probe set (prompts, images, responses), so that two runs can be compared on the same one."""
        return probe_digest(self.groups)

    def _batches(self) -> list[Batch]:
        if self._kept is not None:
            return self._kept
        starts = range(0, len(self.groups), self.batch_size)
        parts = [self.groups[i : i + self.batch_size] for i in starts]
        batches = [Batch(tuple(self.encoder.encode(g) for g in part)) for part in parts]
        size = sum(t.numel() * t.element_size() for b in batches for g in b.groups for t in g.vision.values())
        if size < _KEPT_BYTES:
            self._kept = batches
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
    ) -> tuple[dict[str, Any], Tensor | None]:
        """Measure once. Changes neither weights, mode nor random state.

        Args:
            model: The policy.
            scorer: How responses are scored.
            start: `Float[chosen tokens, vocabulary]`, the log-probabilities that TV and JS compare with.
            keep: Return such log-probabilities of now.
            before: Another model that TV and JS compare with instead, run beside this one.
            per_prompt: Add `prompts`: per prompt, the mean log-probability of each kind.
            tokens: Add `top_tokens` of the gold responses of so many prompts.

        Returns:
            The reading and the kept distributions, if asked for. Per kind, means over responses: `logp_mean` (nats per
            token), `logp_sum` (nats), `entropy`, `top1` and `off_argmax` = 1 − top1 (means over tokens), `argmax_logp`
            (Σ_t log max_v π_t on the response's own prefix, nats), `cooling_weight`. Over the chosen responses: `ece`,
            `accuracy` (share of tokens that are the argmax), `entropy`, `top1`, `tv`, `js`. Over pairs: `ranking`, the
            share in which the chosen response is likelier per token.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite.
        """
        rows: dict[str, dict[str, list[Tensor]]] = {}
        calibration, kept = Calibration(), list[Tensor]()
        drift: dict[str, list[Tensor]] = {"tv": [], "js": []}
        prompts: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []
        seen, above, pairs = 0, 0, 0
        with inference(model):
            for batch in self._batches():
                found = scorer(model, batch)
                scores = scores_from_logits(found)
                if not bool(torch.isfinite(scores.logps).all()):
                    names = ", ".join(g.origin for g in batch.groups)
                    raise NonFiniteError(f"probe: a log-probability is not finite ({names}); lower the learning rate")
                entropy, top1 = scores.mean_over_tokens(scores.entropy), scores.mean_over_tokens(scores.top1)
                weight = cooling_weight(scores.logp_mean, floor=self.floor, tau=self.tau)
                if per_prompt:
                    prompts += _by_prompt(batch, scores.logp_mean)
                if len(shown) < tokens:
                    shown += top_tokens(found, batch, self.encoder.tokenizer, tokens - len(shown))
                winners, losers = batch.pairs()
                above += int((scores.logp_mean[winners] > scores.logp_mean[losers]).sum())
                pairs += len(losers)
                argmax = (scores.top1.clamp(min=_TINY).log() * scores.mask).sum(-1)
                for i, response in enumerate(batch.responses):
                    row = rows.setdefault(kind_of(response), {})
                    values = {"logp_mean": scores.logp_mean, "logp_sum": scores.logp_sum}
                    values |= {"entropy": entropy, "top1": top1, "cooling_weight": weight}
                    values |= {"argmax_logp": argmax, "off_argmax": 1 - top1}
                    for name, value in values.items():
                        row.setdefault(name, []).append(value[i])
                chosen = torch.tensor(batch.rows(CHOSEN), device=scores.logps.device)
                mask = scores.mask[chosen]
                calibration.update(scores.top1[chosen][mask].cpu(), scores.correct[chosen][mask].cpu())
                if start is None and before is None and not keep:
                    continue
                gold = torch.isin(found.rows, chosen)
                now = found.logits[gold].float().log_softmax(-1).cpu()
                then = None if start is None else start[seen : seen + len(now)].float()
                if before is not None:
                    with inference(before):
                        then = scorer(before, batch).logits[gold].float().log_softmax(-1).cpu()
                if then is not None:
                    drift["tv"].append(total_variation(then, now))
                    drift["js"].append(jensen_shannon(then, now))
                seen += len(now)
                if keep:
                    kept.append(now if now.shape[-1] <= 4096 else now.half())
        reading: dict[str, Any] = {
            "kinds": {kind: _summary(values) for kind, values in rows.items()},
            "ece": calibration.ece(),
            "accuracy": calibration.accuracy(),
            "reliability": calibration.reliability(),
        }
        gold_row = rows[CHOSEN]
        reading |= {"entropy": _mean(gold_row["entropy"]), "top1": _mean(gold_row["top1"])}
        reading |= {name: float(torch.cat(values).mean()) for name, values in drift.items() if values}
        if pairs:
            reading["ranking"] = above / pairs
        if per_prompt:
            reading["prompts"] = prompts
        if tokens:
            reading["top_tokens"] = shown
        return reading, torch.cat(kept) if keep else None


def _by_prompt(batch: Batch, logp_mean: Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"id": g.id} for g in batch.groups]
    for owner, response, value in zip(batch.owner, batch.responses, logp_mean.tolist(), strict=True):
        rows[owner].setdefault(kind_of(response), value)
    return rows


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).mean())


def _summary(values: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    weights = torch.stack(list(values["cooling_weight"]))
    histogram = torch.histc(weights.float().cpu(), bins=10, min=0.0, max=1.0)
    return {
        "count": len(weights),
        **{name: _mean(rows) for name, rows in values.items()},
        "cooling_histogram": [int(n) for n in histogram],
    }
