"""Plain values that every room may hold; nothing here imports more than the standard library."""
