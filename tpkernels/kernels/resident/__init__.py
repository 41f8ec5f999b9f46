"""Ward, K-Means and K-Medoids of samples whose Gram matrix a program holds in scratch, in one launch or four."""
