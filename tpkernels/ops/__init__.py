"""The registered operations, the choice of a backend, and a room for each place where code runs: eager, cpu, gpu."""
