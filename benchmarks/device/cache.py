"""A Triton cache in one file: packed where kernels were compiled, unpacked where they run."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from ..errors import Refusal

VARIABLE = "TRITON_CACHE_DIR"
BINARY = ".cubin"
# Endings of the files that a hit reads; the rest are the compiler's intermediate forms.
KEPT = (".json", BINARY)


def pack(folder: Path, path: Path) -> int:
    """Packs what a hit needs of a cache; returns the number of kernels. Written whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with tarfile.open(part, "w:xz") as archive:
        for entry in sorted(folder.rglob("*")):
            if entry.suffix in KEPT:
                archive.add(entry, entry.relative_to(folder))
    os.replace(part, path)
    return kernels(folder)


def unpack(path: Path, folder: Path) -> int:
    """Unpacks a cache into a folder; returns the number of its kernels.

    Raises:
        Refusal: there is no such file, or it is no packed cache.
    """
    if not path.is_file():
        raise Refusal(f"--prebuilt: expected a file that --prebuild has packed, got {path}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise Refusal(f"--prebuilt: expected a file that --prebuild has packed, got {path}: {error}") from error
    # A kernel's group holds the paths at which its files were written.
    for group in folder.glob("*/__grp__*.json"):
        names = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent / name) for name in names}}))
    return kernels(folder)


def kernels(folder: Path) -> int:
    """Compiled kernels in a cache."""
    return sum(1 for _ in folder.glob(f"*/*{BINARY}"))


def use(path: Path, folder: Path) -> Callable[[], dict[str, int]]:
    """Makes later processes use a packed cache; returns a function that counts the kernels compiled all the same.

    Raises:
        Refusal: as `unpack`.
    """
    before = [unpack(path, folder)]
    print(f"{before[0]} kernels unpacked from {path}", flush=True)
    os.environ[VARIABLE] = str(folder)

    def compiled() -> dict[str, int]:
        """Kernels that were not in the cache, since the last call: 0 where it was hit."""
        found = kernels(folder)
        new, before[0] = found - before[0], found
        return {"compiled_here": new}

    return compiled
