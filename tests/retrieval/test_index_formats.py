"""An index on disk is pooled into another of any format as its documents are in memory."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.indexes import FORMATS, WRITTEN, content, documents, load, safetensors, save
from tpkernels.retrieval import pool_embeddings
from tpkernels.retrieval.index import npy
from tpkernels.retrieval.index.job import pool_index
from tpkernels.retrieval.index.source import open_source

LENGTHS = [7, 0, 12, 1, 30, 2, 0, 19, 5]
BUDGETS: list[dict[str, Any]] = [
    {"pool_factor": 3, "protected": 1},
    {"max_tokens": 4},
    {"distance_threshold": 0.6, "protected": 2, "protected_at": "end"},
    {"max_error": 0.3, "normalize": "all"},
    {"pool_factor": 2, "preset": "pylate"},
]


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize(("form", "out"), list(product(FORMATS, WRITTEN)))
def test_every_format_into_every_other(tmp_path: Path, form: str, out: str) -> None:
    x, lengths = documents(LENGTHS)
    source, target = save(tmp_path, form, x, lengths), tmp_path / f"out_{FORMATS[out]}"
    report = pool_index(source, target, {"pool_factor": 3, "protected": 1}, buffer_tokens=20)
    wanted = pool_embeddings((x, lengths), 3, protected=1)
    assert_same(load(target), wanted)
    assert report.totals.documents == len(LENGTHS) and report.totals.vectors == len(wanted[0])
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}
    # What is written can be read.
    assert open_source(target).lengths.tolist() == wanted[1].tolist()


@pytest.mark.parametrize("arguments", BUDGETS, ids=lambda arguments: next(iter(arguments)))
@pytest.mark.parametrize("buffer_tokens", [1, 25, 10_000])
def test_every_budget_in_buffers_of_every_size(tmp_path: Path, arguments: dict[str, Any], buffer_tokens: int) -> None:
    x, lengths = documents(LENGTHS)
    source, target = save(tmp_path, "safetensors", x, lengths), tmp_path / "out.safetensors"
    pool_index(source, target, arguments, buffer_tokens=buffer_tokens)
    vectors, counts = pool_embeddings((x, lengths), **arguments)
    found = load(target)
    assert torch.equal(found[1], counts)
    # Sums of another width may round otherwise.
    torch.testing.assert_close(found[0], vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [3, 0]], ids=str)
@pytest.mark.parametrize("out", WRITTEN)
def test_few_documents(tmp_path: Path, lengths: list[int], out: str) -> None:
    x, counts = documents(lengths)
    source, target = save(tmp_path, out, x, counts), tmp_path / f"out_{FORMATS[out]}"
    pool_index(source, target, {"pool_factor": 2})
    assert_same(load(target), pool_embeddings((x, counts), 2))


KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [*((dtype, None) for dtype in KINDS), *zip(KINDS, ("bfloat16", "float16", "float16", "float32"), strict=True),
     (torch.float16, "float64")],
)  # fmt: skip
def test_dtypes(tmp_path: Path, dtype: torch.dtype, name: str | None) -> None:
    """Pooled in the wider of the two."""
    x, lengths = documents(LENGTHS, dtype=dtype)
    source, target = save(tmp_path, "safetensors", x, lengths), tmp_path / "out.safetensors"
    pool_index(source, target, {"pool_factor": 3}, dtype=name)
    out = dtype if name is None else getattr(torch, name)
    vectors, counts = pool_embeddings((x.to(torch.promote_types(dtype, out)), lengths), 3)
    assert_same(load(target), (vectors.to(out), counts))


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_lengths_of_any_integers(tmp_path: Path, form: str, kind: str) -> None:
    x, lengths = documents([120, 0, 3])
    source = save(tmp_path, form, x, lengths.to(getattr(torch, kind)))
    assert open_source(source).lengths.tolist() == [120, 0, 3]


@pytest.mark.parametrize("form", FORMATS)
def test_other_arrays_are_told_of(tmp_path: Path, form: str) -> None:
    x, lengths = documents([4, 2])
    source = save(tmp_path, form, x, lengths, a_first=torch.zeros(3), ids=torch.tensor([5, 6]))
    assert [name.removesuffix(".npy") for name in open_source(source).others] == ["a_first", "ids"]
    pool_index(source, tmp_path / "out.npz", {"pool_factor": 2})
    assert_same(load(tmp_path / "out.npz"), pool_embeddings((x, lengths), 2))


def test_not_finite_documents_are_counted_and_leave_the_others_alone(tmp_path: Path) -> None:
    x, lengths = documents([6, 5, 7])
    x[8, 2] = float("nan")
    source, target = save(tmp_path, "npz", x, lengths), tmp_path / "out.npz"
    totals = pool_index(source, target, {"pool_factor": 2}).totals
    found, (vectors, counts) = load(target), pool_embeddings((x, lengths), 2)
    assert torch.equal(found[1], counts) and torch.equal(found[0].isnan(), vectors.isnan())
    assert torch.equal(found[0].nan_to_num(), vectors.nan_to_num())
    assert totals.not_finite == 1 and totals.worst_document in (0, 2) and 0 < totals.error < 2


def test_the_same_index_is_the_same_bytes(tmp_path: Path) -> None:
    source = save(tmp_path, "npz", *documents(LENGTHS))
    for out in WRITTEN:
        first, second = tmp_path / f"1_{FORMATS[out]}", tmp_path / f"2_{FORMATS[out]}"
        for target in (first, second):
            pool_index(source, target, {"max_tokens": 3}, buffer_tokens=9)
        assert content(first) == content(second)


@pytest.mark.parametrize("dim", [1, 128, 10**6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_npy_headers_are_as_long_for_any_number_of_vectors(dim: int, dtype: torch.dtype) -> None:
    headers = [npy.header(dtype, (10**digits, dim)) for digits in range(19)]
    assert {len(header) for header in headers} == {len(npy.header(dtype, (0, dim)))}
    assert npy.read_header(BytesIO(headers[-1]), "a") == (dtype, (10**18, dim))


def test_room_for_a_header_is_blanks_that_the_library_reads(tmp_path: Path) -> None:
    """Few vectors are left of many, so that the final header is shorter than the one there is room for."""
    x, lengths = documents([4000])
    source, target = save(tmp_path, "safetensors", x, lengths), tmp_path / "out.safetensors"
    pool_index(source, target, {"max_tokens": 1})
    raw = target.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0 and json.loads(raw[8 : 8 + size])["embeddings"]["shape"] == [1, 8]
    with safetensors.safe_open(target, "pt") as file:
        assert file.get_slice("embeddings").get_shape() == [1, 8]
