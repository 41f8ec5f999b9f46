"""How far a long run has come, on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

# Between the lines of a run whose stderr is no terminal.
_SECONDS = 60.0


class Progress:
    """A bar over tokens where tqdm is installed and stderr is a terminal; elsewhere a line now and then, for logs."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` tokens are pooled."""
        if self._bar is None and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self._bar = tqdm(total=total, initial=done, unit="token", unit_scale=True)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._told >= _SECONDS:
            self._told = time.monotonic()
            print(f"{done:,} of {total:,} tokens", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
