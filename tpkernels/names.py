"""The names that arguments take, in the order in which messages list them. No imports."""

BACKENDS = ("auto", "torch", "triton")
CLUSTERERS = ("ward", "kmeans", "kmedoids")
PRUNERS = ("topk", "importance", "random")
METHODS = (*CLUSTERERS, *PRUNERS, "grid", "bipartite")
INITS = ("auto", "ward", "topk", "farthest", "strided")
OUTPUTS = ("mean", "medoid")
REFINEMENTS = ("swap",)
# What Ward's dendrogram is made of, and where it is cut.
METRICS = ("euclidean", "cosine", "dot", "rows", "clipped")
CUTS = ("count", "distance", "error")
POSITIONS = ("attention", "block")
# The most tokens of a sample for Ward, which holds N x N costs.
WARD_TOKENS = 4096
