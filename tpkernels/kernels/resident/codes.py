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
