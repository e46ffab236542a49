"""A second look: the same responses under an altered image, as a twin of their prompt in the same batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cwdpo.data.alterations import Alteration
from cwdpo.data.schema import PromptGroup
from cwdpo.errors import DataError
from cwdpo.scoring.batch import Batch

__all__ = ["Twins", "altered_rows"]

_ALTERED = "altered_"


@dataclass(frozen=True)
class Twins:
    """Gives a prompt its twin. Crops and masks depend on the seed and the row alone: every epoch sees the same.

    Attributes:
        kind: What is done to the images.
        roles: Which responses the twin has.
        seed: The run's.
    """

    kind: Literal["crop", "blank", "mask"]
    roles: tuple[str, ...]
    seed: int = 0

    def __call__(self, group: PromptGroup) -> PromptGroup:
        """Return the twin.

        Raises:
            DataError: The prompt has no image.
        """
        if not group.images:
            raise DataError(
                f"{group.origin or group.id}: has no image, and this objective compares with an altered one; "
                "leave the row out or choose another stage2.objective"
            )
        images = tuple(
            replace(image, altered=Alteration(self.kind, "" if self.kind == "blank" else f"{self.seed}/{group.id}/{i}"))
            for i, image in enumerate(group.images)
        )
        responses = [replace(r, role=_ALTERED + r.role) for r in group.responses if r.role in self.roles]
        return replace(group.with_responses(responses), images=images)


def altered_rows(batch: Batch, rows: Sequence[int]) -> list[int]:
    """Return for each row the row of the same response under the altered image."""
    responses, owner = batch.responses, batch.owner
    own = [i for i, group in enumerate(batch.groups) if not group.altered]
    twins = [i for i, group in enumerate(batch.groups) if group.altered]
    assert [batch.groups[i].id for i in own] == [batch.groups[i].id for i in twins]
    twin_of = dict(zip(own, twins, strict=True))
    places = {(owner[i], r.role, r.ids): i for i, r in enumerate(responses) if batch.groups[owner[i]].altered}
    return [places[twin_of[owner[i]], _ALTERED + responses[i].role, responses[i].ids] for i in rows]
