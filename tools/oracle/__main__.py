"""`python -m tools.oracle`."""

from .command import main

raise SystemExit(main())
