"""Check the whole installation."""
