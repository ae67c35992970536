"""Conversations over time: turns, the context window, recording, history and archive."""
