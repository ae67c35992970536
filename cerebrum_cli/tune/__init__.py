"""Search for the fastest settings and encodings of a model on this machine."""
