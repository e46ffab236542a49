"""The one noun of the program: a prompt (with its images) and K responses, each with a role."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from cwdpo.data.alterations import Alteration
from cwdpo.data.pixels import pixel_digest

__all__ = ["CHOSEN", "DIFFICULTIES", "REJECTED", "ImageRef", "PromptGroup", "Response", "StoredBytes", "user_message"]

CHOSEN = "chosen"
"""Role of the response to be preferred (y⁺, y_w)."""

REJECTED = "rejected"
"""Role of a response to be dispreferred (y⁻, y_l)."""

DIFFICULTIES = ("hard", "medium", "easy")
"""Tags of a negative, from barely wrong to plainly wrong."""


class StoredBytes(Protocol):
    """Encoded bytes of an image that stay in a table on disk until they are read. Hashable, picklable."""

    @property
    def name(self) -> str:
        """What an error message calls this image."""
        ...

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        ...

    def to_json(self) -> dict[str, Any] | None:
        """Return what stands for the image in a row; None where its place is known to this process alone."""
        ...


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a file, bytes, bytes in a table on disk (Parquet), or a picture already in memory.

    Exactly one of the first four is set. Nothing is decoded until `cwdpo.data.images.open_image`, which also applies
    `altered`.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    stored: StoredBytes | None = None
    altered: Alteration | None = None

    @property
    def name(self) -> str:
        """What an error message calls this image."""
        if self.stored is not None:
            return self.stored.name
        return self.path or ("<bytes in the row>" if self.data is not None else "<image in memory>")

    def to_json(self, root: Path | None = None) -> Any:
        """Return what stands for the image in a row: its path, or its place in a tar.

        Args:
            root: Folder that the path is given relative to, where it lies in it; absolute otherwise. None: as it is.

        Raises:
            ValueError: It is neither a file nor in a tar.
        """
        place = self.stored.to_json() if self.stored is not None else None
        if place is not None:
            return place
        if self.path is None:
            raise ValueError(f"image {self.name}: only images in files and tars can be written as JSON")
        if root is None:
            return self.path
        path = Path(self.path)
        return str(path.relative_to(root) if path.is_relative_to(root) else path.absolute())

    def digest(self) -> str:
        """Return the SHA-256 of the image's content, and of what is done to it, in hex.

        Raises:
            OSError: The file cannot be read.
        """
        if self.altered is not None:
            whole = replace(self, altered=None).digest()
            return hashlib.sha256(f"{whole} {self.altered.name}".encode()).hexdigest()
        if self.path is not None:
            with Path(self.path).open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        if self.stored is not None:
            return hashlib.sha256(self.stored.read()).hexdigest()
        assert self.picture is not None
        return pixel_digest(self.picture)


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    Attributes:
        text: The answer, without any special token.
        role: `chosen`, `rejected`, or the name of a probe kind.
        source: Where it comes from: `dataset`, `beam`, `sample`, `other`, …
        difficulty: `hard`, `medium` or `easy` where known.
        score: How good something beside the model finds it (a reward model, CLIP), where known.
    """

    text: str
    role: str = CHOSEN
    source: str = "dataset"
    difficulty: str | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row form; `Response(**row)` reads it back."""
        row: dict[str, Any] = {"text": self.text, "role": self.role, "source": self.source}
        if self.difficulty is not None:
            row["difficulty"] = self.difficulty
        if self.score is not None:
            row["score"] = self.score
        return row


@dataclass(frozen=True)
class PromptGroup:
    """A prompt with its images and K responses.

    Attributes:
        id: Stable name of the row, unique in its file.
        images: In the order of the image parts of `messages`.
        messages: The conversation up to the answer, in chat-template form; `content` is a list of typed parts
            (`{"type": "image"}`, `{"type": "text", "text": …}`) and holds as many image parts as `images`.
        responses: The K answers.
        references: Gold answers that metrics compare with (the five captions of a COCO image).
        origin: `file:row` for messages to the user.
        facts: What else is known of the row (for `scenes` the exact scene); never seen by the model.
    """

    id: str
    images: tuple[ImageRef, ...]
    messages: tuple[Mapping[str, Any], ...]
    responses: tuple[Response, ...]
    references: tuple[str, ...] = ()
    origin: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def by_role(self, role: str) -> tuple[Response, ...]:
        """Return the responses of one role, in order."""
        return tuple(r for r in self.responses if r.role == role)

    @property
    def chosen(self) -> Response:
        """The first chosen response."""
        return next(r for r in self.responses if r.role == CHOSEN)

    def with_responses(self, responses: Sequence[Response]) -> PromptGroup:
        """Return the same prompt with other responses."""
        return replace(self, responses=tuple(responses))

    def to_json(self, images: Sequence[ImageRef] | None = None, *, root: Path | None = None) -> dict[str, Any]:
        """Return the row of our JSONL format. Images must be files.

        Args:
            images: Other images.
            root: Folder that paths are given relative to, as for `ImageRef.to_json`.

        Raises:
            ValueError: An image is not a file.
        """
        row: dict[str, Any] = {
            "id": self.id,
            "images": [image.to_json(root) for image in (self.images if images is None else images)],
            "prompt": [dict(m) for m in self.messages],
            "responses": [r.to_json() for r in self.responses],
        }
        if self.references:
            row["references"] = list(self.references)
        if self.origin:
            row["origin"] = self.origin
        if self.facts:
            row["facts"] = dict(self.facts)
        return row


def user_message(text: str, images: int = 1) -> dict[str, Any]:
    """Return a user turn with `images` image parts before the text."""
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
