"""The operations as launches of the Triton kernels, and what launchers ask of a device."""
