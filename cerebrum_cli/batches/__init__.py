"""Rows in, rows out: readers of the shapes a batch may have, the journal of what is done, and the atomic result."""
