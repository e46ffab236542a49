"""The command line: parse, call, exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from cwdpo.errors import UserError

__all__ = ["main"]


def main() -> None:
    """Run `cwdpo`. A user's mistake is one line on stderr and exit code 2; a bug is a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stdout: Any = sys.stdout
    if hasattr(stdout, "reconfigure"):  # names of files may be no text
        stdout.reconfigure(errors="backslashreplace")
    if os.environ.get("RANK", "0") == "0":  # the others wait for rank 0, where no handler would be called
        signal.signal(signal.SIGTERM, _terminate)
    from cwdpo.cli.app import app
    from cwdpo.errors import StoppedError, UserError, one_line

    try:
        app(standalone_mode=True)
    except StoppedError as error:
        _tell(error, "stopped", error.code)
    except UserError as error:
        _tell(error, "error", 2)
    except RuntimeError as error:
        from cwdpo.processes import is_lost_peer, lost_peer, processes

        if not is_lost_peer(error):
            raise
        _tell(lost_peer(error, processes().rank), "error", 2)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        remedy = "; make room, and run the same command again" if error.errno in _FULL else ""
        _end(f"error: {one_line(error.filename or 'standard output or a temporary file')}: {error.strerror}{remedy}", 2)
    except KeyboardInterrupt:
        _end(_INTERRUPTED, 130)
    except _Terminated:
        _end(_INTERRUPTED, 75)
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C, which says nothing
            _end(_INTERRUPTED, 130)
        raise


class _Terminated(BaseException):
    """SIGTERM came while no stage was training."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


_INTERRUPTED = "stopped: what was finished is kept; run the same command again to resume"
_FULL = {errno.EDQUOT, errno.ENOSPC}
_NOT_OURS = {*_FULL, *(errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS)}
"""A full disk, missing rights and names that are too long are the machine's, not bugs."""


def _tell(error: UserError, what: str, code: int) -> NoReturn:
    """Say what is wrong in one line; of an error that all processes of a run have, one of them says it."""
    from cwdpo.errors import one_line

    if not error.told:
        print(f"{what}: {one_line(error, 1000)}", file=sys.stderr, flush=True)  # noqa: T201
    if error.told is not None:
        from cwdpo.processes import processes

        processes().part()
    sys.exit(code)


def _end(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)  # noqa: T201
    sys.exit(code)
