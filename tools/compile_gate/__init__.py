"""The compile gate: every kernel in every configuration that ships, built for GPUs that need not be there."""
