"""Token Pooling for vision transformers as fused kernels (Marin et al., arXiv 2110.03860).

Importing runs nothing: no device is queried, no environment written, and Triton need not be installed.
"""

from importlib.metadata import PackageNotFoundError, version

from .functional import (
    Clusters,
    assign,
    attention,
    chamfer_loss,
    cluster_mean,
    explain_backend,
    kmeans,
    kmedoids,
    medoid_update,
    pairwise_sqdist,
    unpool,
    ward,
)
from .integrations import Summary, Trace, patch, schedule_of, summary, trace, unpatch
from .macs import Macs, count_macs
from .modules import PoolInfo, TokenPool
from .schedules import resolve_budget, resolve_keep, tokens_kept
from .shapes import ViTShape

try:
    __version__ = version("tpkernels")
except PackageNotFoundError:
    # Run from a checkout that is not installed.
    __version__ = "0+unknown"

__all__ = [
    "Clusters",
    "Macs",
    "PoolInfo",
    "Summary",
    "TokenPool",
    "Trace",
    "ViTShape",
    "assign",
    "attention",
    "chamfer_loss",
    "cluster_mean",
    "count_macs",
    "explain_backend",
    "kmeans",
    "kmedoids",
    "medoid_update",
    "pairwise_sqdist",
    "patch",
    "resolve_budget",
    "resolve_keep",
    "schedule_of",
    "summary",
    "tokens_kept",
    "trace",
    "unpatch",
    "unpool",
    "ward",
]
