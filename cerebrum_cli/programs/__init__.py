"""Programs that a model wrote, found in replies and run in a sandbox, and functions that it may call."""
