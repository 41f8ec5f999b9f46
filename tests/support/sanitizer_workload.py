"""Every kernel once on a small problem, for compute-sanitizer: `compute-sanitizer --tool memcheck python -m THIS`."""

from __future__ import annotations

import torch

import tpkernels
from tpkernels.ops.gpu.linkage import linkage


def main() -> None:
    """Clusters with each method and a mask, takes means, attention and their gradients, on the GPU."""
    torch.manual_seed(0)
    for n, k in ((50, 20), (300, 100)):
        x = torch.randn(2, n, 24, device="cuda", requires_grad=True)
        weight = torch.rand(2, n, device="cuda", requires_grad=True)
        mask = torch.arange(n, device="cuda") < torch.tensor([[n], [n - 7]], device="cuda")
        tpkernels.ward(x, k, weight, mask=mask, backend="triton")
        own = torch.tensor([k, 3], device="cuda")
        tpkernels.ward(x, own, weight, k_max=k, max_error=0.1, mask=mask, backend="triton")
        tpkernels.ward(x, own, k_max=k, distance_threshold=1.0, metric="cosine", backend="triton")
        linkage(x.detach(), weight.detach(), mask, "dot")
        for cluster in (tpkernels.kmeans, tpkernels.kmedoids):
            for init in ("topk", "farthest", "strided"):
                cluster(x, k, weight, init=init, mask=mask, backend="triton")
        label = torch.randint(0, k, (2, n), device="cuda")
        tpkernels.cluster_mean(x, label, k, weight).square().sum().backward()
    # Streaming, and attention in whole rows and by blocks, with heads of fewer channels than a warp has lanes.
    x = torch.randn(2, 1100, 24, device="cuda")
    for cluster in (tpkernels.kmeans, tpkernels.kmedoids):
        cluster(x, 4, init="strided", max_iter=2, backend="triton")
    for n, dtype in ((50, torch.bfloat16), (300, torch.float32)):
        q, k, v = (torch.randn(2, 2, n, 20, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
        tpkernels.attention(q, k, v, backend="triton")[0].float().square().sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
