"""Codes of the resident kernels' compile-time choices, and how launchers name them."""

import triton.language as tl

METHOD_WARD, METHOD_KMEANS, METHOD_KMEDOIDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
METHODS = {"ward": METHOD_WARD.value, "kmeans": METHOD_KMEANS.value, "kmedoids": METHOD_KMEDOIDS.value}

INIT_GIVEN, INIT_TOPK, INIT_STRIDED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
INIT_FARTHEST, INIT_WARD = tl.constexpr(3), tl.constexpr(4)
INITS = {
    "given": INIT_GIVEN.value,
    "topk": INIT_TOPK.value,
    "strided": INIT_STRIDED.value,
    "farthest": INIT_FARTHEST.value,
    "ward": INIT_WARD.value,
}

# What a pooled token is: the center of the clustering, the mean of the final members, or the medoid's own token.
OUTPUT_CENTER, OUTPUT_MEAN, OUTPUT_MEDOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
OUTPUTS = {"center": OUTPUT_CENTER.value, "mean": OUTPUT_MEAN.value, "medoid": OUTPUT_MEDOID.value}

# What Ward's first costs are made of, and where its dendrogram is cut.
METRIC_EUCLIDEAN, METRIC_COSINE = tl.constexpr(0), tl.constexpr(1)
METRIC_DOT, METRIC_CLIPPED = tl.constexpr(2), tl.constexpr(3)
METRICS = {
    "euclidean": METRIC_EUCLIDEAN.value,
    "cosine": METRIC_COSINE.value,
    "dot": METRIC_DOT.value,
    "clipped": METRIC_CLIPPED.value,
}

CUT_COUNT, CUT_DISTANCE, CUT_ERROR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
CUTS = {"count": CUT_COUNT.value, "distance": CUT_DISTANCE.value, "error": CUT_ERROR.value}
