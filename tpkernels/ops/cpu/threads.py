"""The threads that torch's own operations run on, lent to compiled loops.

Torch parts an operation by OpenMP, whose threads go on spinning for milliseconds after it: a thread of ours would get
half a core beside each of them. The runtime that torch was linked with is asked to run ours on the same threads, which
take the work up at once. Where it cannot be asked (macOS, Windows), plain threads do.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Two plain threads are no faster than one: torch's second thread spins on the other core.
LEAST_PLAIN = 3


@functools.cache
def openmp() -> Any:
    """OpenMP's entry for a parallel region, of the runtime that torch uses; None where it has no such entry."""
    try:
        # Symbols of a library's dependencies are found through it.
        entry = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    entry.argtypes, entry.restype = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return entry


def share(work: Callable[..., None], items: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Calls `work(*item)` for every item, on threads of torch's; whoever is free takes the next.

    Args:
        work: to be called by several threads at once; worth it where it leaves Python's lock.
        threads: how many are worth it. OpenMP's whole team is called all the same, since those that a smaller one has
            no place for would be ended, and torch would have to start them again.

    Raises:
        BaseException: the first that `work` raised, after all threads have stopped.
    """
    left, errors = iter(list(items)), []

    def run(_: int | None = None) -> None:
        try:
            for item in left:
                work(*item)
        except BaseException as error:
            errors.append(error)

    parallel = openmp()
    if parallel is not None and threads > 1:
        parallel(_BODY(run), None, max(threads, torch.get_num_threads()), 0)
    elif threads >= LEAST_PLAIN:
        # The loops release Python's lock, so plain threads run in parallel.
        with ThreadPoolExecutor(threads - 1) as pool:
            for _ in range(threads - 1):
                pool.submit(run)
            run()
    else:
        run()
    if errors:
        raise errors[0]
