"""How a model family writes a conversation, its reasoning and its function calls, and the reader of its replies.

Public modules: `choice`, `prompt_format` and `reply_text`.
"""
