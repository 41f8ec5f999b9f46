"""An index of multi-vector documents on disk: vectors [T, D] and how many of them each document has, read in pieces."""
