"""Use cases: they take values, combine the packages below, yield events, and never print."""
