"""Configurations that were measured on this device, for launchers to ask for; see docs/tuning.md.

A key holds what a configuration may depend on, in powers of two as the kernels pad to. The batch is not part of it: a
sample's numbers do not depend on what else is in its batch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

import torch

from . import tuning_cache
from .launch import power_of_two


class Override:
    """A configuration that is forced for a key; used: how often a launcher was given it."""

    def __init__(self, config: Mapping[str, int]) -> None:
        self.config, self.used = dict(config), 0


_FORCED: ContextVar[Mapping[str, Override]] = ContextVar("forced configurations", default=MappingProxyType({}))
# Without a lock two threads would both read the file, and both warn.
_READING = threading.Lock()


def resident_key(n: int, k: int, d: int, dtype: torch.dtype, method: str) -> str:
    """The key of a resident launch: N tokens of D channels into K clusters by a method."""
    sizes = f"n{power_of_two(n, 16)}/k{power_of_two(k, 16)}/d{power_of_two(d, 16)}"
    return f"resident/{method}/{str(dtype).removeprefix('torch.')}/{sizes}"


def lookup(key: str, device: torch.device) -> dict[str, int] | None:
    """The configuration for a key: a forced one on any device, a measured one on a GPU, None where there is neither.

    The device's file is read by the first call in a process; later ones touch no file and no driver.
    """
    forced = _FORCED.get().get(key)
    if forced is not None:
        forced.used += 1
        return dict(forced.config)
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    with _READING:
        found = _measured(index).get(key)
    return None if found is None else dict(found)


@functools.cache
def _measured(index: int) -> tuning_cache.Configs:
    return tuning_cache.read(torch.device("cuda", index))


def reload() -> None:
    """Forgets what was read: the next lookup reads its device's file again."""
    with _READING:
        _measured.cache_clear()


def store(device: torch.device | str, changes: Mapping[str, Mapping[str, int] | None]) -> Path:
    """`tuning_cache.write`, and lookups of this process see it."""
    path = tuning_cache.write(device, changes)
    reload()
    return path


@contextmanager
def override(key: str, config: Mapping[str, int]) -> Iterator[Override]:
    """Forces a configuration for a key in this thread or task, whatever the device's file says.

    Args:
        key: of `resident_key`.
        config: `ResidentConfig`'s fields. Whether the device can hold it shows when it is launched.

    Raises:
        ValueError: it is no key, or no configuration for it.
    """
    tuning_cache.check(key, config)
    forced = Override(config)
    token = _FORCED.set(MappingProxyType({**_FORCED.get(), key: forced}))
    try:
        yield forced
    finally:
        _FORCED.reset(token)
