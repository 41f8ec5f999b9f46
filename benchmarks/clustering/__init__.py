"""Clusterings of one batch of tokens by this library and its peers: checked, timed, and compared with a floor."""
