"""K-Means and K-Medoids of samples of any length, a launch a step; means of clusters, and their gradient."""
