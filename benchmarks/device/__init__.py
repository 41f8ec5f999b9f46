"""`python -m benchmarks device`: all that a machine with a GPU can tell in the minutes for which it is lent."""
