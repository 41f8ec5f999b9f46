"""The file of tuned configurations: where it lies, what it must hold, how it is read and written.

JSON, one file for a device, a torch and a Triton; it is used whole or not at all:

    {"schema": 3, "device": {"name": ..., "torch": ..., ...}, "configs": {key: {field: integer, ...}, ...}}
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...files import replace
from .limits import Limits, limits_of
from .resident_tiles import MOST_REGISTERS, ResidentConfig

# Raised when a key or a field changes its meaning. It is part of the file's name: releases keep files of their own.
SCHEMA = 3
VARIABLE = "TPKERNELS_CACHE"
# All possible keys together take less.
MOST_BYTES = 1 << 20
# Threads per block, on every device.
MOST_LANES = 1024
# A field's least and largest value, and whether it has to be a power of two. Products of tiles need 16 at least.
RANGES = {
    "tile": (16, 256, True),
    "block_d": (16, 256, True),
    "rows": (2, 1024, True),
    "segment": (2, 256, True),
    "pooled": (16, 1024, True),
    "num_warps": (1, 32, True),
    "num_stages": (1, 8, False),
    "per_processor": (1, 32, False),
    "registers": (0, MOST_REGISTERS, False),
}
ELEMENTS = {"float32": 4, "float16": 2, "bfloat16": 2}
KEY = re.compile(r"resident/[a-z]{1,16}/(float32|float16|bfloat16)/n(\d{2,7})/k(\d{2,7})/d(\d{2,7})", re.ASCII)
# Triton's names in the package indexes, one of which is installed.
TRITONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu", "triton-windows")
Configs = dict[str, dict[str, int]]


def folder() -> Path | None:
    """$TPKERNELS_CACHE, else $XDG_CACHE_HOME/tpkernels, else ~/.cache/tpkernels; None where no home is known."""
    stated = os.environ.get(VARIABLE)
    if stated:
        return Path(os.path.abspath(os.path.expanduser(stated)))
    # The XDG specification has relative paths ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    return Path(base, "tpkernels") if os.path.isabs(base) else None


def identity(device: torch.device | str) -> dict[str, str | int]:
    """What a file has to be for: a configuration's time, and whether it fits, hold for these alone."""
    device, limits = torch.device(device), limits_of(device)
    name, architecture = "Triton's interpreter", "cpu"
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name, architecture = found.name, f"sm_{found.major}{found.minor}"
        if torch.version.hip is not None:
            architecture = found.gcnArchName.split(":")[0]
    return {
        "name": name,
        "architecture": architecture,
        "processors": limits.processors,
        "shared_bytes": limits.shared_bytes,
        "torch": torch.__version__,
        "triton": _triton_version(),
    }


def _triton_version() -> str:
    for name in TRITONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def path_of(device: torch.device | str) -> Path | None:
    """The device's file, whether or not it exists; None where there is no folder for it."""
    base, found = folder(), identity(device)
    if base is None:
        return None
    whole = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{found['name']} {found['architecture']} torch {found['torch']} triton {found['triton']} {whole}"
    return base / f"{re.sub(r'[^a-z0-9.]+', '-', words.lower()).strip('-')}.v{SCHEMA}.json"


def read(device: torch.device | str) -> Configs:
    """The configurations of the device's file; none where there is no file, none and one warning where it is bad."""
    path = path_of(device)
    if path is None:
        return {}
    try:
        return parse(_content(path), identity(device), limits_of(device))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path}: this file of tuned configurations is ignored, heuristic ones are used: {error} "
            "(`python -m benchmarks autotune` writes it anew)",
            RuntimeWarning,
            stacklevel=3,
        )
        return {}


def _content(path: Path) -> bytes:
    # Opening a pipe would wait for someone to write to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("expected a regular file, got something else")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got more")
    return content


def parse(content: bytes, device: Mapping[str, str | int], limits: Limits) -> Configs:
    """The configurations that a file's bytes hold.

    Args:
        device: the `identity` that they have to be for.
        limits: what the configurations have to fit into.

    Raises:
        ValueError: the bytes are no such file; the message says what was expected and what came.
    """
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in UTF-8, got {error}") from error
    if not isinstance(found, dict) or set(found) != {"schema", "device", "configs"}:
        got = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"expected an object of schema, device and configs, got {_short(got)}")
    if not _whole(found["schema"]) or found["schema"] != SCHEMA:
        raise ValueError(f"schema: expected {SCHEMA}, got {_short(found['schema'])}")
    if found["device"] != dict(device):
        raise ValueError(f"device: expected {dict(device)}, got {_short(found['device'])}")
    configs = found["configs"]
    if not isinstance(configs, dict):
        raise ValueError(f"configs: expected an object, got {type(configs).__name__}")
    for key, config in configs.items():
        check(key, config, limits)
    return configs


def check(key: str, config: Any, limits: Limits | None = None) -> None:
    """Raises ValueError where a key names no problem, or its configuration is none, or none that fits the limits."""
    match = KEY.fullmatch(key)
    if match is None or not all(_is_power_of_two(int(size)) and int(size) >= 16 for size in match.groups()[1:]):
        raise ValueError(f"key: expected resident/<method>/<dtype>/n<N>/k<K>/d<D> in powers of two, got {_short(key)}")
    if not isinstance(config, Mapping) or set(config) != set(RANGES):
        got = sorted(config) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"{key}: expected an object of {', '.join(RANGES)}, got {_short(got)}")
    width = int(match[2])
    for name, (least, most, power) in RANGES.items():
        value = config[name]
        # A tile larger than the sample's padded width would reach past its scratch.
        most = min(most, width) if name in ("tile", "rows") else most
        if not _whole(value) or not least <= value <= most or (power and not _is_power_of_two(value)):
            kind = "a power of two" if power else "an integer"
            raise ValueError(f"{key}: {name}: expected {kind} from {least} to {most}, got {_short(value)}")
    if limits is None:
        return
    made, lanes = ResidentConfig(**config), config["num_warps"] * limits.warp
    need, held = made.shared_bytes(ELEMENTS[match[1]]), made.held_registers(limits.warp)
    if need > limits.shared_bytes:
        raise ValueError(f"{key}: expected tiles within {limits.shared_bytes} bytes of shared memory, got {need}")
    if lanes > MOST_LANES:
        raise ValueError(f"{key}: num_warps: expected {MOST_LANES // limits.warp} warps at most, got {lanes} lanes")
    if held > limits.registers:
        raise ValueError(f"{key}: registers: expected {limits.registers} at most in a program, got {held}")


def _whole(value: Any) -> bool:
    # JSON's true is Python's 1.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def write(device: torch.device | str, changes: Mapping[str, Mapping[str, int] | None]) -> Path:
    """Merges configurations into the device's file; None takes a key's away. A bad file is replaced, with a warning.

    Readers see the file as it was before or after, never between; writers wait for each other.

    Raises:
        ValueError: a change is no configuration for the device.
        OSError: the folder cannot be written to.
    """
    limits = limits_of(device)
    for key, config in changes.items():
        if config is not None:
            check(key, config, limits)
    path = path_of(device)
    if path is None:
        raise FileNotFoundError(f"expected a home directory for the cache, got none; {VARIABLE} names a folder for it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        configs = {key: config for key, config in read(device).items() if key not in changes}
        configs |= {key: dict(config) for key, config in changes.items() if config is not None}
        whole = {"schema": SCHEMA, "device": identity(device), "configs": configs}
        replace(path, json.dumps(whole, indent=1, sort_keys=True).encode())
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Lock a file that is never replaced: a lock on the replaced one would not exclude the next writer.
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        # Closing unlocks.
        os.close(handle)
