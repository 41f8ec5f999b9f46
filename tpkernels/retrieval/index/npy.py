"""The headers of .npy files, alone: the numbers are read and written piece by piece."""

from __future__ import annotations

import math
from io import BytesIO
from typing import IO, NamedTuple

import torch


class Array(NamedTuple):
    """What a header says of the numbers that follow."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], name: str) -> Array:
    """The array that a .npy file begins with; the file stands at its numbers then.

    Raises:
        ValueError: no .npy file, a damaged one, or an array that torch does not hold as it lies there.
    """
    import numpy
    from numpy.lib import format

    versions = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}
    try:
        shape, by_columns, kind = versions[format.read_magic(file)](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"a shape of {shape}")
    except OSError:
        raise
    # NumPy parses it as Python, which can fail in many ways.
    except Exception as error:
        raise ValueError(f"{name} is no .npy file, or damaged ({error})") from None
    if by_columns and len(shape) > 1:
        raise ValueError(f"{name} must be stored row by row, got Fortran's order: save numpy.ascontiguousarray of it")
    try:
        dtype = torch.from_numpy(numpy.empty(0, kind)).dtype
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers that torch has, in this machine's byte order, got {kind}") from None
    return Array(dtype, shape)


def header(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file; NumPy makes it as long for every number of rows."""
    from numpy.lib import format

    file = BytesIO()
    fields = format.header_data_from_array_1_0(torch.empty(0, dtype=dtype).numpy())
    format.write_array_header_1_0(file, {**fields, "shape": shape})
    return file.getvalue()
