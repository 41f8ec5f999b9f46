"""`python -m tools.mutants`."""

from .command import main

raise SystemExit(main())
