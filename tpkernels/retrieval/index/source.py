"""An index that is read: its headers checked at once, its vectors piece by piece."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .npy import Array, read_header

SUFFIXES = (".safetensors", ".npz")
MEMBERS = ("embeddings.npy", "lengths.npy")
# By the names that --dtype takes.
FLOATS = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
_PIECE = 1 << 20
# What zipfile raises for damaged archives.
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class Source:
    """An index as its headers describe it: embeddings [tokens, dim], and its lengths int64 [B].

    `stamp` tells one state of the files from another: their sizes and times. `others` names the arrays beside the two.
    """

    path: Path
    dtype: torch.dtype
    tokens: int
    dim: int
    lengths: Tensor
    stamp: dict[str, Any]
    others: list[str]


class Rows:
    """The vectors of a source from `start` on, one after another.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, source: Source, start: int) -> None:
        self._source, self._start, self._opened = source, start, ExitStack()
        self._file: IO[bytes] | None = None
        if form_of(source.path) != ".safetensors":
            with _named(source.path):
                self._file, _ = self._opened.enter_context(_npy(source.path, MEMBERS[0]))
                _skip(self._file, start * source.dim * source.dtype.itemsize)

    def take(self, count: int) -> Tensor:
        """The next `count` vectors [count, D].

        Raises:
            ValueError: the file ends before, is damaged, or changed since it was opened.
            OSError: it cannot be read.
        """
        source = self._source
        with _named(source.path):
            if self._file is None:
                # Opened anew, since the pages of a file that stays mapped stay in memory.
                with _safetensors(source.path) as file:
                    rows = file.get_slice("embeddings")[self._start : self._start + count].clone()
            else:
                rows = _numbers(self._file, Array(source.dtype, (count, source.dim)))
            self._start += count
            if _stamp(source.path) != source.stamp:
                raise ValueError("changed while it was read")
        return rows

    def finish(self) -> None:
        """Reads the end of the file, at which an archive's checksum is compared.

        Raises:
            ValueError: the archive is damaged.
            OSError: it cannot be read.
        """
        if self._file is not None:
            with _named(self._source.path):
                self._file.read(1)

    def close(self) -> None:
        self._opened.close()


def form_of(path: Path) -> str:
    """One of `SUFFIXES`, or "" for a folder of `MEMBERS`.

    Raises:
        ValueError: a name that tells no format.
    """
    if path.is_dir() or not path.suffix:
        return ""
    if path.suffix in SUFFIXES:
        return path.suffix
    raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}, or be a folder of {' and '.join(MEMBERS)}")


def open_source(path: Path) -> Source:
    """Reads the headers and the lengths of an index.

    Raises:
        ValueError: damaged or truncated files, wrong dtypes or shapes, or lengths that do not fit the vectors.
        OSError: a file is missing or cannot be read.
    """
    read = _read_safetensors if form_of(path) == ".safetensors" else _read_npy
    with _named(path):
        # Before the files are read, so that a change in between is seen.
        stamp = _stamp(path)
        vectors, counts, others = read(path)
        if len(vectors.shape) != 2 or not vectors.shape[1] or vectors.dtype not in FLOATS.values():
            raise ValueError(f"embeddings must be floats [T, D] of 16, 32 or 64 bits, got {_told(vectors)}")
        if counts.dim() != 1 or counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
            raise ValueError(f"lengths must be integers [B], got {_told(counts)}")
        lengths = counts.to(torch.int64)
        if lengths.numel() and (least := int(lengths.min())) < 0:
            raise ValueError(f"lengths must be at least 0, got {least} for document {int(lengths.argmin())}")
        # One by one within reach first, so that no sum can overflow.
        most = int(lengths.max()) if lengths.numel() else 0
        total = int(lengths.sum()) if most <= vectors.shape[0] else most
        if total != vectors.shape[0]:
            raise ValueError(f"lengths must sum to the {vectors.shape[0]} rows of embeddings, got {total}")
    return Source(path, vectors.dtype, *vectors.shape, lengths, stamp, others)


def _read_safetensors(path: Path) -> tuple[Array, Tensor, list[str]]:
    """What embeddings are, the lengths, and the names of other arrays."""
    with _safetensors(path) as file:
        others = _others(file.keys(), ("embeddings", "lengths"))
        # Mapped, so that nothing of it is read.
        vectors = file.get_tensor("embeddings")
        return Array(vectors.dtype, tuple(vectors.shape)), file.get_tensor("lengths").clone(), others


def _read_npy(path: Path) -> tuple[Array, Tensor, list[str]]:
    """The same of a folder or an archive."""
    if form_of(path):
        with zipfile.ZipFile(path) as archive:
            others = _others(archive.namelist(), MEMBERS)
    else:
        others = _others((entry.name for entry in path.iterdir()), MEMBERS)
    with _npy(path, MEMBERS[0]) as (_, vectors):
        pass
    with _npy(path, MEMBERS[1]) as (file, counts):
        lengths = _numbers(file, counts)
        # The checksum of an archive is compared at its end.
        file.read(1)
    return vectors, lengths, others


def _others(names: Iterable[str], needed: tuple[str, ...]) -> list[str]:
    found = set(names)
    if not found.issuperset(needed):
        told = ", ".join(sorted(found)) or "nothing"
        raise ValueError(f"expected `embeddings` [T, D] and `lengths` [B], got {told}")
    return sorted(found.difference(needed))


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"no whole safetensors file ({error})") from None


@contextmanager
def _npy(path: Path, member: str) -> Iterator[tuple[IO[bytes], Array]]:
    """A .npy file of an archive or a folder, at the numbers of its array."""
    with ExitStack() as opened:
        if form_of(path):
            archive = opened.enter_context(zipfile.ZipFile(path))
            entry = archive.getinfo(member)
            # What other methods unpack at once has no bound.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member} must be stored or deflated, got method {entry.compress_type}")
            file, size = opened.enter_context(archive.open(entry)), entry.file_size
        else:
            file = opened.enter_context(open(path / member, "rb"))
            size = os.fstat(file.fileno()).st_size
        array = read_header(file, member)
        if (needed := file.tell() + array.bytes) != size:
            raise ValueError(f"{member} is damaged or truncated: its header needs {needed} bytes, it has {size}")
        yield file, array


def _skip(file: IO[bytes], size: int) -> None:
    if not isinstance(file, zipfile.ZipExtFile):
        file.seek(size, os.SEEK_CUR)
        return
    # Read, since the checksum is of the whole member.
    while size and (piece := len(file.read(min(size, _PIECE)))):
        size -= piece


def _numbers(file: IO[bytes], array: Array) -> Tensor:
    """The numbers of an array that come next."""
    numbers = torch.empty(array.shape, dtype=array.dtype)
    missing = array.bytes - file.readinto(numbers.numpy())  # type: ignore[attr-defined]
    if missing:
        raise ValueError(f"truncated: {missing} bytes are missing")
    return numbers


def _stamp(path: Path) -> dict[str, Any]:
    states = [os.stat(file) for file in ([path / name for name in MEMBERS] if not form_of(path) else [path])]
    if not all(stat.S_ISREG(state.st_mode) for state in states):
        raise ValueError("no regular file")
    return {"bytes": [state.st_size for state in states], "times": [state.st_mtime_ns for state in states]}


def _told(array: Array | Tensor) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the name of the index before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except _BROKEN as error:
        raise ValueError(f"{path}: damaged ({error or type(error).__name__})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            # A place in the file that cannot be.
            raise ValueError(f"{path}: damaged ({error.strerror})") from None
        raise OSError(error.errno, error.strerror or str(error), str(error.filename or path)) from None
