"""The interactive chat: prompt, keys, completion, editor and slash commands."""
