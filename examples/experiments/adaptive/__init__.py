"""The parts of `adaptive_tokens.py`."""
