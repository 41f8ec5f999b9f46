"""Token Pooling for vision transformers as fused kernels (Marin et al., arXiv 2110.03860).

Importing runs nothing: no device is queried, no environment written, and Triton need not be installed.
"""

from importlib.metadata import PackageNotFoundError, version

from . import retrieval as retrieval
from .functional import (
    Clusters,
    assign,
    attention,
    chamfer_loss,
    cluster_mean,
    explain_backend,
    kmeans,
    kmedoids,
    linkage,
    medoid_update,
    pairwise_sqdist,
    unpool,
    ward,
)
from .integrations import (
    Summary,
    Trace,
    patch,
    reconstruction_errors,
    schedule_of,
    solve_schedule,
    summary,
    trace,
    unpatch,
)
from .modules import PoolInfo, TokenPool
from .schedule.file import Schedule, load_schedule, save_schedule
from .schedule.keep import resolve_budget, resolve_keep, tokens_kept
from .schedule.macs import Macs, count_macs
from .schedule.shapes import ViTShape

try:
    __version__ = version("tpkernels")
except PackageNotFoundError:
    # Run from a checkout that is not installed.
    __version__ = "0+unknown"

__all__ = [
    "Clusters", "Macs", "PoolInfo", "Schedule", "Summary", "TokenPool", "Trace", "ViTShape", "assign", "attention",
    "chamfer_loss", "cluster_mean", "count_macs", "explain_backend", "kmeans", "kmedoids", "linkage", "load_schedule",
    "medoid_update", "pairwise_sqdist", "patch", "reconstruction_errors", "resolve_budget", "resolve_keep",
    "save_schedule", "schedule_of", "solve_schedule", "summary", "tokens_kept", "trace", "unpatch", "unpool",
    "ward",
]  # fmt: skip
