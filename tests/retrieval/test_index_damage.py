"""Damaged indexes: never read as something else than the libraries read, always told of in one line."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.indexes import FORMATS, WRITTEN, documents, load, numpy, safetensors, save, told
from tpkernels.retrieval.index.source import Rows, open_source

LENGTHS = [5, 0, 9, 3]
SINGLE = ("safetensors", "npz", "compressed")


def read(path: Path) -> tuple[Tensor, Tensor]:
    """All of an index, as the command reads it."""
    source = open_source(path)
    with closing(Rows(source, 0)) as rows:
        vectors = torch.cat([rows.take(min(7, source.tokens - start)) for start in range(0, source.tokens, 7)])
        rows.finish()
    return vectors, source.lengths


@pytest.mark.parametrize("form", SINGLE)
def test_truncated_anywhere(tmp_path: Path, form: str) -> None:
    path = save(tmp_path, form, *documents(LENGTHS))
    raw = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 60, 100, len(raw) // 2, len(raw) - 60, len(raw) - 9, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ValueError, match=f"{path.name}: "):
            read(path)
    if form == "safetensors":
        # A .zip may have something behind it.
        path.write_bytes(raw + b"\0")
        with pytest.raises(ValueError, match="no whole safetensors file"):
            read(path)


@pytest.mark.parametrize("name", ["embeddings.npy", "lengths.npy"])
def test_truncated_arrays_of_a_folder(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, "folder", *documents(LENGTHS))
    raw = (path / name).read_bytes()
    for size in (0, 5, 6, 8, 9, 64, 127, len(raw) // 2, len(raw) - 1):
        (path / name).write_bytes(raw[:size])
        with pytest.raises(ValueError, match=f"documents: {name}"):
            read(path)
    (path / name).unlink()
    with pytest.raises(FileNotFoundError):
        read(path)


@given(data=st.data())
@pytest.mark.parametrize("form", FORMATS)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject) -> None:
    """Whatever is read of a file with a few other bytes, the format's library reads too."""
    path = save(tmp_path_factory.mktemp("damage"), form, *documents(LENGTHS))
    file = path / data.draw(st.sampled_from(["embeddings.npy", "lengths.npy"])) if form == "folder" else path
    raw = bytearray(file.read_bytes())
    # The headers, where the damage is interesting, are in front; those of archives in front and behind.
    near = st.integers(0, 300) | st.integers(-250, -1) | st.integers(0, len(raw) - 1)
    for place in data.draw(st.lists(near, min_size=1, max_size=4)):
        raw[place % len(raw)] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789{}[]",:'))
    file.write_bytes(raw)
    try:
        vectors, lengths = read(path)
    except (ValueError, OSError, MemoryError):
        return
    x, counts = load(path)
    assert torch.equal(lengths, counts.long()) and len(vectors) == lengths.sum()
    assert torch.equal(vectors.view(torch.uint8), x.contiguous().view(torch.uint8))


X, LENGTH = torch.zeros(4, 2), torch.tensor([4])
WRONG = {
    "too few": (X, torch.tensor([1, 2]), "sum to the 4 rows of embeddings, got 3"),
    "too many": (X, torch.tensor([1, 20]), "sum to the 4 rows of embeddings, got 20"),
    "overflow": (X, torch.tensor([2**62] * 4 + [4]), "sum to the 4 rows"),
    "negative": (X, torch.tensor([5, -1]), "at least 0, got -1 for document 1"),
    "unsigned": (X, torch.tensor([-4, 8]).view(torch.uint64), "at least 0"),
    "lengths of floats": (X, torch.tensor([4.0]), "lengths must be integers [B], got float32 [1]"),
    "flags": (X, torch.tensor([True]), "lengths must be integers [B], got bool [1]"),
    "lengths of two sides": (X, LENGTH[None], "lengths must be integers [B], got int64 [1, 1]"),
    "a scalar": (X, LENGTH[0], "lengths must be integers [B], got int64 []"),
    "integers": (X.int(), LENGTH, "embeddings must be floats [T, D] of 16, 32 or 64 bits, got int32 [4, 2]"),
    "one side": (X[:, 0], LENGTH, "embeddings must be floats"),
    "three sides": (X[None], LENGTH, "embeddings must be floats"),
    "a scalar vector": (X[0, 0], LENGTH, "embeddings must be floats"),
    "no width": (X[:, :0], LENGTH, "got float32 [4, 0]"),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, case: str) -> None:
    *arrays, message = WRONG[case]
    path = save(tmp_path, form, *(array.contiguous() for array in arrays))
    line = told(capsys, path, tmp_path / "out.npz", "--pool-factor", 2)
    assert line.startswith(f"{path}: ") and message in line
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_safetensors_of_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eighths = save(tmp_path, "safetensors", X.to(torch.float8_e4m3fn), LENGTH)
    assert "got float8_e4m3fn [4, 2]" in told(capsys, eighths, tmp_path / "out", "--pool-factor", 2)
    safetensors.save_file({"embeddings": X}, eighths)
    line = told(capsys, eighths, tmp_path / "out", "--pool-factor", 2)
    assert line.endswith("expected `embeddings` [T, D] and `lengths` [B], got embeddings")


ARRAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "objects": (lambda: numpy.array([{}]), "embeddings.npy must be numbers that torch has"),
    "big-endian": (lambda: numpy.zeros((4, 2), ">f4"), "in this machine's byte order, got >f4"),
    "by columns": (lambda: numpy.zeros((2, 4), "f4").T, "Fortran's order"),
    "records": (lambda: numpy.zeros(4, "f4,f4"), "embeddings.npy must be numbers that torch has"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_numpys_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    make, message = ARRAYS[case]
    numpy.savez(tmp_path / "in.npz", embeddings=make(), lengths=numpy.array([4]))
    assert message in told(capsys, tmp_path / "in.npz", tmp_path / "out", "--pool-factor", 2)


def test_damaged_numbers_of_an_archive_are_seen_by_their_checksum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, "npz", *documents([40, 40]))
    raw = bytearray(path.read_bytes())
    raw[800] ^= 1
    path.write_bytes(raw)
    assert "CRC" in told(capsys, path, tmp_path / "out.npz", "--pool-factor", 2)
    assert not (tmp_path / "out.npz").exists()


def test_archives_of_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "in.npz", tmp_path / "out.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings", "a text")
        archive.writestr("lengths", "a text")
    assert "[B], got embeddings, lengths" in told(capsys, path, out, "--pool-factor", 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("embeddings.npy", "a text")
        archive.writestr("lengths.npy", "a text")
    assert "must be stored or deflated" in told(capsys, path, out, "--pool-factor", 2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings.npy", "a text")
        archive.writestr("lengths.npy", "a text")
    assert "embeddings.npy is no .npy file" in told(capsys, path, out, "--pool-factor", 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "in.npz")
    assert "no regular file" in told(capsys, tmp_path / "in.npz", tmp_path / "out.npz", "--pool-factor", 2)
