"""Which threads hold the elements of a tensor, from its type in TTGIR."""

from __future__ import annotations

import math
import re

from .ttgir import Function


def alone(shape: str, function: Function) -> bool:
    """Whether each element of a tensor type belongs to one thread; False where the layout is not handled here."""
    found = re.fullmatch(r"tensor<((?:\d+x)+)[^,]*, (#.*)>", shape)
    if found is None:
        return False
    sizes = [int(size) for size in found[1].rstrip("x").split("x")]
    encoding = function.encodings.get(found[2], found[2])
    if encoding.startswith("#ttg.blocked<"):
        threads = [
            [int(one) for one in re.findall(r"\d+", re.findall(rf"{name} = \[([\d, ]+)\]", encoding)[0])]
            for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
        ]
        return all(math.prod(tile) <= size for *tile, size in zip(*threads, sizes, strict=True))
    if encoding.startswith("#ttg.linear<"):
        rows = re.findall(r"(?:lane|warp) = \[((?:\[[\d, ]+\](?:, )?)*)\]", encoding)
        return all(re.search("[1-9]", basis) for row in rows for basis in re.findall(r"\[([\d, ]+)\]", row))
    return False
