"""Batch files: readers for the input formats, the journal of finished rows, and the atomically written result."""
