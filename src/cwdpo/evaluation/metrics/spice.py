"""SPICE 1.0 as pycocoevalcap ships it, run only where its Java and its jars are right. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import ClassVar

from cwdpo.evaluation.java import Unavailable, find_java, run_java
from cwdpo.evaluation.metrics.caption_metric import Captioned, CaptionMetric

__all__ = ["Spice"]

_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_OLDEST, _NEWEST = 8, 14
"""It needs the JavaScript engine that Java 15 left out."""


class Spice(CaptionMetric):
    """SPICE 1.0 × 100, mean over pictures."""

    name: ClassVar[str] = "spice"
    about: ClassVar[str] = "SPICE 1.0, mean over pictures (Java 8 to 14 and Stanford CoreNLP 3.6.0)"

    jars: Path | None = None
    """Folder of Stanford CoreNLP 3.6.0's jars; default `$CWDPO_SPICE_JARS`, else pycocoevalcap's own."""

    def measure(self, captioned: Captioned) -> list[float]:
        """Return SPICE of each picture.

        Raises:
            Unavailable: Java or the jars are missing, or SPICE failed.
        """
        from pycocoevalcap.spice import spice as package

        home = Path(package.__file__).parent
        folder = self.jars or Path(os.environ.get("CWDPO_SPICE_JARS") or home / "lib")
        missing = [name for name in _JARS if not (folder / name).is_file()]
        if missing:
            raise Unavailable(
                f"{folder} has no {' and no '.join(missing)}; unzip Stanford CoreNLP 3.6.0 "
                "(stanford-corenlp-full-2015-12-09.zip) and give its folder as --spice-jars"
            )
        java = find_java()
        if not _OLDEST <= java.version <= _NEWEST:
            raise Unavailable(
                f"SPICE runs on Java {_OLDEST} to {_NEWEST}, {java.path} is {java.version}; set JAVA_HOME to an older "
                "one, for example openjdk-11"
            )
        rows = [
            {"image_id": i, "test": caption, "refs": list(gold)}
            for i, (caption, gold) in enumerate(zip(captioned.tokens, captioned.references, strict=True))
        ]
        with tempfile.TemporaryDirectory(prefix="cwdpo-spice-") as scratch:
            asked, answered = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
            asked.write_text(json.dumps(rows), encoding="utf-8")
            paths = [home / package.SPICE_JAR, *(folder / name for name in _JARS)]
            tool = ["-Xmx8G", "-cp", os.pathsep.join(map(str, paths)), "edu.anu.spice.SpiceScorer", str(asked)]
            run_java([*tool, "-out", str(answered), "-subset", "-silent"])
            if not answered.is_file():
                raise Unavailable("SPICE ended without scores")
            scores = json.loads(answered.read_text(encoding="utf-8"))
        found = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in scores}
        return [100 * found[i] for i in range(len(rows))]
