"""`python -m tools.compile_gate`, which is `python -m benchmarks compile`."""

import sys

from .command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
