"""METEOR."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from pydantic import PrivateAttr

from cwdpo.evaluation.java import Unavailable, java_first
from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric

__all__ = ["Meteor"]


class Meteor(CaptionMetric):
    """METEOR 1.5 × 100 of the whole set. Its Java process is started once."""

    name: ClassVar[str] = "meteor"
    about: ClassVar[str] = "METEOR 1.5 of the whole set (Java)"
    _process: Any = PrivateAttr(default=None)

    def measure(self, captioned: Captioned) -> float:
        """Return METEOR.

        Raises:
            Unavailable: There is no Java, or its process failed.
        """
        from pycocoevalcap.meteor.meteor import Meteor as Process

        if self._process is None:
            with java_first():
                self._process = Process()
        gold = {i: [r.replace("|||", "") for r in rows] for i, rows in enumerate(captioned.references)}
        try:
            value, _ = self._process.compute_score(gold, {i: [c] for i, c in enumerate(captioned.tokens)})
        except (OSError, ValueError) as error:  # the process ended, or wrote no number
            broken, self._process = self._process, None
            broken.lock.release()  # still held; its destructor would wait for it
            with contextlib.suppress(OSError):
                broken.meteor_p.stdin.close()
            raise Unavailable("METEOR's Java ended or failed; it needs 2 GB of memory") from error
        return 100 * float(value)
