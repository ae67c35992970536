"""Rows in files: the readers of input formats, and the objects of an answer file."""
