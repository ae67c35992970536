"""Merge models from recipes."""
