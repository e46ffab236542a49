"""What is peculiar to a family of models: one file each in `scoring/families/`, found by the model's `model_type`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cwdpo.errors import ModelError
from cwdpo.plugins import Registry
from cwdpo.scoring.batch import Batch, EncodedGroup

__all__ = ["Family", "computes_own_positions", "family_of", "require_scorable", "shared_families"]


class Family:
    """How a family's inputs are laid out. The defaults are those of a family that nothing is known about."""

    name: ClassVar[str] = ""
    """Of the module; a family of your own is offered by a package's entry point in `cwdpo.scoring.families`."""

    model_types: ClassVar[frozenset[str]] = frozenset()
    """`config.model_type` of its models."""

    shares_prefix: ClassVar[bool] = False
    """Scores and gradients of the shared-prefix scorer equal the separate scorer's in our tests."""

    one_at_a_time: ClassVar[bool] = False
    """transformers scores a batch of its sequences otherwise than each alone."""

    windows: ClassVar[frozenset[str]] = frozenset()
    """Model types that take a mask for each type of layer, so that sliding windows can be told from full attention."""

    causal_prefix: ClassVar[bool] = True
    """No token of a prompt sees a later one."""

    first_position: ClassVar[int] = 0
    """What positions count from."""

    response_types: ClassVar[Mapping[str, int]] = {}
    """Per-token inputs whose value at a response's tokens is not 0."""

    def two_way_blocks(self, prefix: Tensor, types: Mapping[str, Tensor]) -> Tensor:
        """Number the blocks whose tokens see each other in both directions; -1 is none.

        Args:
            prefix: `Bool[rows, width]`, true at the prompts' tokens.
            types: What `token_inputs` returned.
        """
        return torch.full(prefix.shape, -1)

    def token_inputs(
        self, batch: Batch, owner: Sequence[int], places: Sequence[tuple[int, int]], mask: Tensor
    ) -> dict[str, Tensor]:
        """Return `{name: Long[rows, width]}`: further inputs with one value a token.

        Args:
            batch: The groups.
            owner: The group of each prompt that is laid out.
            places: Row and first column of each of them.
            mask: `[rows, width]`, true at tokens.
        """
        rows: dict[str, Tensor] = {}
        for name in sorted({name for g in batch.groups for name in g.token_types}):
            rows[name] = mask.long() * self.response_types.get(name, 0)
            for g, (row, start) in zip(owner, places, strict=True):
                group = batch.groups[g]
                values = group.token_types.get(name, (0,) * len(group.prefix_ids))
                rows[name][row, start : start + len(values)] = torch.tensor(values, dtype=torch.long)
        return rows

    def vision_inputs(self, batch: Batch, repeats: Sequence[int], without: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the pixel inputs of a batch, those of group g repeated `repeats[g]` times.

        Args:
            batch: The groups.
            repeats: One number for each group.
            without: Names to leave out.
        """
        rows = [g for g, n in zip(batch.groups, repeats, strict=True) for _ in range(n) if g.vision]
        names = sorted({name for g in rows for name in g.vision if name not in without})
        return {name: self.join(name, [g for g in rows if name in g.vision]) for name in names}

    def join(self, name: str, groups: Sequence[EncodedGroup]) -> Tensor:
        """Join one pixel input of several groups; unequal shapes are padded with zeros."""
        parts = [g.vision[name] for g in groups]
        if len({part.ndim for part in parts}) > 1:
            raise ModelError(f"{name} of {groups[0].origin} and of others have unlike numbers of axes")
        widest = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
        return torch.cat([_padded(part, widest) for part in parts])


def _padded(part: Tensor, widest: list[int]) -> Tensor:
    if list(part.shape[1:]) == widest:
        return part
    whole = part.new_zeros((part.shape[0], *widest))
    whole[(slice(None), *(slice(0, n) for n in part.shape[1:]))] = part
    return whole


@functools.cache
def _by_type() -> dict[str, Family]:
    known = Registry("family", "cwdpo.scoring.families", Family).all().values()
    return {model_type: family() for family in known for model_type in family.model_types}


def family_of(inner: Any) -> Family:
    """Return the family of a transformers model."""
    return _by_type().get(getattr(getattr(inner, "config", None), "model_type", ""), Family())


def shared_families() -> frozenset[str]:
    """Return `config.model_type` of all models whose responses can share their prompt."""
    return frozenset(model_type for model_type, family in _by_type().items() if family.shares_prefix)


def computes_own_positions(inner: Any) -> bool:
    """Whether the model derives (multi-axis) positions itself from the mask and the token types."""
    return hasattr(getattr(inner, "model", inner), "get_rope_index")


def require_scorable(inner: Any, batch: Batch) -> None:
    """Refuse what a model would silently score wrong, or stumble over.

    Raises:
        ModelError: It is an encoder-decoder; a token is not in its embedding; or the processor gave pictures without
            the token types that its positions depend on.
    """
    if getattr(inner.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(inner).__name__}: an encoder-decoder ({inner.config.model_type}) scores responses from its "
            "decoder's start, not after the prompt, and is not supported; use a decoder-only model"
        )
    size = getattr(inner.get_input_embeddings(), "num_embeddings", None)
    typed = computes_own_positions(inner) and "mm_token_type_ids" in inspect.signature(inner.forward).parameters
    for group in batch.groups:
        if size is not None and (beyond := _beyond(group, size, inner.config)) is not None:
            raise ModelError(
                f"{group.origin}: token {beyond} is not in the model's embedding of {size} rows: the tokenizer is "
                "larger than the model; use the model's own tokenizer, or call model.resize_token_embeddings and save"
            )
        if typed and group.vision and "mm_token_type_ids" not in group.token_types:
            raise ModelError(
                f"{group.origin}: the processor gave no mm_token_type_ids, without which {type(inner).__name__} puts "
                "image tokens at wrong positions; update transformers or the processor's files"
            )


def _beyond(group: EncodedGroup, size: int, config: Any) -> int | None:
    """Return the first token of a group beyond the embedding, but for placeholders, which are replaced by features."""
    if max(group.prefix_ids, default=0) < size and all(max(r.ids) < size for r in group.responses):
        return None
    placeholders = {getattr(config, f"{kind}_token_id", None) for kind in ("image", "video")}
    ids = (*group.prefix_ids, *(token for r in group.responses for token in r.ids))
    return next((token for token in ids if token >= size and token not in placeholders), None)
