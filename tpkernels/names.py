"""The names that arguments take, in the order in which messages list them. No imports."""

BACKENDS = ("auto", "torch", "triton")
CLUSTERERS = ("ward", "kmeans", "kmedoids")
PRUNERS = ("topk", "importance", "random")
METHODS = (*CLUSTERERS, *PRUNERS, "grid", "bipartite")
INITS = ("auto", "ward", "topk", "farthest", "strided")
OUTPUTS = ("mean", "medoid")
REFINEMENTS = ("swap",)
POSITIONS = ("attention", "block")
# Beyond so many tokens Ward's N x N costs are too many.
WARD_TOKENS = 4096
