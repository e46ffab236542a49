"""Reference log-probabilities: computed once, kept on disk by content, or taken from a frozen model in every step."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
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

logger = logging.getLogger(__name__)


class Reference(Protocol):
    """Anything that knows log π_ref of the responses of a batch."""

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Return `Float[responses]`, summed log-probabilities in nats, without gradient."""
        ...

    def per_token(self, model: Any, batch: Batch) -> Tensor:
        """Return `Float[responses, tokens]`, the same token by token, 0 at padding."""
        ...


class ReferenceCache:
    """A SQLite file of per-token reference log-probabilities, keyed by content, each with a digest.

    Each chunk is one transaction: a kill loses at most the chunk under way, and what is kept was computed in the same
    batches as in an uninterrupted run, so that the values are bitwise the same. Entries that are not what was written,
    and those of earlier versions, which have no digest, are dropped with a warning and computed again.

    Raises:
        RunError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.dropped = path, 0
        claim(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS logps (key TEXT PRIMARY KEY, tokens BLOB, digest BLOB)")
            if not any(column[1] == "digest" for column in connection.execute("PRAGMA table_info(logps)")):
                connection.execute("ALTER TABLE logps ADD COLUMN digest BLOB")  # of an earlier version
            connection.execute("SELECT key, tokens, digest FROM logps LIMIT 0")

    @classmethod
    def shared(cls, path: Path) -> ReferenceCache:
        """Open a file that all processes read; they call this together, and rank 0 makes it."""
        team = processes()
        made = team.each(lambda: cls(path) if team.main else None)
        return made or cls(path)

    @contextmanager
    def _connect(self) -> Generator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            full = any(word in str(error) for word in ("full", "disk I/O"))
            remedy = "make room, and run the same command again" if full else "delete the file"
            raise RunError(f"{self.path}: the reference cache cannot be used: {one_line(error)}; {remedy}") from error

    def count(self) -> int:
        """Return how many responses are there."""
        with self._connect() as connection:
            return connection.execute("SELECT COUNT(*) FROM logps").fetchone()[0]

    def drop_damaged(self) -> int:
        """Read everything; drop what is not what was written, and return how many entries that were."""
        with self._connect() as connection:
            keys = [key for (key,) in connection.execute("SELECT key FROM logps")]
        return len(keys) - len(self._read(keys))

    def missing(self, keys: Sequence[str]) -> bool:
        """Whether any of the keys is not there."""
        return len(self._read(keys)) < len(set(keys))

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        wanted = sorted(set(keys))
        found: dict[str, Tensor] = {}
        damaged: list[tuple[str]] = []
        with self._connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, tokens, digest FROM logps WHERE key IN ({marks})", part)
                for key, raw, digest in rows:
                    if digest == _digest(key, raw):
                        found[key] = torch.from_numpy(np.frombuffer(raw, np.float32).copy())
                    else:
                        damaged.append((key,))
            if damaged:
                self.dropped += len(damaged)
                connection.executemany("DELETE FROM logps WHERE key = ?", damaged)
                logger.warning(
                    "%s: %d entries, damaged or of an earlier version, are computed again", self.path, len(damaged)
                )
        return found

    def store(self, rows: dict[str, Tensor]) -> None:
        """Keep per-token log-probabilities, all or none; what is there already stays."""
        raw = {key: row.detach().cpu().to(torch.float32).numpy().tobytes() for key, row in rows.items()}
        with self._connect() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO logps (key, tokens, digest) VALUES (?, ?, ?)",
                [(key, tokens, _digest(key, tokens)) for key, tokens in raw.items()],
            )

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


def _digest(key: str, tokens: Any) -> bytes:
    return hashlib.sha256(key.encode() + bytes(tokens)).digest()


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
            if self.cache.dropped:
                raise RunError(f"{self.cache.path}: has become damaged; run the same command again, which mends it")
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
