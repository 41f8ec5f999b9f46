"""The operations as compiled loops for CPUs. Imported at a call, since numba need not be there."""
