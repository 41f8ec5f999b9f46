"""Ward's dendrogram as a function."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..names import METRICS
from ..ops.linkage import linkage as _linkage


def linkage(
    x: Tensor,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    metric: str = "euclidean",
    backend: str = "auto",
) -> Tensor:
    """Ward's whole dendrogram of every sample, in the format of scipy's `linkage(x, "ward")`.

    Row t says that clusters of the ids in its first two columns, the lower first, merge at the distance of the third
    into the cluster of id `n_valid + t`, of as many tokens as the fourth says. Ids below n_valid are tokens, by their
    ranks among the valid ones. Clusters come before what they merge into; distances are `sqrt(2 merge height)` of
    `ward`, and rise. `Z[i, : n_valid - 1]` goes to scipy's `fcluster`, `dendrogram` and `cut_tree`.

    Args:
        x: tokens [B, N, D], float32, float16, bfloat16 (computed in float32) or float64, any strides; N at most 4,096.
        weight: masses [B, N] >= 0; None for equal ones. The fourth column counts tokens whatever their weights.
        mask: bool [B, N], False for padding.
        metric: as `ward` takes it.
        backend: "auto", "torch" or "triton".

    Returns:
        [B, N - 1, 4] float64, without gradient. Rows from n_valid - 1 on are (-1, -1, inf, 0), and so are all of a
        sample with NaN or infinity.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, more than 4,096 tokens, negative weights (seen on the CPU), an unknown metric or
            backend.
        RuntimeError: backend="triton" cannot run this call.
    """
    checks.tokens(x)
    checks.per_token("weight", weight, x)
    checks.mask(mask, x)
    checks.one_of("metric", metric, METRICS)
    checks.ward_fits(x.shape[1])
    return _linkage(x, weight, mask, metric, checks.backend(backend, x, "ward", metric))
