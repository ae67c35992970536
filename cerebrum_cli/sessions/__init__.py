"""Conversations on disk: a tree of messages that forgets nothing, and what it is exported as."""
