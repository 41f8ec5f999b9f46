"""Indexes of multi-vector documents on disk, written and read by the libraries of their formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tpkernels.retrieval.command import main

numpy = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors.torch")

# Each with the name of a file or folder that it is written to.
FORMATS = {
    "safetensors": "documents.safetensors",
    "npz": "documents.npz",
    "compressed": "packed.npz",
    "folder": "documents",
}
# Those that are written, too.
WRITTEN = ("safetensors", "npz", "folder")


def documents(
    lengths: list[int], dim: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit vectors [T, dim] of documents, some near others, and the documents' lengths int64 [B]."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, dim, generator=generator)
    near = centers[torch.randint(5, (sum(lengths),), generator=generator)]
    x = near + 0.3 * torch.randn(sum(lengths), dim, generator=generator)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype), torch.tensor(lengths, dtype=torch.int64)


def save(folder: Path, form: str, embeddings: Tensor, lengths: Tensor, **others: Tensor) -> Path:
    """The index in a format, with what other arrays it is to hold."""
    path = folder / FORMATS[form]
    tensors = {"embeddings": embeddings, "lengths": lengths, **others}
    if form == "safetensors":
        try:
            safetensors.save_file(tensors, path)
        except KeyError:
            pytest.skip("this release of safetensors writes no unsigned integers")
        return path
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if form == "folder":
        path.mkdir()
        for name, array in arrays.items():
            numpy.save(path / f"{name}.npy", array)
    elif form == "npz":
        numpy.savez(path, **arrays)
    else:
        numpy.savez_compressed(path, **arrays)
    return path


def load(path: Path) -> tuple[Tensor, Tensor]:
    """The embeddings and lengths of an index that holds nothing else."""
    if path.suffix == ".safetensors":
        tensors = safetensors.load_file(path)
    elif path.suffix == ".npz":
        with numpy.load(path) as archive:
            tensors = {name: torch.from_numpy(archive[name]) for name in archive.files}
    else:
        tensors = {file.stem: torch.from_numpy(numpy.load(file)) for file in path.iterdir()}
    assert tensors.keys() == {"embeddings", "lengths"}
    return tensors["embeddings"], tensors["lengths"]


def content(path: Path) -> bytes:
    """All bytes of an index."""
    return b"".join(file.read_bytes() for file in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()


def told(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 1) -> str:
    """The one line with which the command ends."""
    assert main(["pool", *map(str, arguments)]) == status
    said = capsys.readouterr()
    assert not said.out and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
    return said.err.removeprefix("python -m tpkernels.retrieval: ").rstrip()
