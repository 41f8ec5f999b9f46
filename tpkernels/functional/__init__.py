"""Clustering, pooling and attention as functions."""

from .attention import attention as attention
from .clustering import Clusters as Clusters
from .clustering import explain_backend as explain_backend
from .clustering import kmeans as kmeans
from .clustering import kmedoids as kmedoids
from .clustering import ward as ward
from .dendrogram import linkage as linkage
from .pooling import assign as assign
from .pooling import chamfer_loss as chamfer_loss
from .pooling import cluster_mean as cluster_mean
from .pooling import medoid_update as medoid_update
from .pooling import pairwise_sqdist as pairwise_sqdist
from .pooling import unpool as unpool
