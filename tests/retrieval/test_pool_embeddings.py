"""Documents pooled in batches: each as scipy pools it alone, in every form that documents come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster
from torch import Tensor

from tests.support import scipys
from tests.support.marks import DEVICE, runs_triton
from tests.support.pooled import canonical
from tpkernels.retrieval import PRESETS, groups, pool_embeddings, stream_pooled

LENGTHS = (23, 1, 9, 0, 31, 2, 16, 40, 3)


def documents(
    lengths: tuple[int, ...] = LENGTHS, d: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Unit vectors about a few directions, for each document other ones."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n in lengths:
        places = torch.randn(n // 4 + 1, d, generator=generator)
        x = places[torch.randint(len(places), (n,), generator=generator)]
        made.append(F.normalize(x + 0.4 * torch.randn(n, d, generator=generator), dim=-1).to(dtype))
    return made


def alone(x: Tensor, protected: int, k: int, distance: str = "euclidean") -> tuple[Tensor, Tensor]:
    """The means of scipy's k clusters of a document's unprotected tokens [n, D], and their labels."""
    x = x[protected:]
    label = torch.arange(len(x)) if k >= len(x) else scipys.cut(scipys.tree(x, distance), k)
    return torch.stack([x[label == c].mean(0) for c in range(min(k, len(x)))]) if len(x) else x, label


@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("factor", [1, 2, 3.5])
@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot", "rows", "clipped"])
def test_a_document_is_pooled_as_scipy_pools_it(distance: str, factor: float, protected: int) -> None:
    given = documents()
    how: dict[str, Any] = {"protected": protected, "distance": distance, "normalize": False, "return_labels": True}
    vectors, labels = pool_embeddings(given, factor, **how)
    for x, found, label in zip(given, vectors, labels, strict=True):
        p = min(protected, len(x))
        means, expected = alone(x, p, max(int((len(x) - p) // factor), 1), distance)
        assert torch.equal(found[:p], x[:p])
        torch.testing.assert_close(found[p:], means)
        assert label.dtype == torch.int64 and torch.equal(label, torch.cat([torch.arange(p), p + expected]))


@pytest.mark.parametrize(
    "budget", [{"pool_factor": 2}, {"max_tokens": 6}, {"distance_threshold": 0.9}, {"max_error": 0.3}]
)
@pytest.mark.parametrize("protected", [0, 2])
@pytest.mark.parametrize("protected_at", ["start", "end"])
def test_all_forms_give_the_same(budget: dict[str, Any], protected: int, protected_at: str) -> None:
    given = documents()
    lengths = [len(x) for x in given]
    how = {**budget, "protected": protected, "protected_at": protected_at, "return_labels": True}
    vectors, labels = pool_embeddings(given, **how)
    counts = [len(found) for found in vectors]
    # A row for each label, and no other.
    assert [len(label.unique()) for label in labels] == counts

    packed, packed_counts, packed_labels = pool_embeddings((torch.cat(given), torch.tensor(lengths)), **how)
    assert packed_counts.tolist() == counts and torch.equal(packed_labels, torch.cat(labels))
    assert torch.equal(packed, torch.cat(vectors))

    # Padding anywhere, over what is no number.
    generator = torch.Generator().manual_seed(1)
    n = max(lengths) + 5
    mask = torch.zeros(len(given), n, dtype=torch.bool)
    padded = torch.full((len(given), n, 12), torch.nan)
    for b, x in enumerate(given):
        places = torch.randperm(n, generator=generator)[: len(x)].sort().values
        mask[b, places] = True
        padded[b, places] = x
    rows, there, row_labels = pool_embeddings((padded, mask), **how)
    assert there.sum(1).tolist() == counts and rows.shape[1] == max(counts)
    assert bool((row_labels[~mask] == -1).all()) and torch.equal(row_labels[mask], torch.cat(labels))
    torch.testing.assert_close(rows[there], torch.cat(vectors))
    assert bool((rows[~there] == 0).all())

    x = given[7]
    one, label = pool_embeddings(x, **how)
    assert torch.equal(label, labels[7])
    torch.testing.assert_close(one, vectors[7])
    both, both_labels = pool_embeddings(torch.stack([x, x.flip(0)]), **how)
    torch.testing.assert_close(both[0, : len(one)], one)
    assert torch.equal(both_labels[0], label)


def test_a_document_does_not_depend_on_the_others() -> None:
    given = documents(tuple(range(30)))
    together = pool_embeddings(given, 2.5, protected=1)
    for x, found in zip(given, together, strict=True):
        assert torch.equal(found, pool_embeddings([x], 2.5, protected=1)[0])
        # No document's memory holds that of others.
        assert found.untyped_storage().nbytes() == found.numel() * 4


def test_arrays_give_arrays() -> None:
    given = documents()
    vectors, labels = pool_embeddings([x.numpy() for x in given], 2, preset="pylate", return_labels=True)
    streamed = stream_pooled((x.numpy() for x in given), 2, preset="pylate", buffer_tokens=40)
    expected = pool_embeddings(given, 2, preset="pylate", return_labels=True)
    for found, again, label, one, other in zip(vectors, streamed, labels, *expected, strict=True):
        assert isinstance(found, np.ndarray) and isinstance(again, np.ndarray) and isinstance(label, np.ndarray)
        assert np.array_equal(found, one.numpy()) and np.array_equal(again, found)
        assert np.array_equal(label, other.numpy())


def test_rows_are_in_the_order_of_first_tokens() -> None:
    for found in pool_embeddings(documents(), 3, protected=2, return_labels=True)[1]:
        assert torch.equal(found, canonical(found))


def test_protected_tokens_come_out_behind() -> None:
    given = documents()
    front = pool_embeddings(given, 3, protected=2)
    for x, one, other in zip(given, front, pool_embeddings(given, 3, protected=2, protected_at="end"), strict=True):
        assert torch.equal(other, one.roll(-min(2, len(x)), 0) if len(x) > 2 else x)


@pytest.mark.parametrize(
    ("n", "factor", "rounding", "count"),
    [
        # 11 / 1.1 is 10 to the last bit, 11 // 1.1 is 9.
        (11, 1.1, "floor", 9),
        (11, 1.1, "nearest", 10),
        (7, 2, "floor", 3),
        (7, 2, "nearest", 4),
        (3, 10, "floor", 1),
        (10, 1, "floor", 10),
    ],
)
def test_a_factor_is_rounded(n: int, factor: float, rounding: str, count: int) -> None:
    (x,) = documents((n,))
    assert len(pool_embeddings(x, factor, rounding=rounding)) == count
    assert len(pool_embeddings(torch.cat([x[:1], x]), factor, rounding=rounding, protected=1)) == 1 + count


def test_the_most_tokens_count_protected_ones() -> None:
    found = pool_embeddings(documents(), max_tokens=5, protected=2)
    assert [len(one) for one in found] == [min(n, 5) for n in LENGTHS]


def test_values_cut_each_dendrogram() -> None:
    given = documents()
    vectors, labels = pool_embeddings(given, distance_threshold=0.8, protected=1, return_labels=True)
    for x, found, label in zip(given, vectors, labels, strict=True):
        if len(x) > 2:
            expected = canonical(torch.from_numpy(fcluster(scipys.tree(x[1:]), 0.8, "distance")))
            assert torch.equal(label[1:], 1 + expected) and len(found) == 2 + int(expected.max())
    for x, found in zip(
        given, pool_embeddings(given, max_error=0.2, return_labels=True, normalize=False)[1], strict=True
    ):
        if len(x) > 1:

            def error(label: Tensor, x: Tensor = x) -> float:
                return sum(float((x[label == c] - x[label == c].mean(0)).square().sum()) for c in label.unique())

            one = error(torch.zeros(len(x)))
            fewer = int(found.max())
            assert error(found) <= 0.2 * one
            assert fewer == 0 or error(scipys.cut(scipys.tree(x), fewer)) > 0.2 * one


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_means_are_made_unit_vectors(dtype: torch.dtype) -> None:
    given = [2 * x for x in documents(dtype=dtype)]
    raw = pool_embeddings([x.double() for x in given], 2, protected=1, normalize=False, distance="cosine")
    for x, mean, some, every in zip(
        given,
        raw,
        pool_embeddings(given, 2, protected=1, distance="cosine"),
        pool_embeddings(given, 2, protected=1, distance="cosine", normalize="all"),
        strict=True,
    ):
        assert some.dtype == every.dtype == dtype
        assert torch.equal(some[:1], x[:1])
        # Rounded once.
        limits = {"rtol": 0, "atol": 1.01 * torch.finfo(dtype).eps / 2 + 3e-7}
        torch.testing.assert_close(some[1:].double(), F.normalize(mean[1:], dim=-1), **limits)
        torch.testing.assert_close(every.double(), F.normalize(mean, dim=-1), **limits)


def test_gradients_flow_through_the_means() -> None:
    x = documents((12,), dtype=torch.float64)[0]
    for how in ({"normalize": False}, {"normalize": "all", "protected_at": "end"}):
        assert torch.autograd.gradcheck(
            lambda x, how=how: pool_embeddings([x], 3, protected=2, **how)[0], x.clone().requires_grad_()
        )
    leaf = x.clone().requires_grad_()
    vectors, labels = pool_embeddings([leaf], 3, normalize=False, return_labels=True)
    vectors[0].sum().backward()
    # A token's share of its mean.
    share = 1 / torch.bincount(labels[0])[labels[0]]
    torch.testing.assert_close(leaf.grad, share[:, None].expand_as(x).double())


def test_a_training_step_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ward = groups.pool_batch
    monkeypatch.setattr(groups, "pool_batch", lambda x, *rest: calls.append(len(x)) or ward(x, *rest))
    monkeypatch.setattr(groups, "CPU_ELEMENTS", 1 << 10)
    given = [x.requires_grad_() for x in documents(tuple(range(1, 65)))]
    pool_embeddings(given, 2)
    assert calls == [64]
    calls.clear()
    with torch.no_grad():
        pool_embeddings(given, 2)
    assert len(calls) > 1 and sum(calls) == 64


def test_bad_numbers_stay_in_their_document() -> None:
    given = documents()
    clean = pool_embeddings(given, 2, protected=1)
    given[4][7, 3] = torch.nan
    for place, (found, one) in enumerate(zip(pool_embeddings(given, 2, protected=1), clean, strict=True)):
        assert found.shape == one.shape
        assert torch.equal(found, one) == (place != 4)


def test_nothing_gives_nothing() -> None:
    assert pool_embeddings([], 2) == [] and pool_embeddings([], 2, return_labels=True) == ([], [])
    empty = torch.empty(0, 5)
    assert [tuple(one.shape) for one in pool_embeddings([empty, empty], 2, protected=1)] == [(0, 5), (0, 5)]
    vectors, mask = pool_embeddings((torch.ones(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)), 2)
    assert vectors.shape == (2, 0, 5) and mask.shape == (2, 0)
    vectors, mask = pool_embeddings((torch.empty(0, 3, 5), torch.empty(0, 3, dtype=torch.bool)), 2)
    assert vectors.shape == (0, 0, 5) and mask.shape == (0, 0)
    vectors, lengths = pool_embeddings((empty, []), 2)
    assert vectors.shape == (0, 5) and lengths.tolist() == []
    vectors, lengths = pool_embeddings((empty, torch.zeros(3, dtype=torch.int64)), 2)
    assert vectors.shape == (0, 5) and lengths.tolist() == [0, 0, 0]


def test_presets_are_what_the_packages_do() -> None:
    """By hand what the packages' own tests in `real` show: how many vectors, which are unit, and where."""
    (x,) = documents((11,))
    x = 2 * x
    expected = {
        # Vectors, and how many in front are tokens as they came.
        "colpali": (5, 0),
        "pylate": (1 + 5, 1),
        "sentence-transformers": (1 + 5, 0),
        "colbert": (5, 0),
        "next-plaid": (1 + 5, 1),
    }
    for preset in PRESETS:
        found = pool_embeddings([x], 2, preset=preset)[0]
        count, front = expected[preset]
        assert len(found) == count and torch.equal(found[:front], x[:front])
        unit = bool(((found.norm(dim=1) - 1).abs() < 1e-5).all())
        assert unit == (preset in ("colpali", "sentence-transformers"))
    behind = pool_embeddings([x], 2, preset="colbert", protected=2)[0]
    # A factor divides all tokens there.
    assert len(behind) == 5 + 2 and torch.equal(behind[5:], x[:2])
    # What is given beside a preset wins.
    own = {"protected": 1, "distance": "dot", "normalize": False}
    assert torch.equal(pool_embeddings(x, 3, preset="colpali", **own), pool_embeddings(x, 3, preset="pylate"))
    assert torch.equal(pool_embeddings(x, 1, preset="colpali"), x)


@runs_triton
def test_a_gpu_pools_as_a_cpu_does() -> None:
    given = documents((9, 1, 14, 0, 5))
    how: dict[str, Any] = {"protected": 1, "protected_at": "end", "distance": "dot", "return_labels": True}
    expected, labels = pool_embeddings(given, 2, backend="torch", **how)
    found, found_labels = pool_embeddings([x.to(DEVICE) for x in given], 2, backend="triton", **how)
    for pairs, exact in ((zip(found, expected, strict=True), False), (zip(found_labels, labels, strict=True), True)):
        for one, other in pairs:
            assert one.device.type == DEVICE
            torch.testing.assert_close(one.cpu(), other, **({"rtol": 0, "atol": 0} if exact else {}))
