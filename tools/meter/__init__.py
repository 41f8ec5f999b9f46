"""The meter: how many instructions a sample costs, counted in compiled code, for GPUs that need not be there."""
