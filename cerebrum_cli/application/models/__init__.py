"""Find, list, assess and remove models."""
