"""The command line: parse, call, exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run `cwdpo`. A user's mistake is one line on stderr and exit code 2; a bug is a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from cwdpo.cli.app import app
    from cwdpo.errors import StoppedError, UserError, one_line

    try:
        app(standalone_mode=True)
    except StoppedError as error:
        _end(f"stopped: {one_line(error, 1000)}", 130)
    except UserError as error:
        _end(f"error: {one_line(error, 1000)}", 2)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        _end(f"error: {one_line(error.filename or 'a file')}: {error.strerror}", 2)
    except KeyboardInterrupt:
        _end(_INTERRUPTED, 130)
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C, which says nothing
            _end(_INTERRUPTED, 130)
        raise


_INTERRUPTED = "stopped: what was finished is kept; run the same command again to go on"
_NOT_OURS = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}
"""A full disk and missing rights are the machine's, not bugs."""


def _end(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)  # noqa: T201
    sys.exit(code)
