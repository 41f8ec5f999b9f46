"""Triton's interpreter as a memory checker: every address that a kernel touches lies in a tensor that it was given.

The interpreter reads and writes raw addresses, so one beyond a buffer is somebody else's memory and mostly goes
unseen. `watched` has each of them looked at first, reads as well as writes, of every launch of every test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch


class OutOfBounds(Exception):
    """A kernel touched memory that is none of its tensors'."""


def _flat(values: Any) -> Iterator[Any]:
    """Arguments, and those in tuples among them."""
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value


def spans_of(values: Any) -> list[tuple[int, int]]:
    """Address and end of every tensor among a launch's arguments, ascending, overlaps joined."""
    found = []
    for tensor in _flat(values):
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            found.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if joined and begin < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


class Watch(threading.local):
    """The tensors of the launch that this thread runs, and how many accesses were looked at."""

    spans: Sequence[tuple[int, int]] = ()
    accesses = 0

    def look(self, kind: str, pointers: Any, mask: Any, size: int) -> None:
        """Raises OutOfBounds where an address that the mask leaves in is in none of the spans."""
        self.accesses += 1
        there = np.asarray(pointers, dtype=np.uint64)
        if mask is not None:
            there = there[np.broadcast_to(np.asarray(mask, dtype=bool), there.shape)]
        if there.size == 0:
            return
        first, last = int(there.min()), int(there.max())
        if any(begin <= first and last + size <= end for begin, end in self.spans):
            return
        inside = np.zeros(there.shape, bool)
        for begin, end in self.spans:
            inside |= (there >= begin) & (there <= end - size)
        if not inside.all():
            wrong = int(there[~inside].flat[0])
            near = min((end - 1 for _, end in self.spans), key=lambda end: abs(wrong - end), default=0)
            raise OutOfBounds(f"a {kind} of {size} bytes, {wrong - near} bytes from the end of the nearest tensor")


class _Looking:
    """Stands in for the interpreter's compiled half."""

    def __init__(self, inner: Any, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._watch.look("load", pointers, mask, np.dtype(dtype).itemsize)
        return self._inner.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self._watch.look("store", pointers, mask, value.dtype.itemsize)
        return self._inner.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self._watch.look("atomic", pointers, mask, value.dtype.itemsize)
        return self._inner.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers: Any, expected: Any, value: Any, order: Any) -> Any:
        self._watch.look("atomic", pointers, None, value.dtype.itemsize)
        return self._inner.atomic_cas(pointers, expected, value, order)


@contextmanager
def watched(interpreter: ModuleType) -> Iterator[Watch]:
    """Has every access of interpreted kernels looked at.

    Args:
        interpreter: `triton.runtime.interpreter`.
    """
    watch = Watch()
    executor, inner = interpreter.GridExecutor, interpreter._interpreter
    arguments = executor._init_args_hst

    def noted(self: Any, args: Any, kwargs: Any) -> Any:
        on_host = arguments(self, args, kwargs)
        watch.spans = spans_of((*on_host[0], *on_host[1].values()))
        return on_host

    executor._init_args_hst, interpreter._interpreter = noted, _Looking(inner, watch)
    try:
        yield watch
    finally:
        executor._init_args_hst, interpreter._interpreter = arguments, inner
