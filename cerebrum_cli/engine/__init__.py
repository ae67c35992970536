"""Token sequences in, events out; nothing here knows of conversations, formats or terminals."""
