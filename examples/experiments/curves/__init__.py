"""The parts of `cost_accuracy.py`."""
