"""Terminal input and output: the only package that knows screens and keyboards."""
