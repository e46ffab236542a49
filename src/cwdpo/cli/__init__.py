"""The command line: parse, call, exit code."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run `cwdpo`. A user's mistake is one line on stderr and exit code 2; a bug is a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from cwdpo.cli.app import app
    from cwdpo.errors import UserError, one_line

    try:
        app(standalone_mode=True)
    except UserError as error:
        from cwdpo.errors import StoppedError

        stopped = isinstance(error, StoppedError)
        print(f"{'stopped' if stopped else 'error'}: {one_line(error, 1000)}", file=sys.stderr)  # noqa: T201
        sys.exit(130 if stopped else 2)
    except KeyboardInterrupt:
        print("stopped: what was finished is kept; run the same command again to go on", file=sys.stderr)  # noqa: T201
        sys.exit(130)
