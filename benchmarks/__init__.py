"""What the library costs, beside its peers: `python -m benchmarks kernels|scaling|peers|plots|report|all`.

`cases` says what is solved, `inputs` makes the tokens, `providers` and `peers` say who solves it and how, `gate` checks
every answer before it is timed, `timing` and `gpu` measure, `runner` puts a row together, `rows` keeps it as CSV,
`plots`, `report` and `readme` show it. `execution` leads a run through its cases, in this process or in workers that
may be lost (`isolation`, `progress`), writing rows at once (`ledger`). `tax` measures whole models; `device` is one
command for a machine with a GPU that is there for minutes. `compile` and `autotune` are tools of their own.
"""
