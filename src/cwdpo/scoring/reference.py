"""Reference log-probabilities: computed once, kept on disk by content, or taken from a frozen model in every step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cwdpo.errors import NonFiniteError, RunError, one_line
from cwdpo.files import claim
from cwdpo.models.modes import inference
from cwdpo.processes import processes
from cwdpo.scoring.batch import Batch, Scores
from cwdpo.scoring.logprobs import scores_from_logits
from cwdpo.scoring.scorer import Scorer

__all__ = ["CachedReference", "LiveReference", "Reference", "ReferenceCache"]


class Reference(Protocol):
    """Anything that knows log π_ref of the responses of a batch."""

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Return `Float[responses]`, summed log-probabilities in nats, without gradient."""
        ...

    def per_token(self, model: Any, batch: Batch) -> Tensor:
        """Return `Float[responses, tokens]`, the same token by token, 0 at padding."""
        ...


class ReferenceCache:
    """A SQLite file of per-token reference log-probabilities, keyed by content.

    Each chunk is one transaction: a kill loses at most the chunk under way, and what is kept was computed in the same
    batches as in an uninterrupted run, so that the values are bitwise the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        claim(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._connect() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS logps (key TEXT PRIMARY KEY, tokens BLOB NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path}: the reference cache cannot be used: {one_line(error)}; delete the file") from error

    @contextmanager
    def _connect(self) -> Generator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def count(self) -> int:
        """Return how many responses are there."""
        with self._connect() as connection:
            return connection.execute("SELECT COALESCE(MAX(rowid), 0) FROM logps").fetchone()[0]

    def missing(self, keys: Sequence[str]) -> bool:
        """Whether any of the keys is not there."""
        return len(self._read(keys)) < len(set(keys))

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        wanted = sorted(set(keys))
        found: dict[str, Tensor] = {}
        with self._connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, tokens FROM logps WHERE key IN ({marks})", part)
                found |= {key: torch.from_numpy(np.frombuffer(raw, np.float32).copy()) for key, raw in rows}
        return found

    def store(self, rows: dict[str, Tensor]) -> None:
        """Keep per-token log-probabilities, all or none; what is there already stays."""
        values = [(key, row.detach().cpu().to(torch.float32).numpy().tobytes()) for key, row in rows.items()]
        with self._connect() as connection:
            connection.executemany("INSERT OR IGNORE INTO logps VALUES (?, ?)", values)

    def sums(self, keys: Sequence[str]) -> Tensor:
        """Return `Float[keys]`, summed log-probabilities.

        Raises:
            KeyError: A key is not there: `fill` was not run on this row.
        """
        found = self._read(keys)
        return torch.stack([found[key].sum() for key in keys])

    def tokens(self, keys: Sequence[str]) -> Tensor:
        """Return `Float[keys, tokens]`, log-probabilities token by token, 0 at padding.

        Raises:
            KeyError: As `sums`.
        """
        found = self._read(keys)
        return pad_sequence([found[key] for key in keys], batch_first=True)

    def fill(
        self, model: Any, scorer: Scorer, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
    ) -> int:
        """Score what is not there yet and keep it; return how many responses were scored now.

        Where several processes share the work, each is given as many batches, of its own; rank 0 keeps what all found.

        Raises:
            NonFiniteError: A log-probability is NaN or infinite; nothing of its batch is kept.
        """
        scored, team = 0, processes()
        with inference(model):
            for batch in batches:
                # A sharded model is run by all or by none.
                todo = max(team.gather(self.missing([r.key for r in batch.responses])))
                for rows in team.share(lambda batch=batch: _token_logps(model, scorer, batch)) if todo else ():
                    if team.main:
                        self.store(rows)
                    scored += len(rows)
                if progress is not None:
                    progress(sum(team.gather(batch.prompts)))
        return scored


def _token_logps(model: Any, scorer: Scorer, batch: Batch) -> dict[str, Tensor]:
    """Return the log-probabilities of every response of a batch, token by token, by key."""
    scores = scores_from_logits(scorer(model, batch))
    bad = [i for i, ok in enumerate(scores.logp_sum.isfinite().tolist()) if not ok]
    if bad:
        names = ", ".join(sorted({batch.groups[batch.owner[i]].origin for i in bad}))
        raise NonFiniteError(f"reference: a log-probability is not finite. Rows: {names}")
    return {r.key: scores.logps[i, : len(r.ids)].cpu() for i, r in enumerate(batch.responses)}


class CachedReference:
    """Takes the reference from a cache that was filled before training."""

    def __init__(self, cache: ReferenceCache) -> None:
        self.cache = cache

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Look the batch up; `model` is not used.

        Raises:
            RunError: A row was not scored before training.
        """
        return self.cache.sums(self._keys(batch))

    def per_token(self, model: Any, batch: Batch) -> Tensor:
        """Look the batch up, token by token.

        Raises:
            RunError: A row was not scored before training.
        """
        return self.cache.tokens(self._keys(batch))

    def _keys(self, batch: Batch) -> list[str]:
        keys = [r.key for r in batch.responses]
        if self.cache.missing(keys):
            names = sorted({g.origin for g in batch.groups if self.cache.missing([r.key for r in g.responses])})
            raise RunError(
                f"{', '.join(names)}: no reference log-probabilities in {self.cache.path}; give these rows as "
                "train_dataset or eval_dataset when the trainer is made, or use reference: live"
            )
        return keys


class LiveReference:
    """Runs a frozen model in every step: a second model, a frozen adapter on the policy's base, or that base itself.

    Args:
        scorer: How responses are scored.
        model: The frozen model; default the policy, with `adapter` or without any.
        adapter: Name of the frozen adapter.
        base_of_adapter: Switch the policy's adapters off.
    """

    def __init__(
        self, scorer: Scorer, model: Any | None = None, adapter: str | None = None, base_of_adapter: bool = False
    ) -> None:
        self.scorer, self.model, self.adapter, self.base_of_adapter = scorer, model, adapter, base_of_adapter

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Score the batch under the reference."""
        return self._scores(model, batch).logp_sum

    def per_token(self, model: Any, batch: Batch) -> Tensor:
        """Score the batch under the reference, token by token."""
        return self._scores(model, batch).logps

    def _scores(self, model: Any, batch: Batch) -> Scores:
        target = model if self.model is None else self.model
        if self.model is not None:
            target.to(next(model.parameters()).device)
        with inference(target), self._switched(target):
            return scores_from_logits(self.scorer(target, batch))

    @contextmanager
    def _switched(self, model: Any) -> Generator[None]:
        inner = model
        while not hasattr(inner, "set_adapter") and hasattr(inner, "module"):
            inner = inner.module
        if self.base_of_adapter:
            with _same_trained(inner), inner.disable_adapter():
                yield
            return
        if self.adapter is None:
            yield
            return
        active = inner.active_adapter
        with _same_trained(inner):
            inner.set_adapter(self.adapter, inference_mode=True)
            try:
                yield
            finally:
                inner.set_adapter(active, inference_mode=True)


@contextmanager
def _same_trained(model: Any) -> Generator[None]:
    """Train the same weights after the block as before it.

    Where weights are sharded, a module may hold its whole ones after the block and its shards before: both count.
    """
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            shard, trained = before[name]
            parameter.requires_grad_(trained)
            shard.requires_grad_(trained)
