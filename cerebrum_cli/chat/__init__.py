"""Conversations on disk: a tree of messages that is never overwritten, and its export formats.

Public modules: `archive`, `chat`, `history`, `message_tree` and `session`.
"""
