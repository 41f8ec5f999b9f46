"""What the library costs, beside its peers: `python -m benchmarks kernels|scaling|peers|plots|report|all`.

`clustering` measures the operations alone, `tax` whole models, and `device` is one command for a machine with a GPU
that is there for minutes. Each has its `cases` (or `problems`, or `plan`), a `gate` that checks every answer before it
is timed, a runner, rows and a report.

What they share stands here: a run from its first case to its last (`session`, `execution`), in this process or in
workers that may be lost (`isolation`, `progress`, `processes`); the `runner`; times and memory (`timing`, `gpu`,
`memory`); tables of `rows`, written at once (`ledger`, `records`), read back (`results`) and shown (`markdown`,
`reports`, `readme`). `python -m benchmarks compile` and `autotune` are tools of their own, in `tools`.
"""
