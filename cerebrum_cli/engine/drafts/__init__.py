"""Speculative decoding (prompt lookup): tokens copied from earlier text, which the sampler verifies."""
