"""Clustering, pooling and attention as functions."""

from .attention import attention
from .clustering import Clusters, explain_backend, kmeans, kmedoids, ward
from .pooling import assign, chamfer_loss, cluster_mean, medoid_update, pairwise_sqdist, unpool

__all__ = [
    "Clusters",
    "assign",
    "attention",
    "chamfer_loss",
    "cluster_mean",
    "explain_backend",
    "kmeans",
    "kmedoids",
    "medoid_update",
    "pairwise_sqdist",
    "unpool",
    "ward",
]
