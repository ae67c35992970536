"""Optional: check the whole installation."""
