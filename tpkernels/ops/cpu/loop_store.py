"""Where compiled loops are stored between processes: numba's files, behind a lock, and never in a call's way."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba.core.caching import FunctionCache, IndexDataCacheFile

LOCK_NAME = "tpkernels.lock"
# A store takes milliseconds; after this long, compiling is faster than waiting.
LOCK_SECONDS = 20.0


class LoopStore(FunctionCache):
    """numba's cache of one function's compilations, for processes that start at once.

    numba replaces each file in one step, but a compilation is two files: an index that names it and the code. Between
    the two writes another process can read old code under a new name, or give the name away twice. A lock for the
    folder keeps them together. What cannot be read is compiled anew; what cannot be written is not kept.

    A loop is stale when any file of its folder has changed, since it may call loops of the others; numba looks at its
    own file alone.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        folder = Path(inspect.getfile(function)).parent
        found = sorted((path.name, path.stat()) for path in folder.glob("*.py"))
        stamp = tuple((name, stat.st_mtime, stat.st_size) for name, stat in found)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            with self._locked():
                try:
                    return super().load_overload(sig, target_context)
                except OSError:
                    raise
                except Exception:  # damaged files: whatever unpickling and linking them raises
                    self.flush()
        except OSError:
            pass
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._impl.locator.ensure_cache_path()
            with self._locked():
                super().save_overload(sig, data)
        except OSError as error:
            message = f"loops are compiled in every process, they cannot be stored in {self.cache_path}: {error}"
            warnings.warn(f"tpkernels: {message}", RuntimeWarning, stacklevel=2)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = Path(self.cache_path)
        if not folder.is_dir():
            yield
            return
        with FileLock(folder / LOCK_NAME, timeout=LOCK_SECONDS):
            yield


def store(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Has numba's `dispatcher` of `function` keep what it compiles, where numba finds a folder that can be written."""
    try:
        dispatcher._cache = LoopStore(function)
    except RuntimeError:  # neither beside the file, nor in the user's cache, nor in NUMBA_CACHE_DIR
        return
