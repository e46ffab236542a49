"""What the user is told: every mistake that is the user's to fix is one of these, one line, exit code 2."""

from __future__ import annotations

import re
import signal

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, changes colours, turns the direction of text (but line feed and tab), or is half of a surrogate
pair."""


class UserError(ValueError):
    """A mistake the user can fix. The message is one line: what, where, the rule, the remedy.

    Attributes:
        told: Of an error that all processes of a run have: whether another of them tells the user. None of any other.
    """

    told: bool | None = None


class RecipeError(UserError):
    """The recipe (or a command-line override) is invalid."""


class DataError(UserError):
    """A data file, a row of it or an image cannot be used."""


class ModelError(UserError):
    """A model directory, a processor or a family of models cannot be used as asked."""


class RunError(UserError):
    """A run directory cannot be used as asked: another recipe, another data file, not writable."""


class StoppedError(RunError):
    """The user (or a scheduler) asked a run to stop. What was done is kept.

    Attributes:
        code: The exit code: 130 after Ctrl-C, 75 (`EX_TEMPFAIL`: try again) after SIGTERM.
    """

    code: int = 130

    @classmethod
    def by(cls, number: int, text: str) -> StoppedError:
        """Return the error that says that a signal stopped a run."""
        error = cls(text)
        error.code = 75 if number == signal.SIGTERM else 130
        return error


class PeerError(UserError):
    """Another process of the same run has ended, so that this one cannot continue."""


class NonFiniteError(UserError):
    """Loss or gradient is NaN or infinite: training stopped before the update. Names the step and the rows."""


def printable(text: object) -> str:
    """Return `text` with U+FFFD in place of control characters, which a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def one_line(text: object, limit: int = 300) -> str:
    """Return `text` on one line, printable, whitespace collapsed, cut at `limit` characters."""
    flat = printable(" ".join(str(text).split()))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
