"""The way through many rows: a store that survives kills, and the result that it completes."""
