"""The use cases: they take values, join the rooms below, yield events, and never print."""
