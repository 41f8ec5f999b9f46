"""Code that examples share and that belongs to no single model or experiment."""
