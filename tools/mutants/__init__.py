"""Mistakes planted in the package one at a time, and which tests see them: `python -m tools.mutants --help`."""
