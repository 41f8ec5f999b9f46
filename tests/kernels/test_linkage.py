"""The kernels that write whole dendrograms, against scipy's, the heights of `ward`, and themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from scipy.cluster.hierarchy import linkage as scipys
from scipy.spatial.distance import pdist
from torch import Tensor

from tests.support.launches import Allocations
from tests.support.marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from tests.support.resident import SMALL, spy
from tests.support.strategies import make
from tpkernels.ops.gpu import linkage as launcher
from tpkernels.ops.gpu import resident

cluster = torch.ops.tpkernels.cluster.default

pytestmark = KERNELS
NONE = [-1.0, -1.0, torch.inf, 0.0]


def linkage(x: Tensor, weight: Tensor | None = None, mask: Tensor | None = None, metric: str = "euclidean") -> Tensor:
    x, weight, mask = (None if tensor is None else tensor.to(DEVICE) for tensor in (x, weight, mask))
    return launcher.linkage(x, weight, mask, metric).cpu()


def condensed(x: Tensor, metric: str) -> Tensor:
    """scipy's dendrogram of tokens [N, D] in float64."""
    x = x.double()
    if metric == "euclidean":
        return torch.from_numpy(scipys(x.numpy(), "ward"))
    if metric == "cosine":
        return torch.from_numpy(scipys(pdist(x.numpy(), "cosine"), "ward"))
    far = 1 - x @ x.T
    upper = torch.triu_indices(len(x), len(x), 1)
    return torch.from_numpy(scipys(far[upper[0], upper[1]].abs().numpy(), "ward"))


def partition(tree: Tensor, k: int) -> list[tuple[int, ...]]:
    label = fcluster(tree.numpy(), k, "maxclust")
    return sorted(tuple((label == one).nonzero()[0].tolist()) for one in set(label))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_scipys_distances_and_its_cuts_at_every_k(metric: str) -> None:
    n = sized(29, gpu=33)
    x, _, _, mask = make(1, 2, n, 6, 1, masked=True)
    found = linkage(x, None, mask, metric)
    assert found.shape == (2, n - 1, 4) and found.dtype == torch.float64
    for b in range(2):
        valid = int(mask[b].sum())
        tree, expected = found[b, : valid - 1], condensed(x[b, mask[b]], metric)
        assert is_valid_linkage(tree.numpy(), warning=True)
        assert found[b, valid - 1 :].tolist() == [NONE] * (n - valid)
        torch.testing.assert_close(tree[:, 2], expected[:, 2], rtol=1e-5, atol=1e-5)
        assert torch.equal(tree[:, 3], expected[:, 3]) and bool((tree[:, 0] < tree[:, 1]).all())
        for k in range(1, valid + 1):
            assert partition(tree, k) == partition(expected, k)


def test_mergers_are_those_of_ward() -> None:
    """Heights to the last bit, and clusters at every cut, with weights of any size and equal tokens."""
    n = sized(24, gpu=33)
    x, _, weight, _ = make(2, 3, n, 4, 1, weighted=True, zeros=True, duplicates=True)
    weight = 50 * weight
    tree = linkage(x, weight, torch.ones(3, n, dtype=torch.bool))
    for k in sized((1, 5, 12, 23), gpu=(1, 15)):
        found = cluster(
            x.to(DEVICE), weight.to(DEVICE), None, None, None, k, "ward", "ward", "mean", 0, "triton", False
        )  # fmt: skip
        heights, label = found[6].cpu().double(), found[2].cpu()
        made = heights.isfinite()
        # NumPy's root is the nearest number, which torch's is not always.
        distance = torch.from_numpy(np.sqrt(2 * heights.numpy()))
        assert torch.equal(tree[..., 2][made], distance[made]) or CUDA
        for b in range(3):
            members = {i: [i] for i in range(n)}
            for row in range(n - k):
                one, two, _, size = tree[b, row].tolist()
                members[n + row] = members.pop(int(one)) + members.pop(int(two))
                assert len(members[n + row]) == size
            clusters = sorted(map(sorted, members.values()))
            assert clusters == [(label[b] == slot).nonzero().flatten().tolist() for slot in range(k)]


def test_samples_with_nothing_to_merge() -> None:
    """Bad numbers, in tokens and in weights, one token and none."""
    n = sized(17, gpu=33)
    x, _, weight, _ = make(3, 5, n, 4, 1, weighted=True)
    mask = torch.ones(5, n, dtype=torch.bool)
    x[0, 2, 1], weight[1, 4] = torch.nan, torch.inf
    mask[2, 1:], mask[3] = False, False
    found = linkage(x, weight, mask)
    assert found[:4].tolist() == [[NONE] * (n - 1)] * 4
    assert is_valid_linkage(found[4].numpy(), warning=True)
    for shape in ((0, 5, 3), (2, 1, 3), (2, 0, 3)):
        assert linkage(torch.zeros(shape)).shape == (shape[0], max(shape[1] - 1, 0), 4)


def test_a_chain_and_equal_tokens() -> None:
    n = sized(16, gpu=33)
    chain = torch.zeros(1, n, 6)
    chain[0, :, 2] = 1.5 ** torch.arange(n)
    every = torch.ones(1, n, dtype=torch.bool)
    tree = linkage(chain, None, every)[0]
    assert is_valid_linkage(tree.numpy(), warning=True)
    expected = condensed(chain[0], "euclidean")
    assert torch.equal(tree[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    torch.testing.assert_close(tree[:, 2], expected[:, 2], rtol=1e-4, atol=0)
    equal = linkage(torch.ones_like(chain), None, every)[0]
    assert is_valid_linkage(equal.numpy(), warning=True) and bool((equal[:, 2] == 0).all())


@pytest.mark.parametrize(
    "kind", ["plain", pytest.param("half", marks=pytest.mark.skipif(FOR_GPU, reason="another kernel to compile"))]
)
def test_one_launch_or_four_and_any_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, whatever the buffers held, a sample alone and in a batch."""
    monkeypatch.setattr(resident, "config_of", lambda *_: SMALL)
    launches = spy(monkeypatch)
    x, _, weight, mask = make(4, 3, 19, 21, 1, weighted=True, masked=kind == "plain")
    x = (x + 3).half() if kind == "half" else x
    expected = linkage(x, weight, mask)
    assert [one.name for one in launches] == ["linkage_kernel"]
    with Allocations(poison=True):
        assert torch.equal(linkage(x, weight, mask), expected)
    alone = linkage(x[2:].clone(), weight[2:].clone(), None if mask is None else mask[2:].clone())
    assert torch.equal(alone, expected[2:])
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    monkeypatch.setattr(resident, "at_once", lambda *_: 2)
    launches.clear()
    found = linkage(x, weight, mask)
    assert [one.name for one in launches] == ["center_kernel", "gram_kernel", "merge_kernel", "tree_kernel"] * 2
    if CUDA:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, expected)


def test_300_documents_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, run=False)
    mask = torch.arange(64) < (torch.arange(300) % 61 + 3)[:, None]
    linkage(torch.zeros(300, 64, 8), None, mask)
    assert [one.name for one in launches] == ["linkage_kernel"]
