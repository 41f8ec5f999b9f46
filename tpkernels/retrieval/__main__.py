"""`python -m tpkernels.retrieval pool IN OUT`: pools an index on disk."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
