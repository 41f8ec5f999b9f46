"""Mutants of numbers of clusters of each sample, cuts by value, metrics and the whole dendrogram."""

from __future__ import annotations

from .mutant import Mutant

EAGER, LOOPS = "tpkernels/ops/eager", "tpkernels/ops/cpu"
CUTS, COUNTS, POOLS = "tests/ops/test_cuts.py", "tests/ops/test_counts.py", "tests/ops/test_counts_pool.py"
METRICS, LINKAGE = "tests/ops/test_metrics.py", "tests/ops/test_linkage.py"

DENDROGRAMS = (
    Mutant(
        "eager-cut-equal",
        "weaker condition",
        f"{EAGER}/cuts.py",
        "(height * samples.scale[:, None] <= bound[:, None])",
        "(height * samples.scale[:, None] < bound[:, None])",
        "a merger exactly at the distance is not made",
        (f"{CUTS}::test_a_distance_of_the_dendrogram_is_within", CUTS),
    ),
    Mutant(
        "loops-cut-scale",
        "lost scale",
        f"{LOOPS}/ward.py",
        "(ordered[place] * scale if cut_at == AT_DISTANCE else total) > bound",
        "(ordered[place] if cut_at == AT_DISTANCE else total) > bound",
        "distances are compared by weights over their largest",
        (f"{CUTS}::test_weights_count_as_they_come", CUTS),
    ),
    Mutant(
        "eager-metric-square",
        "missing square",
        f"{EAGER}/metrics.py",
        "gram.square_().mul_(-0.5)",
        "gram.mul_(-0.5)",
        "Ward's costs are made of distances, not of their squares",
        (METRICS,),
    ),
    Mutant(
        "eager-count-tokens",
        "lost limit",
        f"{EAGER}/samples.py",
        "torch.minimum(count, counts.clamp(1, max(k, 1)))",
        "counts.clamp(1, max(k, 1))",
        "a sample has more clusters than tokens that are there",
        (f"{COUNTS}::test_there_are_as_many_clusters_as_tokens_allow",),
    ),
    Mutant(
        "loops-table-order",
        "swapped order",
        f"{LOOPS}/linkage.py",
        "min(name[i], name[j]), max(name[i], name[j])",
        "name[i], name[j]",
        "the first id of a merger is not the lower one",
        (f"{LINKAGE}::test_scipy_takes_it", LINKAGE),
    ),
    Mutant(
        "eager-matching-passes",
        "stops early",
        f"{EAGER}/baselines.py",
        "while most > least:",
        "while most > k:",
        "matching ends with the sample that keeps most",
        (f"{POOLS}::test_each_sample_keeps_its_own_number",),
    ),
)
