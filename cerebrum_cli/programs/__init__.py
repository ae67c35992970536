"""Programs that a model wrote: found in replies, and run in a sandbox."""
