"""What ends a run in one line instead of a traceback."""

import sys
from collections.abc import Callable


class Refusal(ValueError):
    """An argument, a file of results or a document that a command cannot work with; the message says which and why."""


def one_line_of(command: str, run: Callable[[], int]) -> int:
    """What a command's run ends with: 2, after one line on the error stream, where it raises a Refusal."""
    try:
        return run()
    except Refusal as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2


class DeviceLost(RuntimeError):
    """A GPU that is lost to this process, as after an illegal access; the message names the subject."""


def in_words(error: Exception, most: int = 300) -> str:
    """An error in one line: its type, and up to `most` characters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"
