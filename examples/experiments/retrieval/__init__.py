"""What `late_interaction.py` is made of: pooling of multi-vector documents, its rivals, the documents, and MaxSim."""
