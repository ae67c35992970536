"""Plain values that every package may use; nothing here imports more than the standard library."""
