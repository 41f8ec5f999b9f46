"""What the programs `late_interaction*.py` are made of: documents, ways to pool and their rivals, MaxSim, a head."""
