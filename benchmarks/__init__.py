"""What the library costs, beside its peers: `python -m benchmarks kernels|scaling|peers|plots|report|all`.

`cases` says what is solved, `inputs` makes the tokens, `providers` and `peers` say who solves it and how, `gate` checks
every answer before it is timed, `timing` and `gpu` measure, `runner` puts a row together, `rows` keeps it as CSV,
`plots` and `report` show it. `compile` and `autotune` are tools of their own.
"""
