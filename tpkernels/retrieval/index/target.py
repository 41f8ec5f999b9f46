"""An index that is written: vectors first, as they come, then what depends on their number, then its name."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from . import npy
from .source import MEMBERS, form_of

_PIECE = 1 << 20
# Of a safetensors header: room for any shape, so that the numbers begin at byte 256.
_SAFETENSORS_HEADER = 248


class Target:
    """An index under way in the folder `partial`.

    Its vectors are appended to `file`, from byte `vectors_at` on. Before them is room for what a .safetensors or .npy
    file begins with, while the vectors of an archive, which needs their checksum, are copied into it at the end.

    Args:
        path: where it will stand: .safetensors, .npz, or a folder.
        partial: the folder beside it.
    """

    def __init__(self, path: Path, partial: Path, dtype: torch.dtype, dim: int, documents: int) -> None:
        self.path, self.dtype, self.dim, self.documents = path, dtype, dim, documents
        self._form = form_of(path)
        # The file or folder that takes the name in the end, and what had it.
        self.whole, self._old = partial / "index", partial / "old"
        files = {".safetensors": self.whole, ".npz": partial / "vectors", "": self.whole / MEMBERS[0]}
        self.file = files[self._form]
        self.vectors_at = len(self._head(torch.zeros(documents, dtype=torch.int64)))

    def begin(self) -> None:
        """Makes the file of the vectors, empty but for the room before them.

        Raises:
            OSError: it cannot be made.
        """
        if not self._form:
            self.whole.mkdir(exist_ok=True)
        with open(self.file, "wb") as file:
            file.truncate(self.vectors_at)

    def finish(self, lengths: Tensor) -> None:
        """Makes `whole` of the vectors and the lengths int64 [B]; what an earlier call left does no harm.

        Raises:
            OSError: it cannot be written.
        """
        import numpy

        if self._form == ".npz":
            self._archive(lengths)
            return
        with open(self.file, "r+b") as file:
            file.write(self._head(lengths))
            _flush(file)
        if not self._form:
            with open(self.whole / MEMBERS[1], "wb") as file:
                numpy.save(file, lengths.numpy())
                _flush(file)

    def place(self) -> None:
        """Gives what is whole its name.

        Raises:
            OSError: it cannot be renamed.
        """
        if self.path.is_dir() or (os.path.lexists(self.path) and not self._form):
            # No call replaces a folder: for a moment nothing stands there, and a kill leaves the old one here.
            os.rename(self.path, self._old)
        os.replace(self.whole, self.path)

    def discard(self) -> None:
        """Removes what is left in the folder."""
        for path in (self.whole, self._old, self.file):
            if path.is_dir() and not path.is_symlink():
                for name in MEMBERS:
                    (path / name).unlink(missing_ok=True)
                path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def _head(self, lengths: Tensor) -> bytes:
        """What stands before the vectors; of the same size however many they are."""
        shape = int(lengths.sum()), self.dim
        if self._form == ".safetensors":
            return _safetensors_header(self.dtype, shape, len(lengths)) + lengths.numpy().tobytes()
        return b"" if self._form else npy.header(self.dtype, shape)

    def _archive(self, lengths: Tensor) -> None:
        import numpy

        # Members of no date, so that the same numbers are the same bytes.
        embeddings, counts = (zipfile.ZipInfo(name) for name in MEMBERS)
        with open(self.whole, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                with archive.open(embeddings, "w", force_zip64=True) as member, open(self.file, "rb") as vectors:
                    member.write(npy.header(self.dtype, (int(lengths.sum()), self.dim)))
                    shutil.copyfileobj(vectors, member, _PIECE)
                with archive.open(counts, "w", force_zip64=True) as member:
                    numpy.save(member, lengths.numpy())
            _flush(file)


def check_target(path: Path, overwrite: bool) -> None:
    """That an index can be written there.

    Raises:
        ValueError: the name tells no format, or what stands there is not to be replaced.
        OSError: there is no such folder.
    """
    form_of(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(path.absolute().parent))
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f"{path} exists already; --overwrite replaces it")
    if path.is_dir() and not {entry.name for entry in path.iterdir()} <= set(MEMBERS):
        raise ValueError(f"{path} is a folder of more than {' and '.join(MEMBERS)}, and is not replaced")


def _safetensors_header(dtype: torch.dtype, shape: tuple[int, int], documents: int) -> bytes:
    """The header of a file of `lengths` [documents] int64, which come first, and `embeddings`, filled up with blanks.

    By hand, since the library writes a header only together with all numbers, and those of its shape.
    """
    code = "BF16" if dtype == torch.bfloat16 else f"F{8 * dtype.itemsize}"
    ends = 8 * documents, 8 * documents + shape[0] * shape[1] * dtype.itemsize
    header = {
        "lengths": {"dtype": "I64", "shape": [documents], "data_offsets": [0, ends[0]]},
        "embeddings": {"dtype": code, "shape": shape, "data_offsets": ends},
    }
    text = json.dumps(header, separators=(",", ":")).encode().ljust(_SAFETENSORS_HEADER)
    return len(text).to_bytes(8, "little") + text


def _flush(file: IO[bytes]) -> None:
    # Without it, a crash of the machine could leave the new name on an empty file.
    file.flush()
    os.fsync(file.fileno())
