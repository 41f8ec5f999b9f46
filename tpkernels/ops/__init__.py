"""One file an operation: its registration, its launcher and its vectorised torch twin."""
