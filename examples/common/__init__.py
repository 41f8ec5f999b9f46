"""What examples share that is not about one model or one experiment."""
