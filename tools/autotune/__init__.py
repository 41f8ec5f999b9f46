"""The autotuner: configurations of the resident kernels, measured on the device at hand."""
