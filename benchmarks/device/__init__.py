"""`python -m benchmarks device`: all that a machine with a GPU can tell within minutes."""
