"""IDX files, the format of MNIST and Fashion-MNIST: read with every length checked, and written gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import FileError, write_atomically

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_IDX_BYTES = 1 << 31


class DataError(FileError):
    """Data that cannot be used; the message names the file and says what was expected."""


def read_idx(path: Path) -> Tensor:
    """Reads an IDX file of unsigned bytes, gzipped or not, into a uint8 tensor.

    Raises:
        DataError: the file is missing, truncated, longer than its header says, or of another format.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                raw = file.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != 0x08:
        raise DataError(f"{path} is not an IDX file of unsigned bytes: expected it to begin with 00 00 08")
    rank = raw[3]
    header = 4 + 4 * rank
    if len(raw) < header:
        raise DataError(f"{path} is truncated: its header needs {header} bytes, the file has {len(raw)}")
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4).astype(object).tolist()
    if rank == 0 or math.prod(shape) != len(raw) - header:
        raise DataError(f"{path} says shape {shape}, which is not the {len(raw) - header} bytes that follow its header")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy()).reshape(shape)


def write_idx(path: Path, values: Tensor) -> None:
    """Writes a uint8 tensor as a gzipped IDX file; the same values give the same bytes."""
    header = bytes([0, 0, 0x08, values.dim()]) + np.array(values.shape, ">u4").tobytes()
    packed = gzip.compress(header + values.numpy().tobytes(), mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(packed))


def find_idx(root: Path, split: str) -> tuple[Path, Path] | None:
    """The image and the label file of `split` in or below `root`; None where either is missing."""
    found = []
    for name in IDX_NAMES[split]:
        matches = sorted(p for p in root.rglob(f"{name}*") if p.name in (name, f"{name}.gz"))
        if not matches:
            return None
        found.append(matches[0])
    return found[0], found[1]


def load_idx(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [M, H, W] and labels int64 [M] of an IDX set.

    Raises:
        DataError: files missing or not of the expected format.
    """
    paths = find_idx(root, split)
    if paths is None:
        raise DataError(f"{root} holds no {split} set: expected {' and '.join(IDX_NAMES[split])}, gzipped or not")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"{paths[0]} and {paths[1]}: expected images [M, H, W] and labels [M], "
            f"got {list(images.shape)} and {list(labels.shape)}"
        )
    return images, labels.long()
