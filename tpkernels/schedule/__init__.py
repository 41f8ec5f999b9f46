"""How many tokens each block keeps: shapes of models, their MACs, schedules and the search for one. No operations."""
